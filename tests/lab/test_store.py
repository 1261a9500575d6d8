import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    store.check(store.find("k1"))  # the content is left unread
    with pytest.raises(CheckpointError, match="expected sha256 .*start the study of a stage again"):
        store.load(store.find("k1"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="expected a stage's result"):
        store.check(store.find("k1"))
    path.unlink()
    for look in (store.load, store.check):
        with pytest.raises(CheckpointError, match="expected a stage's result"):
            look(store.find("k1"))


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "{}", '{"info": [], "metrics": 1}'])
def test_damaged_figures_are_named(store, content):
    path = store.artifacts(kept(store), "result") / "result.json"
    path.unlink() if content is None else path.write_text(content)
    for look in (store.load, store.summary, store.check):
        with pytest.raises(CheckpointError, match="expected a stage's result in .*result.json"):
            look(store.find("k1"))


def test_a_retired_run_is_read_no_more_and_stays(store):
    run = kept(store)
    store.retire(store.find("k1"), "damaged")
    assert store.find("k1") is None
    assert store.client.get_run(run).info.status == "FAILED"
    assert store.client.get_run(run).data.tags["ppr.error"] == "damaged"


def test_a_store_without_its_results_retires_none(store):
    kept(store)
    shutil.rmtree(store.folder / "artifacts")
    (store.folder / "artifacts").mkdir()
    with pytest.raises(StoreError, match="got an empty folder; put them back"):
        store.retire(store.find("k1"), "missing")
    assert store.find("k1")


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
    monkeypatch.setattr("ppr_core.lab.database.BUSY_S", 0.1)
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


def in_the_place_of_nobody(call):
    """Run a function as a user whom no folder lets write; root writes into read-only ones."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        return call()
    finally:
        if root:
            os.seteuid(0)


def test_a_finished_study_is_read_from_a_read_only_folder(store_template):
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders let nobody pass
        folder = shutil.copytree(store_template, Path(scratch) / "mlruns")
        Path(scratch).chmod(0o755)
        kept(Store(folder))
        folder = folder.rename(Path(scratch) / "mounted elsewhere")
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            read = in_the_place_of_nobody(lambda: Store(folder).load(Store(folder).find("k1")))
            assert read.metrics["asr"] == 99.5
            with pytest.raises(StoreError, match="expected a store that can be written"):
                in_the_place_of_nobody(lambda: Store(folder).start("new", "x", tags={}))
        finally:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o755)


def test_a_store_below_a_folder_named_artifacts_keeps_its_paths(store_template, tmp_path):
    first = tmp_path / "artifacts" / "my_project" / "mlruns"
    shutil.copytree(store_template, first)
    run = kept(Store(first))
    assert Store(first).load(Store(first).find("k1")).info == {"label": 3}
    second = tmp_path / "artifacts" / "artifacts"
    shutil.move(first, second)
    moved = Store(second)
    assert moved.artifacts(run).is_relative_to(second)
    assert moved.load(moved.find("k1")).info == {"label": 3}


@pytest.mark.parametrize("name", ["50%", "why?", "c#"])
def test_a_path_that_a_database_uri_misreads_is_refused(tmp_path, name):
    with pytest.raises(StoreError, match="expected a store path without"):
        Store(tmp_path / name / "mlruns")
    assert not list(tmp_path.iterdir())


def test_a_name_with_an_apostrophe_is_found(store):
    run = store.start("study", "o'neil", tags={"kind": "stage", "attack": "o'neil"})
    assert [found.info.run_id for found in store.search(attack="o'neil")] == [run]


@pytest.mark.parametrize("wait", [0.3, 1.2])
def test_a_kill_during_the_first_start_does_no_harm(tmp_path, wait):
    """Wherever in MLflow's migrations it strikes, the next start makes a whole database."""
    code = "import sys; from pathlib import Path; from ppr_core.lab.store import Store;"
    code += "Store(Path(sys.argv[1]))"
    killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "mlruns")])
    deadline = time.time() + 60
    while not list(tmp_path.glob("mlruns/mlflow.db*")):
        assert killed.poll() is None and time.time() < deadline
        time.sleep(0.01)
    time.sleep(wait)
    killed.kill()
    killed.wait()
    assert kept(Store(tmp_path / "mlruns"))


def test_a_half_made_database_of_an_earlier_version_is_set_aside(store_template, tmp_path):
    folder = shutil.copytree(store_template, tmp_path / "half made")
    with sqlite3.connect(folder / "mlflow.db") as base:
        base.execute("CREATE TABLE _alembic_tmp_experiments (x INTEGER)")
    assert kept(Store(folder))
    assert len(list(folder.glob("mlflow.db.half-made-*"))) == 1


def test_a_database_with_runs_is_never_set_aside(store):
    kept(store)
    with sqlite3.connect(store.folder / "mlflow.db") as base:
        base.execute("CREATE TABLE _alembic_tmp_experiments (x INTEGER)")
    assert Store(store.folder).find("k1") is not None


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("0584bdc529eb", "an older version .*keep a copy of that file and run `python -m mlflow"),
        ("ffffffffffff", "a newer version .*install that MLflow version"),
    ],
)
def test_a_database_of_another_mlflow_version_is_one_line_and_stays_as_it_is(
    store_template, tmp_path, schema, told
):
    folder = shutil.copytree(store_template, tmp_path / "moved")
    with sqlite3.connect(folder / "mlflow.db") as base:
        base.execute("UPDATE alembic_version SET version_num = ?", (schema,))
        base.execute("DROP TABLE spans")  # MLflow would migrate what lacks one
        before = [*base.iterdump()]
    with pytest.raises(StoreError, match=f"expected a database of MLflow .* got one of {told}"):
        Store(folder)
    with sqlite3.connect(folder / "mlflow.db") as base:
        assert [*base.iterdump()] == before
