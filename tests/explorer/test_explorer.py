"""The explorer without a browser: sliders are moved by setting their values."""

import asyncio
import io
import json
import shutil
import signal
import threading
from dataclasses import astuple

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from ppr_core import explorer
from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError
from ppr_core.explorer import Explorer, job, pages, panels
from ppr_core.explorer.choice import Choice, Latest
from ppr_core.explorer.holdings import holdings
from ppr_core.explorer.live import Samples, Walk
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell, Variant
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reactivation.perturbation import within
from ppr_core.reporting import results
from tests.conftest import EXPLORED

PNG = b"\x89PNG"


@pytest.fixture
def shown(monkeypatch):
    """What the explorer displays."""
    objects = []
    monkeypatch.setattr(explorer, "display", objects.append)
    monkeypatch.setenv("JPY_SESSION_NAME", "00_explorer.ipynb")
    monkeypatch.delenv("PPR_RUN", raising=False)
    return objects


@pytest.fixture
def place(explored, tmp_path, monkeypatch):
    """The environment of a kernel that finds a copy of the computed store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PPR_STORE", str(tmp_path / "mlruns"))
    monkeypatch.setenv("PPR_DATA", str(explored.parent / "data"))
    shutil.copytree(explored, tmp_path / "mlruns")


@pytest.fixture
def store(place):
    return Store()


@pytest.fixture
def choice(store):
    return Choice(holdings(store, Study(**EXPLORED)))


@pytest.fixture
def lab(store):
    return Lab(store)


@pytest.fixture
def cells(store):
    return results.cells(Plan(Study(**EXPLORED)), store)


def pick(choice, defense):
    choice.menus[2].value = (defense, None)


# -- the choice ----------------------------------------------------------------------------------


def test_only_what_the_store_holds_is_offered(choice):
    study, attack, defense, seed = ([value for _, value in m.options] for m in choice.menus)
    assert (study, attack, seed) == (["tiny"], ["badnet"], [0])
    assert defense == [("ep", None), ("ft", None), ("pam", Variant("rho", 0.0)), ("pam", None)]
    texts = [text for text, _ in choice.menus[2].options]
    assert texts == ["ep (oracle)", "ft", "pam rho 0", "pam rho 0.5"]


def test_seeds_and_rhos_of_the_store_are_offered_though_the_study_names_others(store):
    asked = Study(**{**EXPLORED, "seeds": [7], "rho_grid": []})
    held = holdings(store, asked)["tiny"]
    assert {cell.seed for cell in held.cells} == {0}
    assert held.rho_curve("badnet", 0)["rho"].tolist() == [0.0, 0.5]


def test_it_opens_with_the_model_that_tells_the_most(choice):
    held = choice.study
    stages = [len(held.plan.measured(cell)) for cell in held.cells]
    opened = len(held.plan.measured(choice.cell))
    assert opened == max(stages)
    assert choice.cell in held.cells


def test_listeners_hear_of_a_choice_once(choice):
    heard = []
    choice.listen(lambda: heard.append(choice.cell))
    other = next(d for d in ("ft", "ep") if d != choice.cell.defense)
    pick(choice, other)
    assert heard == [Cell("badnet", other, 0)]
    choice.renew(choice.held)
    assert choice.cell.defense == other, "the choice stays when more is offered"


def test_an_event_is_dropped_if_a_newer_one_overtakes_it():
    value, answered = [0], []
    latest = Latest(lambda: answered.append(value[0]))

    async def drag():
        for step in range(1, 6):
            value[0] = step
            latest()
        await asyncio.sleep(0.2)

    asyncio.run(drag())
    assert answered == [5]
    latest()
    assert answered == [5, 5], "without an event loop the answer comes at once"


# -- rho -----------------------------------------------------------------------------------------


def test_rho_shows_the_cells_of_the_study(choice, lab, cells):
    panel = panels.RhoPanel(choice, lab, Study(**EXPLORED))
    grid = cells[cells["defense"] == "pam"].sort_values("rho")
    for column, name in (("o_c_acc", "C-Acc"), ("o_asr", "O-ASR"), ("p_asr", "P-ASR")):
        assert panel.table[name].tolist() == grid[column].tolist()
    panel.slider.value = 0.0
    first = panel.pictures[0].value
    assert bytes(first).startswith(PNG)
    assert "<b>rho 0</b>: C-Acc" in panel.text.value
    assert panel.compute.disabled, "there is nothing to compute"
    assert '<tr style="background:#f3f6f9;font-weight:600"><td' in panel.detail.value
    panel.slider.value = 0.5
    assert panel.pictures[0].value != first
    assert len(panel.row.children) == 3, "the table, the curve and the path"


def test_between_computed_values_the_nearest_is_shown_and_said_to_be(choice, lab):
    panel = panels.RhoPanel(choice, lab, Study(**EXPLORED))
    panel.slider.value = 0.35
    assert "rho 0.35</b> is not computed; shown is the nearest, <b>rho 0.5" in panel.text.value
    assert not panel.compute.disabled


def test_a_rho_is_computed_cancelled_and_kept(choice, lab, store):
    panel = panels.RhoPanel(choice, lab, Study(**EXPLORED))
    panel.slider.value = 1.0
    said = threading.Event()
    panel.bar.observe(lambda change: said.set(), "value")
    panel.compute.click()
    running = panel.job
    panel.compute.click()
    assert panel.job is running, "one at a time"
    assert said.wait(60)
    panel.stop.click()
    running.wait()
    assert "cancelled" in panel.status.value
    assert panel.bar.bar_style == "warning"
    assert not panel.compute.disabled
    assert not store.search("tiny", stage="retuned", defense="pam", variant="rho 1")
    assert not store.search("tiny", query="attributes.status = 'FAILED'")
    panel.compute.click()
    panel.job.wait()
    assert "done" in panel.status.value, panel.status.value
    assert "<b>rho 1</b>: C-Acc" in panel.text.value
    assert panel.curve["rho"].tolist() == [0.0, 0.5, 1.0]
    assert panel.stop.disabled
    assert panel.compute.disabled
    assert "pam rho 1" in [text for text, _ in choice.menus[2].options]
    assert len(store.search("tiny", kind="cell", cell="badnet / pam rho 1 s0")) == 1


def test_a_job_that_fails_says_why(choice, store, monkeypatch, capsys):
    plan, cell = choice.study.with_rho(choice.cell, 1.5)
    for run in store.search("tiny", stage="backdoored"):
        (store.artifacts(run.info.run_id, "result") / "tensors.safetensors").write_bytes(b"torn")
    task = {"study": plan.study.model_dump(), "folder": str(store.folder)}
    task["cell"] = astuple(cell)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(task)))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert job.main() == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["state"] == "failed"
    assert "CheckpointError: expected sha256" in last["text"]


# -- epsilon -------------------------------------------------------------------------------------


def test_epsilon_shows_the_measured_rates(choice, lab, store):
    pick(choice, "ft")
    panel = panels.EpsilonPanel(choice, lab)
    points = results.queries(choice.study.plan, store)
    points = points[(points["defense"] == "ft") & (points["eps"].round(4) == round(8 / 255, 4))]
    point = points[points["scored"] == "self"]
    control = points[points["scored"] == "clean_unseen"]
    panel.slider.value = 8.0
    assert f"P-ASR (triggered) <b>{point['p_asr'].item():.1f} %" in panel.text.value
    assert f"C-ASR (clean) <b>{point['c_asr'].item():.1f} %" in panel.text.value
    assert f"unseen clean <b>{control['p_asr'].item():.1f} %" in panel.text.value
    assert "measured at" not in panel.text.value
    before = panel.text.value, panel.pictures[0].value
    panel.slider.value = 5.0
    assert "(measured at 8/255)" in panel.text.value
    assert panel.pictures[0].value != before[1]
    assert panel.detail.value.count("<img") == 4 * 6


def test_the_live_answers_are_the_models_own(choice, lab):
    cell = Cell("badnet", "ft", 0)
    samples = Samples(choice.study, lab, cell)
    eps = 8 / 255
    sample = samples.at(eps)
    assert samples.trigger.target not in samples.plain.labels
    pixels = to_float(samples.stamped)
    moved = within(pixels, samples.generator(pixels), eps)
    assert 0 < (moved - pixels).abs().max() <= eps + 1e-6
    model = lab.model(choice.study.plan.purified(cell))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        confidence, classes = model(moved).softmax(1).max(1)
    answers = sample.answers.query("row == 'perturbed' and model == 'purified'")
    names = [samples.plain.classes[index] for index in classes.tolist()]
    assert answers["predicted"].tolist() == names
    assert answers["confidence"].tolist() == pytest.approx((100 * confidence).tolist(), abs=2)
    assert answers["target"].tolist() == (classes == samples.trigger.target).tolist()
    assert set(sample.answers["model"]) == {"backdoored", "purified", "retuned", "unseen clean"}


def test_without_a_budget_nothing_changes(choice, lab):
    sample = Samples(choice.study, lab, Cell("badnet", "ft", 0)).at(0.0)
    assert torch.equal(sample.images["perturbed"], sample.images["triggered"])
    assert sample.images["perturbation"].unique().tolist() == [127]
    rows = [sample.answers[sample.answers["row"] == r] for r in ("triggered", "perturbed")]
    assert rows[0]["predicted"].tolist() == rows[1]["predicted"].tolist()


# -- t -------------------------------------------------------------------------------------------


def test_t_measures_live_what_the_path_holds(choice, lab):
    cell = Cell("badnet", "ft", 0)
    held = choice.study
    walk = Walk(held, lab, cell)  # the tiny test set is small enough to be measured whole
    points = held.path(cell)
    stored = points[points["batch_norm"] == "interpolate"].set_index("t")
    for t in (0.0, 0.5, 1.0):
        found = walk.at(t)
        assert found["clean_error"] == pytest.approx(stored.loc[t, "clean_error"])
        assert found["backdoor_error"] == pytest.approx(stored.loc[t, "backdoor_error"])
    assert walk.at(0.0) == walk.at(0.0), "a walk goes back to where it was"


def test_t_moves_and_marks(choice, lab):
    panel = panels.PathPanel(choice, lab)
    before = panel.text.value, panel.pictures[0].value
    panel.slider.value = 0.25
    assert "<b>t = 0.25</b>: C-Acc" in panel.text.value
    assert panel.text.value != before[0]
    assert panel.pictures[0].value != before[1]
    [axis] = panel.figure.axes
    assert any(list(line.get_xdata()) == [0.25] for line in axis.lines), "the live ring"


# -- what is not there ---------------------------------------------------------------------------


def test_what_is_not_measured_says_what_to_add(store, lab):
    bare = {k: v for k, v in EXPLORED.items() if k not in ("measures", "rho_grid")}
    bare["defenses"] = {"ft": EXPLORED["defenses"]["ft"]}
    choice = Choice(holdings(store, Study(**bare)))
    epsilon, path = panels.EpsilonPanel(choice, lab), panels.PathPanel(choice, lab)
    assert "Not measured yet: add <code>query: {}</code> to" in epsilon.text.value
    assert not epsilon.row.children
    assert "<b>t = 0.50</b>: C-Acc" in path.text.value, "the live answer needs no measured path"
    assert "Not measured yet: add <code>path: {}</code>" in path.text.value
    rho = panels.RhoPanel(choice, lab, Study(**bare))
    assert "has no PAM: add <code>pam: {}</code>" in rho.text.value
    assert rho.compute.disabled


def test_what_the_study_measures_but_was_not_run_says_so(store, lab):
    asked = {**EXPLORED, "measures": {"query": {"width": 32}, "path": {"points": 5}}}
    choice = Choice(holdings(store, Study(**asked)))
    text = panels.EpsilonPanel(choice, lab).text.value
    assert "Not measured yet: run <code>python -m ppr_core study FILE</code>" in text


def test_an_empty_store_says_what_to_run(tmp_path, store_template, monkeypatch, shown):
    shutil.copytree(store_template, tmp_path / "mlruns")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PPR_STORE", str(tmp_path / "mlruns"))
    opened = Explorer("00_explorer", EXPLORED)
    for show in (opened.choose, opened.rho, opened.epsilon, opened.path, opened.close):
        show()
    [message] = shown
    assert "holds no purified model of the study tiny" in message.data
    assert "make study" in message.data
    assert opened.store.search() == []


def test_a_foreign_store_is_named_and_left_alone(tmp_path, store_template, monkeypatch, shown):
    shutil.copytree(store_template, tmp_path / "mlruns")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PPR_STORE", str(tmp_path / "mlruns"))
    theirs = Store()
    run = theirs.client.create_run(theirs.client.create_experiment("churn"), run_name="theirs")
    theirs.client.set_terminated(run.info.run_id)
    Explorer("00_explorer", EXPLORED).choose()
    assert "It holds churn." in shown[0].data
    assert {e.name for e in theirs.client.search_experiments()} == {"Default", "churn"}


def test_damaged_weights_are_told_not_raised(choice, lab, monkeypatch):
    panel = panels.PathPanel(choice, lab)

    def torn(stage):
        raise CheckpointError("expected sha256 <a>, got b")

    monkeypatch.setattr(lab, "model", torn)
    pick(choice, next(d for d in ("ft", "ep") if d != choice.cell.defense))
    assert "CheckpointError: expected sha256 &lt;a&gt;, got b" in panel.text.value
    assert panel.figure is None


# -- the notebook's calls ------------------------------------------------------------------------


def test_live_it_shows_widgets_and_opens_no_run(place, shown):
    opened = Explorer("00_explorer", EXPLORED)
    for show in (opened.choose, opened.rho, opened.epsilon, opened.path, opened.close):
        show()
    assert len(shown) == 4
    assert opened.store.search("tiny", kind="notebook") == []


def test_in_batch_every_panel_also_shows_a_figure_and_a_table(place, shown, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME")
    opened = Explorer("00_explorer", EXPLORED)
    for show in (opened.choose, opened.rho, opened.epsilon, opened.path, opened.close):
        show()
    assert sum(isinstance(thing, Figure) for thing in shown) == 3
    tables = [thing for thing in shown if isinstance(thing, pd.DataFrame)]
    assert len(tables) == 3
    assert all(len(table) for table in tables)
    [run] = opened.store.search("tiny", kind="notebook")
    assert run.info.status == "FINISHED"
    for folder, ending in (("figures", "png"), ("tables", "csv")):
        found = opened.store.artifacts(run.info.run_id, folder).glob(f"*.{ending}")
        assert {path.stem for path in found} == {"0_rho", "0_epsilon", "0_t"}


def test_text_of_others_is_escaped():
    assert pages.note("a <b> `c & d`").count("<code>c &amp; d</code>") == 1
    assert "<b>" not in pages.note("a <b>")
    assert "&lt;x&gt;" in pages.table(pd.DataFrame({"<x>": [0.5]}))
