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
from IPython.display import HTML, Image
from ipywidgets import Widget
from matplotlib.figure import Figure

from ppr_core import explorer
from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError
from ppr_core.explorer import Explorer, battery, job, pages, panels, rho, words
from ppr_core.explorer.choice import Choice, Latest
from ppr_core.explorer.holdings import holdings
from ppr_core.explorer.live import Samples, Walk
from ppr_core.lab.desk import Lab as Desk
from ppr_core.lab.graph import Cell, Variant
from ppr_core.lab.plan import Plan
from ppr_core.lab.reader import Reader
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reactivation.cells import Setting, load
from ppr_core.reactivation.perturbation import within
from ppr_core.reporting import results
from tests.conftest import EXPLORED, TINY_PAM
from tests.lab.test_measures import BATTERY

PNG = b"\x89PNG"
SHOWS = ("choose", "rho", "epsilon", "path", "battery", "close")


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
    return Reader(store)


@pytest.fixture
def cells(store):
    return results.cells(Plan(Study(**EXPLORED)), store)


VERDICTS = ("looks safe", "is not purified", "the backdoor is", "sleep", "wake", "No proof")


def rho_panel(choice, lab):
    return rho.RhoPanel(choice, lab, Study(**EXPLORED))


def boxes(opened, shown):
    """Every panel that was shown, with the dropdowns that are to stand in it."""
    return [(thing, opened.choice.box) for thing in shown if isinstance(thing, Widget)]


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


def test_answers_come_while_a_slider_is_dragged():
    answered = []
    latest = Latest(lambda: answered.append(len(answered)))

    async def drag():
        for _ in range(20):  # 0.2 s of events, each sooner than an answer's wait is over
            latest()
            await asyncio.sleep(0.01)
        assert len(answered) >= 2

    asyncio.run(drag())


def test_a_model_that_fails_a_check_gets_no_verdict_in_any_panel(choice, lab, cells):
    """The tiny victims hardly obey: their rows fail a check, as the study's table says."""
    held = choice.study
    kept = cells.assign(cell=list(held.plan.cells())).set_index("cell")["checks"]
    assert [" | ".join(held.failed(cell)) for cell in held.cells] == list(kept[held.cells])
    choice.pick(Cell("badnet", "pam", 0))
    for make in (rho_panel, panels.EpsilonPanel, panels.PathPanel):
        panel = make(choice, lab)
        red = f'<p style="color:{pages.BAD};font-weight:600'
        [said] = [line for line in panel.text.value.split("</p>") if red in line]
        assert "No verdict on badnet / pam rho 0.5. The backdoored model&#x27;s C-Acc is" in said
        assert not any(word in panel.text.value for word in VERDICTS)
        held._failed[choice.cell] = []  # as of a model that passes
        panel.move()
        assert "No verdict" not in panel.text.value
        assert any(word in panel.text.value for word in VERDICTS)
        del held._failed[choice.cell]


# -- rho -----------------------------------------------------------------------------------------


def test_rho_shows_the_cells_of_the_study(choice, lab, cells):
    panel = rho.RhoPanel(choice, lab, Study(**EXPLORED))
    grid = cells[cells["defense"] == "pam"].sort_values("rho")
    for column, name in (("o_c_acc", "C-Acc"), ("o_asr", "O-ASR"), ("p_asr", "P-ASR")):
        assert panel.table[name].tolist() == grid[column].tolist()
    panel.slider.value = 0.0
    first = panel.pictures[0].value
    assert bytes(first).startswith(PNG)
    assert "<b>rho 0</b>: C-Acc" in panel.text.value
    assert panel.compute.disabled, "there is nothing to compute"
    assert f'<tr style="background:{pages.MARKED};font-weight:600"><td' in panel.detail.value
    assert "var(--jp-layout-color2" in pages.MARKED, "a dark theme has its own"
    panel.slider.value = 0.5
    assert panel.pictures[0].value != first
    assert len(panel.row.children) == 3, "the table, the curve and the path"


