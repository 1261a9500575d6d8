import os
import shutil
import sqlite3
import subprocess
import sys

import pytest
import torch
from mlflow.exceptions import MlflowException

from ppr_core.errors import CheckpointError, StoreError
from ppr_core.lab.store import Result, Store

RESULT = Result(
    {"model.w": torch.arange(6.0).view(2, 3), "label": torch.tensor(3)},
    {"label": 3},
    {"asr": 99.5},
    [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}],
)


def kept(store, key="k1", name="a stage"):
    run = store.start("study", name, tags={"kind": "stage", "key": key}, params={"lr": 0.1})
    store.log(run, metrics=RESULT.metrics, history=RESULT.history)
    store.save(run, RESULT)
    store.finish(run)
    return run


def test_a_result_comes_back(store):
    kept(store)
    run = store.find("k1")
    found = store.load(run)
    assert torch.equal(found.tensors["model.w"], RESULT.tensors["model.w"])
    assert (found.info, found.metrics, found.history) == (
        {"label": 3},
        {"asr": 99.5},
        RESULT.history,
    )
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics["asr"] == 99.5
    points = store.client.get_metric_history(run.info.run_id, "epoch_loss")
    assert [(p.step, p.value) for p in points] == [(1, 0.5), (2, 0.25)]
    assert run.data.tags["mlflow.source.git.commit"]


def test_only_finished_runs_are_found(store):
    store.start("study", "running", tags={"kind": "stage", "key": "k2"})
    assert store.find("k2") is None
    assert store.find("k3") is None


def test_a_moved_store_still_opens_its_artifacts(store, tmp_path):
    kept(store)
    shutil.move(tmp_path / "mlruns", tmp_path / "elsewhere")
    moved = Store(tmp_path / "elsewhere")
    assert torch.equal(moved.load(moved.find("k1")).tensors["label"], torch.tensor(3))
    kept(moved, "k9")
    assert (tmp_path / "elsewhere" / "artifacts").exists()
    assert not (tmp_path / "mlruns").exists()


def test_a_damaged_result_is_named(store):
    run = kept(store)
    path = store.artifacts(run, "result") / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=f"expected sha256 .*delete run {run}"):
        store.load(store.find("k1"))
    path.unlink()
    with pytest.raises(CheckpointError, match="expected a stage's result"):
        store.load(store.find("k1"))


def test_a_killed_runs_status_is_mended(store):
    mine = store.start("study", "mine", tags={"kind": "stage", "key": "a"})
    dead = store.start("study", "dead", tags={"kind": "stage", "key": "b"})
    store.log(dead, tags={"process": "999999999:1"})
    assert store.close_stale() == 1
    assert store.client.get_run(dead).info.status == "KILLED"
    assert store.client.get_run(mine).info.status == "RUNNING"


def test_a_read_only_store_is_one_error(tmp_path):
    (tmp_path / "mlruns").mkdir(mode=0o500)
    root = os.geteuid() == 0  # who writes into read-only folders
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(StoreError, match=r"expected a writable MLflow store .*PPR_STORE"):
            Store(tmp_path / "mlruns")
    finally:
        if root:
            os.seteuid(0)


def test_a_locked_store_is_one_error(store, monkeypatch):
    monkeypatch.setattr("ppr_core.lab.store.BUSY_S", 0.1)
    with sqlite3.connect(store.folder / "mlflow.db", isolation_level=None) as rival:
        rival.execute("UPDATE experiments SET artifact_location = '/old/artifacts/x'")
        rival.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked"):
            Store(store.folder)
        rival.execute("ROLLBACK")


@pytest.mark.parametrize("failures", [1, 3])
def test_processes_that_name_one_data_set_at_once_do_not_race(store, monkeypatch, failures):
    """The second to insert it is refused, and finds it there when it tries again."""
    real, left = store.client.log_inputs, [MlflowException("UNIQUE constraint failed")] * failures

    def refused(*given):
        if left:
            raise left.pop()
        return real(*given)

    monkeypatch.setattr(store.client, "log_inputs", refused)
    about = {"name": "tiny", "digest": "1", "source": "here"}
    if failures == 3:
        with pytest.raises(StoreError, match="UNIQUE"):
            store.start("x", "run", tags={}, dataset=about)
        return
    run = store.client.get_run(store.start("x", "run", tags={}, dataset=about))
    assert [used.dataset.name for used in run.inputs.dataset_inputs] == ["tiny"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "mlruns").write_text("not a folder")
    with pytest.raises(StoreError, match="expected a writable MLflow store"):
        Store(tmp_path / "mlruns")


def test_a_corrupt_database_is_one_error(tmp_path):
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(StoreError, match="expected a writable MLflow store"):
        Store(tmp_path / "mlruns")


def test_a_full_disk_leaves_no_half_result(store, monkeypatch):
    import resource

    run = store.start("study", "big", tags={"kind": "stage", "key": "full"})
    big = Result({"model.w": torch.zeros(200_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        with pytest.raises(StoreError, match="free some disk"):
            store.save(run, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert store.client.list_artifacts(run) == []


def test_first_time_processes_do_not_race(tmp_path):
    code = "import sys; from pathlib import Path; from ppr_core.lab.store import Store;"
    code += "s = Store(Path(sys.argv[1])); r = s.start('e', 'r', tags={'kind': 'x'}); s.finish(r)"
    command = [sys.executable, "-c", code, str(tmp_path / "mlruns")]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [racer.communicate()[1].decode() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], errors
    assert len(Store(tmp_path / "mlruns").search("e")) == 3
