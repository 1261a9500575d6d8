"""Kill, start, move, fill up and cut off studies; print what came of each.

`python -m tests.faults [kills] [name ...]`: so many random kills (30), at most five of each other
kind; and only the named faults.
After every fault the study is started until it ends; then its weights must be those of an
undisturbed run bit by bit, every stage computed once, nothing left running, and no process left.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psutil

from tests.faults.study import (
    faults,
    kill,
    numbers,
    start,
    weights,
    write,
)
from tests.lab.test_server import Server

STARTS = 8  # of one study on one store
TRIES = 5  # of each kind of kill that is not random
AT_MOST = 6  # random kills on one store
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


class Trial:
    """One study, undisturbed, beside which all others are held.

    Args:
        folder: that everything is written into.
        kills: random ones.
    """

    def __init__(self, folder, kills):
        self.folder, self.kills, self.rng = Path(folder), kills, random.Random(0)
        self.file = write(folder)
        clock = time.monotonic()
        whole = start(self.file, self.folder / "whole")
        out, said = whole.communicate()
        self.seconds = time.monotonic() - clock
        assert whole.returncode == 0, said
        self.expected, self.table = weights(self.folder / "whole"), numbers(out)

    def ended(self, store, file=None):
        """Start the study once more; return what is wrong then."""
        last = start(file or self.file, store)
        out, said = last.communicate()
        return self.wrong(store, last, out, said)

    def wrong(self, store, last, out, said):
        """Return what is wrong after the last start."""
        found = faults(store)
        if last.returncode:
            found.append(f"exit {last.returncode}: {said.strip()[-300:]}")
        if weights(store) != self.expected:
            found.append("other weights")
        if numbers(out) != self.table:
            found.append("another table")
        return found

    def kills_at(self, name, moment, file=None):
        """Kill starts at a moment of each, each on a store of its own, and end them."""
        tries = min(TRIES, self.kills)
        for number in range(tries):
            store = self.folder / f"{name} {number}"
            begun = start(file or self.file, store)
            caught = moment(store, begun)
            how = self.rng.choice(SIGNALS)
            kill(begun, how)
            told = how.name if caught else "ended before the kill"
            yield f"{number + 1} of {tries}, {told}", self.ended(store, file)


def at_random(trial):
    """Kill starts at random moments, several on each store, before one may end."""
    done = number = 0
    while done < trial.kills:
        number, strikes = number + 1, []
        store = trial.folder / f"random {number}"
        begun = start(trial.file, store)
        while len(strikes) < min(AT_MOST, trial.kills - done):
            try:
                begun.communicate(timeout=trial.rng.uniform(1, trial.seconds))
                break
            except subprocess.TimeoutExpired:
                strikes.append(trial.rng.choice(SIGNALS))
                kill(begun, strikes[-1])
                begun = start(trial.file, store)
        out, said = begun.communicate()
        done += len(strikes)
        hard = strikes.count(signal.SIGKILL)
        told = f"{len(strikes)} kills ({hard} by SIGKILL), {done} in all"
        yield told, trial.wrong(store, begun, out, said)


def at_writes(trial):
    """Kill a start the moment that a file of a further stage's result appears."""

    def moment(store, begun):
        count = trial.rng.randint(1, len(trial.expected))
        return _until(
            begun, lambda: len([*store.glob("artifacts/*/*/*/result/*")]) >= 2 * count - 1
        )

    yield from trial.kills_at("writes", moment)


def at_first(trial):
    """Kill a first start while its database is made."""

    def moment(store, begun):
        caught = _until(begun, lambda: [*store.glob("mlflow.db*")])
        time.sleep(trial.rng.uniform(0, 3))
        return caught

    yield from trial.kills_at("first", moment)


def in_notebooks(trial):
    """Kill a start while it executes a notebook; its kernel must not stay behind."""
    (trial.folder / "notebooks").mkdir(exist_ok=True)
    file = write(trial.folder / "notebooks", notebooks=["01_backdoors"])

    def moment(store, begun):
        caught = _until(begun, lambda: _kernels(begun))
        time.sleep(trial.rng.uniform(0, 4))
        return caught

    yield from trial.kills_at("notebooks", moment, file)


def at_once(trial):
    """Start one study several times on one empty store."""
    store = trial.folder / "at once"
    begun = [start(trial.file, store) for _ in range(STARTS)]
    ended = [one.communicate() for one in begun]
    wrong = [
        text
        for one, (out, said) in zip(begun, ended, strict=True)
        for text in trial.wrong(store, one, out, said)
    ]
    yield f"{STARTS} starts", wrong


def moved(trial):
    """Copy a finished store, and move the copy, below awkward names; ask both again."""
    before = trial.folder / "artifacts" / "a store of 'mine'"
    before.parent.mkdir()
    shutil.copytree(trial.folder / "whole", before)
    yield "copied", trial.ended(before)
    after = trial.folder / "artifacts" / "artifacts"
    before.rename(after)
    yield "moved", trial.ended(after)


def full(trial):
    """Start on a disk that is too small, several times smaller; then give it room."""
    disk = trial.folder / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    except (OSError, subprocess.CalledProcessError):
        yield "not tried: no right to mount a small disk", []
        return
    try:
        for size in ("1m", "1500k", "1800k", "2m", "2200k", "2500k"):
            subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
            begun = start(trial.file, disk / "store")
            said = begun.communicate()[1]
            lines = [line for line in said.splitlines() if not line.startswith("resuming ")]
            clear = begun.returncode == 0 or (len(lines) == 1 and "free some disk" in lines[0])
            yield f"{size}: exit {begun.returncode}", [] if clear else [said[-400:]]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        yield "with room again", trial.ended(disk / "store")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)  # its database is open here


def server(trial):
    """Kill the tracking server of a running study, and start it again seconds later."""
    folder = trial.folder / "server"
    folder.mkdir()
    running = Server(folder)
    running.start()
    os.environ["MLFLOW_TRACKING_URI"] = running.uri
    try:
        begun = start(trial.file, folder / "store")
        for _ in range(2):
            time.sleep(trial.rng.uniform(8, 12))
            running.stop()
            time.sleep(5)
            running.start()
        out, said = begun.communicate()
        yield "killed twice, for 5 s", trial.wrong(folder / "store", begun, out, said)
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        running.stop()


def _until(begun, seen):
    """Wait until something is seen; return False where the process ends before."""
    while not seen():
        if begun.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def _kernels(begun):
    children = psutil.Process(begun.pid).children(recursive=True)
    return [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]


FAULTS = {
    function.__name__: function
    for function in (moved, at_once, at_first, at_writes, in_notebooks, full, server, at_random)
}


def main(*words):
    """Print a line a fault; return how many went wrong."""
    kills = [int(word) for word in words if word.isdecimal()]
    names = [word for word in words if not word.isdecimal()] or list(FAULTS)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        trial, clock = Trial(folder, kills[0] if kills else 30), time.monotonic()
        for name in names:
            for told, wrong in _tried(FAULTS[name], trial):
                bad += bool(wrong)
                took, clock = time.monotonic() - clock, time.monotonic()
                verdict = "; ".join(wrong) or "ok"
                print(f"{name:13s} {told:42s} {took:5.0f} s  {verdict}", flush=True)
    return bad


def _tried(fault, trial):
    try:
        yield from fault(trial)
    except Exception as error:  # the other faults are tried all the same
        traceback.print_exc()
        yield "not tried to its end", [f"{type(error).__name__}: {error}"]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
