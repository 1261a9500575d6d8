"""A study of seconds, started as a user would, and what may be said of its store afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import yaml

from ppr_core.lab.store import Store
from tests.conftest import TINY_STUDY

STUDY = {**TINY_STUDY, "training": {"epochs": 6, "batch_size": 50}}
MARK = "PPR_FAULT"  # the variable by which processes of a store are known, and their children
PATIENCE_S = 15  # that a process whose parent was killed has to end by itself


def write(folder, **changes):
    """Write the study's file into a folder; return it."""
    file = Path(folder) / "tiny.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **changes}))
    return file


def start(file, store, *arguments, **variables):
    """Start the study on a store."""
    command = [sys.executable, "-m", "ppr_core", "study", str(file), *arguments]
    if "notebooks" not in file.read_text():
        command.append("--no-notebooks")
    known = {"PPR_STORE": str(store), MARK: str(store), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env={**os.environ, **known, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process, how=signal.SIGKILL):
    """Send a signal to a process that may just have ended; return its output and its errors."""
    process.send_signal(how)
    return process.communicate()


def numbers(out):
    """Return the lines of the result table."""
    return [line for line in out.splitlines() if line.startswith("badnet  ")]


def opened(store):
    """Open the store of a folder in this process."""
    os.environ["PPR_STORE"] = str(store)
    return Store()


def finished(store):
    """Return the finished runs of the study's stages."""
    runs = opened(store).search("tiny", kind="stage")
    return [run for run in runs if run.info.status == "FINISHED"]


def weights(store):
    """Return the digest of every stage's tensors, by the stage's key."""
    found, here = {}, opened(store)
    for run in finished(store):
        path = here.artifacts(run.info.run_id, "result") / "result.json"
        found[run.data.tags["ppr.key"]] = json.loads(path.read_text())["sha256"]
    return found


def orphans(store):
    """Return the processes that starts on a store have left behind."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := [*_marked(str(store))]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _marked(mark):
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:  # another user's, or gone by now
            continue


def faults(store):
    """Say what is wrong with a store on which a study has just ended: nothing, if all is well.

    No stage was computed twice, nothing is left running, no process that was started on it or by
    such a one is alive, and no checkpoint is left.
    """
    runs = opened(store).search("tiny")
    counts = Counter(run.data.tags["ppr.key"] for run in finished(store))
    wrong = [f"{key[:8]} computed {n} times" for key, n in counts.items() if n > 1]
    wrong += [f"{r.info.run_name} left RUNNING" for r in runs if r.info.status == "RUNNING"]
    wrong += [f"left process {one.pid}: {one.cmdline()[-3:]}" for one in orphans(store)]
    return wrong + [f"left {path.name}" for path in Path(store).glob("scratch/*/*.pt*")]
