"""Kill, start and move studies, and print what came of it: `python -m tests.faults [rounds]`."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.study import faults, numbers, start, write

STARTS = 8  # of one study on one store


def killed(folder, file, expected, rounds):
    """Kill the study at random moments until it ends by itself; as often as there are rounds."""
    rng, strikes, round_ = random.Random(0), 0, 0
    while strikes < rounds:
        store, pids, round_ = Path(folder) / f"killed{round_}", [], round_ + 1
        while True:
            begun = start(file, store)
            pids.append(begun.pid)
            try:
                out, err = begun.communicate(timeout=rng.uniform(1, 25))
                break
            except subprocess.TimeoutExpired:
                begun.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
                begun.communicate()
                strikes += 1
        assert begun.returncode == 0, err
        wrong = faults(store, pids)
        same = "same numbers" if numbers(out) == expected else f"other numbers: {numbers(out)}"
        yield f"{len(pids) - 1} kills", [*wrong, same]


def at_once(folder, file, expected):
    """Start one study several times on one empty store."""
    store = Path(folder) / "at_once"
    begun = [start(file, store) for _ in range(STARTS)]
    ended = [one.communicate() for one in begun]
    codes = [one.returncode for one in begun]
    same = sum(numbers(out) == expected for out, _ in ended)
    wrong = faults(store, [one.pid for one in begun])
    said = [
        err.strip().splitlines()[-1] for (_, err), code in zip(ended, codes, strict=True) if code
    ]
    yield f"{STARTS} starts", [*wrong, *said, f"{codes.count(0)} succeed, {same} same numbers"]


def moved(folder, file, expected):
    """Copy a finished store elsewhere, below a folder with an awkward name, and ask it again."""
    target = Path(folder) / "artifacts" / "a store of 'mine'"
    target.parent.mkdir()
    shutil.copytree(Path(folder) / "whole", target)
    again = start(file, target)
    out, err = again.communicate()
    computed = [line for line in out.splitlines() if line.lstrip().split("%")[0].isdigit()]
    same = "same numbers" if numbers(out) == expected else f"other numbers: {err[-300:]}"
    yield "moved store", [*faults(target), *computed, same]


def main(rounds=30):
    """Print one line a fault."""
    with tempfile.TemporaryDirectory() as folder:
        file = write(folder)
        whole = start(file, Path(folder) / "whole")
        out, err = whole.communicate()
        assert whole.returncode == 0, err
        expected, clock = numbers(out), time.time()
        for fault in (
            moved(folder, file, expected),
            at_once(folder, file, expected),
            killed(folder, file, expected, rounds),
        ):
            for name, told in fault:
                print(f"{name:12s} {time.time() - clock:6.0f} s  {'; '.join(told)}", flush=True)


main(*map(int, sys.argv[1:]))