def test_between_computed_values_the_nearest_is_shown_and_said_to_be(choice, lab):
    panel = rho.RhoPanel(choice, lab, Study(**EXPLORED))
    panel.slider.value = 0.35
    assert "rho 0.35</b> is not computed; shown is the nearest, <b>rho 0.5" in panel.text.value
    assert not panel.compute.disabled
    [axis] = panel.figure.axes
    lines = [list(line.get_xdata()) for line in axis.lines]
    assert [0.35, 0.35] in lines, "the line stands where the slider stands"
    assert [0.5] in lines, "the rings where there are figures"


def test_rho_moves_the_chosen_pam_or_says_why_not(choice, lab):
    panel = rho.RhoPanel(choice, lab, Study(**EXPLORED))
    choice.pick(Cell("badnet", "pam", 0))
    assert panel.slider.value == 0.5, "the slider goes where the chosen model is"
    panel.slider.value = 0.1
    assert choice.cell == Cell("badnet", "pam", 0, Variant("rho", 0.0))
    assert "which has no rho" not in panel.text.value
    epsilon = panels.EpsilonPanel(choice, lab)
    assert "is not part of the study tiny for pam rho 0" in epsilon.text.value
    pick(choice, "ft")
    assert "The panels below show ft, which has no rho" in panel.text.value
    panel.slider.value = 0.5
    assert choice.cell.defense == "ft"


def test_a_rho_is_computed_cancelled_and_kept(choice, lab, store):
    panel = rho.RhoPanel(choice, lab, Study(**EXPLORED))
    panel.slider.value = 1.0
    said = threading.Event()
    panel.bar.observe(lambda change: said.set(), "value")
    panel.compute.click()
    running = panel.job
    assert running.expected > job.START_S, "what other rhos took is known before anything is heard"
    panel.compute.click()
    assert panel.job is running, "one at a time"
    assert said.wait(60)
    panel.stop.click()
    running.wait()
    assert "cancelled" in panel.status.value
    assert panel.bar.bar_style == "warning"
    assert not panel.compute.disabled
    assert not store.search("tiny", stage="retuned", defense="pam", variant="rho 1")
    ended = {run.info.status for run in store.search("tiny", kind="stage")}
    assert ended <= {"FINISHED", "KILLED"}, "a cancelled run is neither red nor left running"
    panel.compute.click()
    panel.job.wait()
    assert "done" in panel.status.value, panel.status.value
    assert "<b>rho 1</b>: C-Acc" in panel.text.value
    assert panel.curve["rho"].tolist() == [0.0, 0.5, 1.0]
    assert panel.stop.disabled
    assert panel.compute.disabled
    if choice.cell.defense == "pam":
        assert choice.cell.variant == Variant("rho", 1.0)
    assert "pam rho 1" in [text for text, _ in choice.menus[2].options]
    assert len(store.search("tiny", kind="cell", cell="badnet / pam rho 1 s0")) == 1


def test_a_story_counts_rounds_and_shares(capsys, tiny_study):
    study = Study(**{**EXPLORED, "defenses": {"pam": {**TINY_PAM, "rounds": 2}}})
    plan = Plan(study)
    cell = next(cell for cell in plan.cells() if cell.defense == "pam" and cell.variant is None)
    stages = [plan.purified(cell), plan.retuned(cell)]
    story = job.Story(stages, {"purified": 30.0, "retuned": 10.0})
    for stage, done, of in ((0, 1, 7), (0, 1, 1), (0, 1, 1), (1, 1, 2)):
        story(stages[stage], [{"epoch": 1.0}] * done, of)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "looking for the trigger, epoch 1 of 7" in said[0]["text"]
    assert ["round 1 of 2" in said[1]["text"], "round 2 of 2" in said[2]["text"]] == [True, True]
    assert [round(one["share"], 2) for one in said] == [0, 0.19, 0.56, 0.83]


def test_of_two_pages_that_want_a_rho_one_computes_it(store, capsys):
    ended = []

    def other():
        with job._alone(store, "explorer-key"):
            ended.append(True)

    with job._alone(store, "explorer-key"):
        waiting = threading.Thread(target=other, daemon=True)
        waiting.start()
        said = ""
        while "another page computes this rho" not in said:
            said += capsys.readouterr().out
            waiting.join(0.01)
        assert not ended, "it waits until the first one is done"
    waiting.join(20)
    assert ended


