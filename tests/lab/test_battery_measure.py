"""RB-1 in a study: its stages, and what they leave behind."""

import pytest

from ppr_core.config import derive
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.measures.battery import shared
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.metrics import attack_success_rate
from ppr_core.reactivation.cells import Setting, load
from ppr_core.reporting import judging, submissions
from tests.conftest import TINY_STUDY
from tests.lab.test_measures import BATTERY

STUDY = {
    **TINY_STUDY,
    "measures": {"battery": BATTERY},
}


@pytest.fixture
def plan():
    return Plan(Study(**STUDY))


def test_controls_are_clean_models_of_two_other_seeds_one_grid_for_all_defenses(plan):
    stages = {name: plan.taken("battery", Cell("badnet", name, 0)) for name in ("ft", "ep")}
    grids = {
        name: [one for one in stage.parents if one.kind == "battery_control"]
        for name, stage in stages.items()
    }
    assert [one.parents[0].cell.seed for one in grids["ft"]] == [1, 2]
    assert [one.key for one in grids["ft"]] == [one.key for one in grids["ep"]]
    assert len({one.key for one in grids["ft"]}) == 2
    assert plan.taken("battery", Cell("badnet", "clean", 0)) is None
    assert {one.kind for one in stages["ft"].parents} >= {"backdoored", "purified"}


def test_the_paper_s_count_is_taken_where_none_is_given():
    own = {"counts": [1], "retuning": {"share": 0.2}}
    study = {**STUDY, "measures": {"battery": own}, "attacks": {"badnet": {}, "blended": {}}}
    of = Plan(Study(**study)).measures["battery"]
    assert (of["badnet"].paper.poisons, of["blended"].paper.poisons) == (5, 1)


def test_a_cell_of_a_study_is_the_stand_alone_attack_and_becomes_a_submission(store, plan):
    lab, cell = Lab(store), Cell("badnet", "ft", 0)
    stage = plan.taken("battery", cell)
    result = lab.result(stage)
    method, model = stage.method, lab.model(plan.purified(cell))
    setting = Setting(poisons=2, epochs=2)
    found = next(one for one in load(result.info["cells"]) if one.setting == setting)
    bench = shared(method, lab, stage)
    rng = bench.stream(0)
    assert derive(0, "battery").initial_seed() != derive(0, "retuning").initial_seed()
    tuned = method.tuning(setting)(model, bench.data, rng=rng, poisons=bench.pools["exact"])
    assert found.p_asr == attack_success_rate(tuned.model, bench.stamped)
    budgets = [query["eps"] for query in result.info["figures"]["queries"]]
    assert budgets == pytest.approx([4 / 255, 8 / 255, 16 / 255])
    [submission] = judging.judge(plan, lab, "ft")
    assert submission.runs[0].figures.o_asr == result.metrics["o_asr"]
    assert (submission.defense, submission.attack, submission.track) == ("ft", "badnet", "tiny")
    path = submissions.save(submission, store.folder / "leaderboard")
    assert submissions.read(path) == submission
    assert "badnet" in judging.table([submission])


def test_what_a_defense_takes_has_the_inversion_that_it_may_share(store):
    defenses = {"ep": {}, "anp": {"schedule": {"steps": 2, "batch_size": 8}}}
    plan, lab = Plan(Study(**{**STUDY, "defenses": defenses})), Lab(store)
    [submission] = judging.judge(plan, lab, "anp")
    purified = plan.purified(Cell("badnet", "anp", 0))
    parts = [lab.result(one).metrics for one in (purified, purified.parent("inverted"))]
    assert submission.seconds == sum(part.get("cost_seconds", part["seconds"]) for part in parts)
