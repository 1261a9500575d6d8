"""A study over a real tracking server: the same stages found again, and one that goes away."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
import yaml

from ppr_core.errors import CheckpointError, StoreError
from ppr_core.lab import leases, marks
from ppr_core.lab.dropping import drop, dropped
from ppr_core.lab.store import Store
from ppr_core.method import Result
from tests.conftest import TINY_STUDY


class Server:
    """`mlflow server` on 127.0.0.1, with its artifacts behind it."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    @classmethod
    def over(cls, template, folder):
        """Start one on a copy of a store's database."""
        folder.mkdir(exist_ok=True)
        shutil.copy(template / "mlflow.db", folder)
        made = cls(folder)
        made.start()
        return made

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "behind")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.time() + 120
        while time.time() < deadline:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text())

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(store_template, tmp_path_factory):
    running = Server.over(store_template, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def over_server(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("PPR_STORE", str(tmp_path / "mlruns"))
    monkeypatch.setenv("PPR_DATA", str(tmp_path / "data"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY_STUDY, "device": "cpu"}))
    return tmp_path / "tiny.yaml"


def study(file, *words):
    command = [sys.executable, "-m", "ppr_core", "study", str(file), "--no-notebooks", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_study_over_a_server_is_computed_once(over_server, tmp_path):
    first = study(over_server)
    out, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
    assert "backdoored" in out
    assert not (tmp_path / "mlruns" / "mlflow.db").exists(), "all is on the server"
    again = study(over_server, "--dry-run")
    assert "0 of " in again.communicate(timeout=120)[0]


def test_a_result_that_is_missing_or_damaged_on_a_server_is_said(over_server, tmp_path):
    store = Store()
    run = store.start("damaged", "a stage", tags={"kind": "stage", "key": "damaged"})
    store.finish(run)
    with pytest.raises(CheckpointError, match="expected artifacts 'result/result.json' of run"):
        store.summary(store.find("damaged"))
    (tmp_path / "result.json").write_text("{")
    store.attach(run, tmp_path / "result.json", "result")
    with pytest.raises(CheckpointError, match="expected a stage's result in .*a stage again"):
        store.summary(store.find("damaged"))
    store.retire(store.find("damaged"), "damaged")
    assert store.find("damaged") is None


def test_a_server_that_is_started_again_is_waited_for(over_server, server):
    running = Store()
    server.stop()
    back = threading.Timer(4.0, server.start)
    back.start()
    run = running.start("away", "run", tags={"kind": "stage", "key": "away"})
    running.finish(run)
    assert running.find("away").info.run_id == run
    back.join()


def test_one_machine_computes_a_stage_and_one_that_falls_silent_is_not_waited_for(
    over_server, tmp_path, monkeypatch
):
    monkeypatch.setattr(leases, "BEAT_S", 0.2)
    monkeypatch.setattr(leases, "LEASE_S", 1.5)
    monkeypatch.setattr(leases, "LOOK_S", 0.1)
    here = Store(tmp_path / "here")
    with monkeypatch.context() as patch:
        patch.setattr(marks.socket, "gethostname", lambda: "elsewhere")
        theirs = here.start("leases", "stage", tags={"kind": "stage", "key": "leased"})
    mine = here.start("leases", "stage", tags={"kind": "stage", "key": "leased"})
    assert [leases.first(here, "leased", run) for run in (theirs, mine)] == [True, False]
    here.discard(mine)
    waiting = threading.Thread(target=leases.wait, args=(here, "leased"))
    with leases.beating(here, theirs):
        waiting.start()
        waiting.join(4.0)
        assert waiting.is_alive(), "it gives signs of life"
    waiting.join(30.0)
    assert not waiting.is_alive()
    assert here.client.get_run(theirs).info.status == "KILLED"


def test_tensors_behind_a_server_are_fetched_once_and_can_be_dropped(over_server, tmp_path):
    here = Store(tmp_path / "here")
    run_id = here.start("kept", "stage", tags={"kind": "stage", "key": "kept"})
    here.save(run_id, Result({"a": torch.arange(10_000)}, metrics={"asr": 1.0}))
    run = here.held("kept")
    assert here.load(run).tensors["a"].sum() == sum(range(10_000))
    [kept] = (tmp_path / "here" / "downloads" / run_id).iterdir()
    stamp = kept.stat().st_ctime_ns
    here.load(run)
    assert kept.stat().st_ctime_ns == stamp
    assert drop(here, run) > 80_000
    assert dropped(here.held("kept"))
    assert not kept.exists()
    assert here.summary(run).metrics == {"asr": 1.0}
    with pytest.raises(CheckpointError):
        here.load(run)


def test_a_server_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    clock = time.monotonic()
    with pytest.raises(StoreError, match="expected an MLflow store at http") as error:
        Store(tmp_path)
    assert time.monotonic() - clock < 30
    assert "\n" not in str(error.value)