def ends_of(choice, store, monkeypatch, capsys):
    """Compute a rho in this process; return the exit code and the last thing said."""
    plan, cell = choice.study.with_rho(choice.cell, 1.5)
    task = {"study": plan.study.model_dump(), "folder": str(store.folder)}
    task |= {"cell": astuple(cell), "seconds": {}}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(task)))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = job.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_job_that_fails_says_why(choice, store, monkeypatch, capsys):
    shutil.rmtree(store.folder / "artifacts")
    (store.folder / "artifacts").mkdir()  # as where a disk is not mounted
    code, last = ends_of(choice, store, monkeypatch, capsys)
    assert (code, last["state"]) == (1, "failed")
    assert "StoreError: expected the results of the store in" in last["text"]


def test_a_job_computes_a_damaged_parent_anew(choice, store, monkeypatch, capsys):
    for run in store.search("tiny", stage="backdoored"):
        (store.artifacts(run.info.run_id, "result") / "tensors.safetensors").write_bytes(b"torn")
    code, last = ends_of(choice, store, monkeypatch, capsys)
    assert (code, last["state"]) == (0, "done")


# -- epsilon -------------------------------------------------------------------------------------


def test_epsilon_shows_the_measured_rates(choice, lab, store):
    pick(choice, "ft")
    panel = panels.EpsilonPanel(choice, lab)
    points = results.queries(choice.study.plan, store)
    points = points[(points["defense"] == "ft") & (points["eps"].round(4) == round(8 / 255, 4))]
    point = points[points["scored"] == "self"]
    control = points[points["scored"] == "clean_unseen"]
    panel.slider.value = 8.0
    assert f"P-ASR <b>{point['p_asr'].item():.1f} %" in panel.text.value
    assert f"C-ASR <b>{point['c_asr'].item():.1f} %" in panel.text.value
    assert f"unseen clean <b>{control['p_asr'].item():.1f} %" in panel.text.value
    assert "between the measured" not in panel.text.value
    before = panel.text.value, panel.pictures[0].value
    panel.slider.value = 5.0
    assert "(read off the line between the measured 0 and 8/255)" in panel.text.value
    [axis] = panel.figure.axes
    assert [5.0, 5.0] in [list(line.get_xdata()) for line in axis.lines]
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
    over = rho.RhoPanel(choice, lab, Study(**bare))
    assert "has no PAM: add <code>pam: {}</code>" in over.text.value
    assert over.compute.disabled


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
    for show in SHOWS:
        getattr(opened, show)()
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


# -- words ---------------------------------------------------------------------------------------


def test_sentences_say_what_the_figures_mean():
    assert "it was asleep, not gone" in words.of_rho(0.0, 2, 80)
    assert "stays so after retuning (4 %)" in words.of_rho(1.0, 2, 4)
    assert "is not purified" in words.of_rho(1.0, 40, 80)
    assert words.of_epsilon(0, 3, 3, 1).startswith("Asleep: without a perturbation 3 %")
    assert words.of_epsilon(4, 3, 9, 1).startswith("Still asleep at 4/255")
    assert "from 3 to 90 %, while a clean model stays at 5 %" in words.of_epsilon(16, 3, 90, 5)
    assert words.of_epsilon(16, 3, 90, 85).startswith("No proof")
    assert words.of_epsilon(16, 3, 90, None).endswith("was not measured.")
    assert "is not purified" in words.of_epsilon(16, 60, 90, 5)
    points = pd.DataFrame({"t": [0, 0.5, 0.75, 1], "backdoor_error": [1, 20, 60, 99]})
    points["batch_norm"] = "interpolate"
    said = words.of_path(0.25, 90, points)
    assert "At t = 0.25 the backdoor is awake (ASR 90 %)" in said
    assert "wakes at about t = 0.50, 50 % of the way" in said
    assert "even at the purified end" in words.of_path(1, 90, points.assign(backdoor_error=0.0))
    assert "nowhere" in words.of_path(0, 3, points.assign(backdoor_error=99.0))
    assert words.of_path(0, 3, points.iloc[:0]).endswith("is asleep (ASR 3 %).")
    assert words.of_path(0, 40, points.iloc[:0]).endswith("is half awake (ASR 40 %).")


