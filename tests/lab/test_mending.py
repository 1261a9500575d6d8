"""A study whose names are awkward, and what becomes of it when its store is damaged or closed."""

import shutil
import subprocess

import pandas as pd
import pytest

from ppr_core.errors import StoreError
from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reporting import claims, comparison, report, results
from tests.conftest import TINY_STUDY

BAD, DOR = 'it\'s "bad" 100% \\ ü', 'd\'Or "x" %s <b> é'
ODD = {
    **TINY_STUDY,
    "name": '50% of? #1 &amp; o\'neil "q" été',
    "device": "cpu",
    "attacks": {BAD: {"method": "badnet"}},
    "defenses": {DOR: {"method": "ft", "schedule": {"epochs": 2}}, **TINY_STUDY["defenses"]},
}


@pytest.fixture(scope="module")
def computed(store_template, tmp_path_factory):
    """The folder of a store with that study, its figures, and what they are evidence of."""
    folder = shutil.copytree(store_template, tmp_path_factory.mktemp("computed") / "mlruns")
    plan, store = Plan(Study(**ODD)), Store(folder)
    assert engine.run(plan, Lab(store)) == {}
    comparison.log_cells(plan, store)
    return folder, results.cells(plan, store), claims.gather(plan, store)


@pytest.fixture
def odd(computed, tmp_path):
    """A plan of that study, and a copy of its store."""
    return Plan(Study(**ODD)), Store(shutil.copytree(computed[0], tmp_path / "mlruns"))


def files(store, plan, name):
    """The folder of a stage's result."""
    [stage] = [stage for stage in plan.stages() if stage.name == f"{BAD}/{name}"]
    return store.artifacts(store.held(stage.key).info.run_id, "result")


def test_awkward_names_reach_every_table(odd, computed):
    plan, store = odd
    assert set(computed[1]["defense"]) == {"none", "clean", DOR, "ep", "ft"}
    assert set(computed[1]["status"]) == {"done"}
    comparison.log_cells(plan, store)
    kept = store.search(plan.study.name, kind="cell", attack=BAD)
    assert len(kept) == 5, "each in the place of the one before"


def test_damaged_results_are_said_and_computed_anew_and_the_rest_stays(odd, computed, caplog):
    plan, store = odd
    figures = files(store, plan, f"{DOR} purified s0") / "result.json"
    figures.write_bytes(figures.read_bytes()[:40])
    (files(store, plan, "ft retuned s0") / "result.json").unlink()
    (files(store, plan, "ft purified s0") / "result.json").write_text("[1, 2]")
    tensors = files(store, plan, "ep retuned s0") / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])

    rows = results.cells(plan, store).set_index("defense")
    for name in (DOR, "ft"):
        assert "Its result is damaged: expected a stage's result in" in rows.loc[name, "checks"]
    assert set(results.histories(plan, store, "retuned")["defense"]) == {"clean", DOR, "ep"}
    assert "left out: expected a stage's result" in caplog.text

    caplog.clear()
    assert engine.run(plan, Lab(store)) == {}
    assert [text.count("is computed anew") for text in caplog.messages] == [1, 1, 1, 1]
    mended = results.cells(plan, store)
    seconds = ["seconds"]
    pd.testing.assert_frame_equal(mended.drop(columns=seconds), computed[1].drop(columns=seconds))
    runs = store.search(plan.study.name, kind="stage")
    assert [r.info.status for r in runs].count("FAILED") == 4, "the damaged ones are kept"


def test_a_model_found_damaged_when_it_is_read_is_computed_anew(odd, caplog):
    plan, store = odd
    path = files(store, plan, "ep purified s0") / "tensors.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    [stage] = [stage for stage in plan.stages() if stage.name == f"{BAD}/ep purified s0"]
    found = Lab(store).result(stage).tensors
    assert "is computed anew: expected sha256" in caplog.text
    again = files(store, plan, "ep purified s0") / "tensors.safetensors"
    assert again != path
    assert again.read_bytes() == whole
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_a_finished_study_is_reported_from_a_store_that_is_mounted_read_only(odd, computed):
    """As `Store` finds it there: a copy of the database, and nothing else may be written."""
    plan, store = odd
    store.readonly = True
    before = written(store)
    path = report.write(plan, store, computed[2])
    assert "&lt;b&gt;" in path.read_text()
    assert path.name == f"{plan.study.name}.html"
    assert not path.is_relative_to(store.folder)
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(StoreError, match="expected a store that can be written for this"):
        comparison.log_cells(plan, store)
    further = Plan(Study(**{**ODD, "seeds": [1]}))
    with pytest.raises(StoreError, match="expected a store that can be written for this"):
        engine.run(further, Lab(store))
    assert written(store) == before


def written(store):
    """What lies in a store, beside its database, and when it was written."""
    places = [path for path in store.folder.rglob("*") if not path.name.startswith("mlflow.db")]
    return {path: path.stat().st_mtime_ns for path in places}


@pytest.fixture
def small_disk(tmp_path):
    """A disk, and how its size is changed (kB)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)

    yield disk, resize
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("full", ["at some result", "when a run is to be closed"])
def test_a_full_disk_ends_a_study_in_one_line_and_room_lets_it_go_on(
    full, computed, small_disk, capsys, monkeypatch
):
    disk, resize = small_disk
    store = Store(shutil.copytree(computed[0], disk / "mlruns"))
    further = Plan(Study(**{**ODD, "seeds": [1]}))

    def leave(kilobytes):
        resize(shutil.disk_usage(disk).used // 1024 + kilobytes)

    def finish(run_id, status="FINISHED"):
        leave(0)  # the result is there, but the database has no room to say so
        Store.finish(store, run_id, status)

    if full == "at some result":
        leave(500)
    else:
        monkeypatch.setattr(store, "finish", finish)
    with pytest.raises(StoreError, match="expected room .* free some disk and start again"):
        engine.run(further, Lab(store))
    assert "FAILED" not in capsys.readouterr().out, "no stage is said to be at fault"
    runs = store.search(further.study.name, kind="stage", seed="1")
    broken = [run for run in runs if run.info.status != "FINISHED"]
    assert broken
    for run in broken:
        assert not [*store.artifacts(run.info.run_id).rglob("*.*")]
    assert not [*store.folder.rglob("*.part")]
    resize(64_000)
    monkeypatch.undo()
    assert engine.run(further, Lab(store)) == {}
    assert set(results.cells(further, store)["status"]) == {"done"}


NAN = """
import torch
from ppr_core.defenses import Defense
from ppr_core import Outcome

class Breaks(Defense):
    def run(self, model, data, *, rng):
        with torch.no_grad():
            next(model.parameters()).mul_(float("nan"))
        return Outcome(model)
"""


def test_a_model_of_nan_has_no_figures(odd, tmp_path):
    (tmp_path / "mine.py").write_text(NAN)
    defenses = {"broken": {"method": f"{tmp_path}/mine.py:Breaks"}, **ODD["defenses"]}
    plan, store = Plan(Study(**{**ODD, "defenses": defenses})), odd[1]
    failures = engine.run(plan, Lab(store))
    told = "ConfigError: expected logits that are numbers, got NaN for 100 of 100 images"
    assert failures[f"{BAD}/broken purified s0"].startswith(told)
    rows = results.cells(plan, store).set_index("defense")
    assert rows.loc["broken", "status"].startswith(f"failed: {told}")
    assert rows.loc["broken", ["o_asr", "p_asr"]].isna().all()
    assert set(rows.drop("broken")["status"]) == {"done"}
