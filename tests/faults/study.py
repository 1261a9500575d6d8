"""A study of seconds, started as a user would, and what may be said of its store afterwards."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import yaml

from ppr_core.lab.store import Store
from tests.conftest import TINY_STUDY

STUDY = {**TINY_STUDY, "training": {"epochs": 6, "batch_size": 50}}


def write(folder):
    """Write the study's file into a folder; return it."""
    file = Path(folder) / "tiny.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    return file


def start(file, store, *arguments):
    """Start the study on a store."""
    command = [sys.executable, "-m", "ppr_core", "study", str(file), "--no-notebooks", *arguments]
    variables = {**os.environ, "PPR_STORE": str(store), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def numbers(out):
    """Return the lines of the result table."""
    return [line for line in out.splitlines() if line.startswith("badnet  ")]


def faults(store, started=()):
    """Say what is wrong with a store on which a study has just ended: nothing, if all is well.

    No stage was computed twice, nothing is left running, no process of the killed ones is alive,
    and no scratch file is left.
    """
    os.environ["PPR_STORE"] = str(store)
    runs = Store().search("tiny", kind="stage")
    finished = Counter(r.data.tags["ppr.key"] for r in runs if r.info.status == "FINISHED")
    wrong = [f"{key[:8]} computed {n} times" for key, n in finished.items() if n > 1]
    wrong += [f"{r.info.run_name} left RUNNING" for r in runs if r.info.status == "RUNNING"]
    wrong += [f"process {pid} is alive" for pid in started if psutil.pid_exists(pid)]
    scratch = Path(store) / "scratch"
    wrong += [f"left {p.name}" for p in scratch.glob("*/*.pt")]
    return wrong
