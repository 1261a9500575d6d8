"""What the MLflow UI shows: cells, their means over seeds, and saved views."""

import base64
import json
import statistics
import zlib

import pytest

from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.reporting import comparison, results


@pytest.fixture
def plan(store, tiny_study):
    plan = Plan(tiny_study)
    assert not engine.run(plan, Lab(store))
    return plan


def test_cells_are_kept_once_with_what_a_person_compares(plan, store):
    comparison.log_cells(plan, store)
    comparison.log_cells(plan, store)
    runs = store.search("tiny", kind="cell")
    assert {run.info.run_name for run in runs} == {
        f"badnet / {name} s0" for name in ("none", "clean", "ft", "ep (oracle)")
    }
    assert len(runs) == 4
    rows = results.cells(plan, store).set_index("defense")
    for run in runs:
        assert len(run.data.metrics) <= 12
        assert len(run.data.params) <= 12
        row = rows.loc[run.data.params["defense"].removesuffix(" oracle")]
        parent = store.find(run.data.tags["ppr.parent"])
        assert parent.data.tags["ppr.stage"] in ("backdoored", "retuned"), "leads to the settings"
        for name in results.FIGURES:
            if row[name] == row[name]:
                assert run.data.metrics[name] == round(row[name], 2)
    assert store.search("tiny", kind="group") == [], "one seed has no mean"


def test_machines_that_log_the_same_cells_at_once_leave_each_other_be(plan, store):
    """Locks hold on one machine; what another one has open must not be taken from it."""
    name = "badnet / ft s0"
    tags = {"kind": "cell", "cell": name}
    other = store.start("tiny", name, tags={**tags, "key": "another"})
    comparison.log_cells(plan, store)
    store.log(other, metrics={"p_asr": 1.0})  # an error where it was discarded
    store.finish(other)
    runs = [run for run in store.search("tiny", **tags) if run.info.run_id != other]
    [own] = runs
    key = own.data.tags["ppr.key"]
    twin = store.start("tiny", name, tags={**tags, "key": key})
    store.finish(twin)
    assert store.settled(key, twin) == own.info.run_id, "the oldest stays"
    assert store.find(key).info.run_id == own.info.run_id
    store.discard(twin)  # once more: another process may have been faster
    assert store.settled(key, own.info.run_id) == own.info.run_id


def test_a_cell_has_the_epochs_of_ra(plan, store):
    comparison.log_cells(plan, store)
    [run] = [r for r in store.search("tiny", kind="cell") if r.data.params["defense"] == "ft"]
    history = results.histories(plan, store, "retuned")
    history = history[history["defense"] == "ft"]
    for name, column in comparison.EPOCHS.items():
        points = store.client.get_metric_history(run.info.run_id, name)
        points = {point.step: point.value for point in points}
        assert list(points) == [0, 1, 2]
        assert list(points.values()) == pytest.approx(list(history[column]), abs=0.01)
        assert points[2] == run.data.metrics[name], "tables show the last"
    colours = [r.data.tags["mlflow.runColor"] for r in store.search("tiny", kind="cell")]
    assert len(set(colours)) == 4, "a colour a defense"
    assert f"ASR {run.data.metrics['o_asr']:.1f} %" in run.data.tags["mlflow.note.content"]
    assert next(iter(run.data.metrics)) == "p_asr", "the UI's comparison opens on the first"


def test_several_seeds_stand_under_their_mean_and_spread(plan, store, tiny_study):
    comparison.log_cells(plan, store)
    both = Plan(tiny_study.model_copy(update={"seeds": [0, 1]}))
    assert not engine.run(both, Lab(store))
    comparison.log_cells(both, store)
    comparison.log_cells(both, store)
    groups = store.search("tiny", kind="group")
    assert len(groups) == 4
    [ft] = [run for run in groups if run.data.params["defense"] == "ft"]
    assert ft.info.run_name == "badnet / ft (n=2)"
    cells = [run for run in store.search("tiny", kind="cell") if run.data.params["defense"] == "ft"]
    assert {run.data.tags["mlflow.parentRunId"] for run in cells} == {ft.info.run_id}
    found = [run.data.metrics["o_asr"] for run in cells]
    assert ft.data.metrics["o_asr"] == pytest.approx(statistics.mean(found), abs=0.01)
    assert ft.data.metrics["o_asr_std"] == pytest.approx(statistics.stdev(found), abs=0.01)


def test_cells_of_other_settings_stay_beside_the_newest(plan, store, tiny_study, monkeypatch):
    (store.folder / "params").mkdir()
    settings = {"tiny": tiny_study.model_dump(mode="json")}
    (store.folder / "params" / "tiny.yaml").write_text(json.dumps(settings["tiny"]))
    monkeypatch.setattr(comparison, "ROOT", store.folder)
    name = {"cell": "badnet / ft s0"}
    comparison.log_cells(plan, store)
    [first] = store.search("tiny", kind="cell", **name)
    other = Plan(tiny_study.replace(retuning={**tiny_study.retuning, "poisoned": 1}))
    assert not engine.run(other, Lab(store))
    comparison.log_cells(other, store)
    [second] = store.search("tiny", kind="cell", **name)
    [kept] = store.search("tiny", kind="earlier cell", **name)
    assert kept.info.run_id == first.info.run_id != second.info.run_id
    assert second.data.params["changes"] == "retuning.poisoned=1"
    assert "changes" not in first.data.params
    assert [r.data.tags["ppr.cell"] for r in store.search("tiny", kind="earlier cell")] == (
        ["badnet / ep (oracle) s0", "badnet / ft s0", "badnet / clean s0"]
    ), "what RA is not taken of stays"
    comparison.log_cells(plan, store)
    shown = {run.info.run_id for run in store.search("tiny", kind="cell", **name)}
    aside = {run.info.run_id for run in store.search("tiny", kind="earlier cell", **name)}
    assert (shown, aside) == ({first.info.run_id}, {second.info.run_id}), "the newest is shown"


def test_a_run_names_its_data_set(plan, store):
    comparison.log_cells(plan, store)
    run = store.search("tiny", kind="cell")[0]
    [used] = run.inputs.dataset_inputs
    assert used.dataset.name == "shapes"
    assert json.loads(used.dataset.profile) == {"train": 300, "test": 100, "classes": 10}
    [stage] = store.search("tiny", stage="retuned", defense="ft")
    assert stage.inputs.dataset_inputs[0].dataset.digest == used.dataset.digest


def test_saved_views_filter_and_order_what_is_logged(plan, store):
    comparison.log_cells(plan, store)
    tags = store.client.get_experiment(store.experiment("tiny")).tags
    views = {}
    for name, text in tags.items():
        if name.startswith("mlflow.sharedViewState."):
            view = json.loads(text)
            packed = view["state"].removeprefix("deflate;")
            views[view["name"]] = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert len(views) == 3
    table = views["cells: every figure"]
    assert table["selectedColumns"][:2] == ["metrics.`o_c_acc`", "metrics.`o_asr`"]
    assert "metrics.`distance`" not in table["selectedColumns"], "not in short tables"
    for view in views.values():
        runs = store.search("tiny", query=view["searchFilter"])
        assert runs
        for chart in view.get("compareRunCharts", []):
            for name in [*chart.get("selectedMetrics", []), *chart.get("selectedMetricKeys", [])]:
                assert any(name in run.data.metrics for run in runs), name
            for name in chart.get("selectedParams", []):
                assert all(name in run.data.params for run in runs), name
