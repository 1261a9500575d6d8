"""Processes that share the stages of a study."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import psutil
import pytest

from ppr_core.lab import engine, turns
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting import results
from tests.conftest import TINY_STUDY

OWN = """
import os, time
from pathlib import Path
from ppr_core.config import Field
from ppr_core.defenses import Defense
from ppr_core.errors import ConfigError

class Meets(Defense):
    '''Waits until so many processes are in such a defense at the same time.'''

    folder: str
    mark: int = 0
    count: int = 2

    def run(self, model, data, *, rng):
        here = Path(self.folder)
        (here / str(os.getpid())).touch()
        last = time.monotonic() + 120
        while len(list(here.iterdir())) < self.count and time.monotonic() < last:
            time.sleep(0.05)
        if len(list(here.iterdir())) < self.count:
            raise ConfigError("nobody came")
        from ppr_core.method import Outcome
        return Outcome(model, [])

class Fails(Defense):
    '''Leaves a line and fails.'''

    file: str

    def run(self, model, data, *, rng):
        with open(self.file, "a") as lines:
            lines.write("tried\\n")
        raise ConfigError("as it should")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The settings of a study whose defenses meet, or fail."""
    (tmp_path / "meeting.py").write_text(OWN)
    (tmp_path / "here").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def settings(count=2):
        meets = {"method": "meeting:Meets", "folder": str(tmp_path / "here"), "count": count}
        defenses = {
            "one": meets,
            "two": {**meets, "mark": 1},
            "bad": {"method": "meeting:Fails", "file": str(tmp_path / "tries")},
        }
        return {**TINY_STUDY, "device": "cpu", "defenses": defenses}

    yield settings
    sys.modules.pop("meeting", None)


def test_two_processes_share_a_study_and_each_stage_is_computed_once(
    store, own, tmp_path, capsys, monkeypatch
):
    plan, attempt, lines = Plan(Study(**own())), turns.attempt, []

    def held(lab, stage):  # until a stage of the worker is told of: not only when this one ends
        last = time.monotonic() + 60
        while not lines and time.monotonic() < last:
            time.sleep(0.05)
            lines.extend(capsys.readouterr().out.splitlines())
        return attempt(lab, stage)

    monkeypatch.setattr(turns, "attempt", held)  # here, not in the worker
    failures = engine.run(plan, Lab(store), workers=2)
    bad = "badnet/bad purified s0"
    assert failures == {
        bad: "ConfigError: as it should",
        "badnet/bad retuned s0": f"needs {bad}, which failed",
    }
    assert (tmp_path / "tries").read_text() == "tried\n"  # by one of the two
    runs = store.search(kind="stage")
    keys = [run.data.tags["ppr.key"] for run in runs]
    assert len(set(keys)) == len(keys) == len(plan.stages()) - 1
    assert len(list((tmp_path / "here").iterdir())) == 2  # `one` and `two` ran at the same time
    assert lines
    lines.extend(capsys.readouterr().out.splitlines())
    names = [line.partition("%  ")[2][:44].strip() for line in lines if "%  " in line]
    assert sorted(names) == sorted(stage.name for stage in plan.stages()), "each is told once"


def test_workers_reach_the_numbers_of_one_process(store, own, store_template, tmp_path):
    """What a worker has computed is what this process would have."""
    shared, alone = Plan(Study(**own())), Plan(Study(**own(count=1)))
    engine.run(shared, Lab(store), workers=2)
    engine.run(alone, Lab(store), workers=1)
    columns = ["defense", *results.FIGURES]
    rows = [results.cells(plan, store)[columns] for plan in (shared, alone)]
    pd.testing.assert_frame_equal(*rows)


def test_a_worker_ends_with_the_process_that_started_it(store, own, tmp_path):
    """Even where that is killed and began in the background, where shells have SIGINT ignored."""
    file = tmp_path / "study.json"
    file.write_text(json.dumps(own(count=3)))  # they wait for a third one, who does not come
    command = [sys.executable, "-m", "ppr_core", "study", str(file), "--workers", "2"]
    quiet = subprocess.DEVNULL
    began = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, preexec_fn=began) as main:
        deadline = time.monotonic() + 90
        while len(found := list((tmp_path / "here").iterdir())) < 2:
            assert main.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        worker = next(int(one.name) for one in found if int(one.name) != main.pid)
        main.send_signal(signal.SIGKILL)
    psutil.Process(worker).wait(timeout=30) if psutil.pid_exists(worker) else None
    assert not psutil.pid_exists(worker)
    runs = store.search(kind="stage", defense="one") + store.search(kind="stage", defense="two")
    # That of the killed process is closed by the next start.
    assert sorted(run.info.status for run in runs) == ["KILLED", "RUNNING"]


def test_no_more_workers_than_cores_and_memory_allow(monkeypatch):
    monkeypatch.setattr(turns, "free_cores", lambda: 8)
    monkeypatch.setattr(turns.psutil, "virtual_memory", lambda: type("M", (), {"available": 2**40}))
    assert turns.most(threads=1) == 8
    assert turns.most(threads=3) == 2
    monkeypatch.setattr(turns.psutil, "virtual_memory", lambda: type("M", (), {"available": 2**20}))
    assert turns.most(threads=1) == 1