# -- the battery ---------------------------------------------------------------------------------


def test_the_battery_is_shown_where_a_study_has_it(store, lab):
    wide = {**BATTERY, "factors": [1.0, 3.0]}
    wanted = Study(**{**EXPLORED, "measures": {**EXPLORED["measures"], "battery": wide}})
    cell, work = Cell("badnet", "ft", 0), Desk(store)
    result = work.result(Plan(wanted).taken("battery", cell))
    choice = Choice(holdings(store, wanted))
    choice.pick(cell)
    panel = battery.BatteryPanel(choice, lab)
    cells = load(result.info["cells"])
    paper = BATTERY["retuning"]["poisoned"]
    draws = {
        one.setting: one.p_asr
        for one in cells
        if one.setting.place == Setting(poisons=paper, epochs=panel_epochs(choice))
    }
    row = panel.points[(panel.points["poisons"] == paper) & (panel.points["rate"] == 1)]
    assert row["own"].item() == pytest.approx(sum(draws.values()) / len(draws))
    assert row["clean"].notna().all(), "clean models beside"
    panel.slider.value = paper
    assert f"<b>{paper} poisons, learning rate × 1</b>: this model" in panel.text.value
    assert result.info["figures"]["verdict"]["word"] == "no verdict"
    assert f"color:{pages.BAD};font-weight:600" in panel.text.value, "in red"
    assert "Verdict of the battery: no verdict (" in panel.text.value
    before = panel.pictures[0].value
    panel.rate.value = max(value for _, value in panel.rate.options)
    assert panel.pictures[0].value != before
    assert len(panel.figure.axes) == 2
    pick(choice, "ep")
    assert "Not measured yet: run" in panel.text.value


def panel_epochs(choice):
    return choice.study.plan.measures["battery"]["badnet"].paper.epochs


# -- the notebook's calls ------------------------------------------------------------------------


def test_live_it_shows_widgets_and_opens_no_run(place, shown):
    opened = Explorer("00_explorer", EXPLORED)
    for show in SHOWS:
        getattr(opened, show)()
    assert len(shown) == 5
    assert all(choice_box in panel.children for panel, choice_box in boxes(opened, shown))
    assert opened.store.search("tiny", kind="notebook") == []


def test_in_batch_every_panel_shows_a_figure_and_a_table(place, shown, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME")
    opened = Explorer("00_explorer", EXPLORED)
    for show in SHOWS:
        getattr(opened, show)()
    pictures = [thing.data for thing in shown if isinstance(thing, Image)]
    assert len(pictures) == 4, "rho has two: its curve and the path"
    assert all(bytes(picture).startswith(PNG) for picture in pictures)
    assert not any(isinstance(thing, Figure) for thing in shown), "which would be text alone"
    assert not any(isinstance(thing, Widget) for thing in shown), "a slider without a kernel"
    words = "".join(thing.data for thing in shown if isinstance(thing, HTML))
    assert "It opens with <b>tiny: badnet" in words
    assert "Not measured yet: add <code>battery: {}</code>" in words
    [run] = opened.store.search("tiny", kind="notebook")
    assert run.info.status == "FINISHED"
    for folder, ending in (("figures", "png"), ("tables", "csv")):
        found = opened.store.artifacts(run.info.run_id, folder).glob(f"*.{ending}")
        assert {path.stem for path in found} == {"0_rho", "0_epsilon", "0_t"}


def test_text_of_others_is_escaped():
    assert pages.note("a <b> `c & d`").count("<code>c &amp; d</code>") == 1
    assert "<b>" not in pages.note("a <b>")
    assert "&lt;x&gt;" in pages.table(pd.DataFrame({"<x>": [0.5]}))
