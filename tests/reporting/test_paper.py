"""The paper's numbers, and ours beside them."""

import pandas as pd
import pytest

from ppr_core.lab.graph import NO_ATTACK
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting import paper

ROW = {
    "dataset": "cifar10",
    "model": "resnet18",
    "poison_rate": 0.05,
    "attack": "badnet",
    "defense": "fst",
    "seed": 0,
    "rho": None,
    "o_c_acc": 93.0,
    "o_asr": 1.0,
    "p_c_acc": 93.5,
    "p_asr": 98.0,
    "status": "done",
    "level": "paper",
    "scale": "",
}


def rows(*changes):
    return pd.DataFrame([{**ROW, **change} for change in changes])


@pytest.mark.parametrize(
    ("table", "attack", "defense", "figure", "value"),
    [
        (3, "badnet", "none", "o_c_acc", 94.04),
        (3, "ssba", "none", "o_asr", 96.38),
        (3, "blended", "clean", "p_asr", 8.12),
        (3, "lc", "pam", "p_asr", 8.31),
        (3, "blended", "ft_sam", "p_asr", 78.93),
        (11, "blended", "bti_sam", "o_asr", 42.49),
    ],
)
def test_the_papers_numbers(table, attack, defense, figure, value):
    found = paper.numbers()
    found = found[(found["table"] == table) & (found["attack"] == attack)]
    found = found[(found["defense"] == defense) & (found["figure"] == figure)]
    assert list(found["paper"]) == [value]


def test_ours_beside_theirs_with_difference_and_spread():
    table = paper.compare(rows({}, {"seed": 1, "p_asr": 96.0}))
    found = table[(table["table"] == 3) & (table["figure"] == "p_asr")].iloc[0]
    assert (found["paper"], found["ours"], found["seeds"]) == (100.0, 97.0, 2)
    assert found["difference"] == pytest.approx(-3.0)
    assert found["spread"] == pytest.approx(2**0.5)


def test_pam_is_compared_at_the_papers_rho_by_attack_and_over_rho_in_table_10():
    ours = rows(*({"defense": "pam", "attack": "blended", "rho": rho} for rho in (0.3, 0.5, 0.9)))
    table = paper.compare(ours)
    table = table[table["figure"] == "p_asr"]
    ten = table[table["table"] == 10]
    assert dict(zip(ten["rho"], ten["paper"], strict=True)) == {0.3: 10.06, 0.5: 2.69, 0.9: 0.30}
    assert list(table.loc[table["table"] == 3, "rho"]) == [0.5]
    badnet = paper.compare(rows({"defense": "pam", "rho": 0.5}, {"defense": "pam", "rho": 0.9}))
    assert set(badnet["rho"]) == {0.9}


def test_the_papers_anp_is_the_one_that_test_asr_chose():
    ours = rows({"defense": "anp", "p_asr": 60.0}, {"defense": "anp_oracle", "p_asr": 90.0})
    table = paper.compare(ours)
    assert set(table["defense"]) == {"anp_oracle"}
    assert set(table.loc[table["figure"] == "p_asr", "ours"]) == {90.0}


def test_another_scale_is_not_compared_but_stands_apart_with_its_scale():
    """A model of width 16 goes by the paper's name of ResNet-18, too."""
    narrow = rows({"level": "smaller", "scale": "width 16 (64)"})
    assert len(paper.compare(narrow)) == 0
    beside = paper.compare(narrow, other_scale=True)
    assert set(beside["scale"]) == {"width 16 (64)"}
    assert set(beside["table"]) == {3}
    unknown = rows({}).drop(columns=["level", "scale"])
    assert len(paper.compare(unknown)) == 0, "what does not tell its scale is not the paper's"
    assert set(paper.compare(unknown, other_scale=True)["scale"]) == {"scale not recorded"}
    assert len(paper.compare(rows({"dataset": "shapes"}))) == 0
    assert len(paper.compare(rows({"status": "failed: x"}))) == 0
    assert len(paper.compare(rows({"dataset": "folder"}))) == 0


@pytest.mark.parametrize("number", range(3, 12))
def test_the_study_of_a_table_has_all_of_its_cells(number):
    """Under our names of data set, model and methods: nothing of a table is left uncompared."""
    plan = Plan(Study.load(ROOT / "params" / f"table{number:02d}.yaml"))
    names = plan.study.dataset["name"], plan.study.model["name"]
    ours = {
        (*names, plan.attacks[cell.attack].poison_rate, cell.attack, cell.defense)
        for cell in plan.cells()
        if cell.attack != NO_ATTACK
    }
    table = paper.numbers()
    theirs = table.loc[table["table"] == number, paper.MEANINGS]
    theirs = set(theirs.itertuples(index=False, name=None))
    assert theirs
    assert theirs <= ours
