"""How a study's setting differs from the paper's."""

import pandas as pd
import pytest

from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting.evidence import at_paper_rho
from ppr_core.reporting.setting import paper_rho, setting_columns, used, with_settings


def columns(name, attack="badnet", defense="", **changes):
    study = Study.load(ROOT / "params" / f"{name}.yaml").replace(**changes)
    return setting_columns(Plan(study), attack, defense)


@pytest.mark.parametrize("name", [f"table{number:02d}" for number in range(1, 12)])
def test_the_files_of_the_papers_tables_have_its_setting(name):
    plan = Plan(Study.load(ROOT / "params" / f"{name}.yaml"))
    found = [setting_columns(plan, cell.attack, cell.defense) for cell in plan.cells()]
    assert {(one["scale"], one["measure_scale"]) for one in found} == {("", "")}


@pytest.mark.parametrize(
    ("changes", "level", "scale"),
    [
        ({"model": {"name": "resnet18", "width": 16}}, "smaller", "width 16 (64)"),
        ({"training": {"epochs": 40}}, "smaller", "training epochs 40 (100)"),
        ({"dataset": {"name": "cifar10", "train": 20000}}, "smaller", "20,000 training images"),
        ({"poison_rate": 0.02}, "other", "poison rate 0.02"),
        ({"retuning": {"poisoned": 10}}, "other", "RA poisoned 10 (5)"),
        ({"dataset": {"name": "shapes"}}, "other", "drawn images; 10,000 training images"),
        ({"defenses": {"fst": {"alpha": 0.5}}, "rho_grid": []}, "other", "fst: other alpha"),
        ({"defenses": {"fst": {"method": "ft"}}, "rho_grid": []}, "other", "fst: other method Ft"),
        ({"dataset": {"name": "cifar10", "test": 100}}, "smaller", "100 test images"),
        ({"reserve": 200}, "other", "fst: other reserve 167 + 33 (2500 + 500)"),
        ({"validation": 0.9}, "other", "fst: other reserve 300 + 2700 (2500 + 500)"),
        ({"target": 3}, "other", "attack badnet target 3 (0)"),
        ({"attacks": {"badnet": {"method": "wanet"}}}, "other", "attack badnet by WaNet"),
    ],
)
def test_what_differs_is_told(changes, level, scale):
    measures = {} if "defenses" in changes else {"query": {}}
    found = columns("table03", defense="fst", **changes, measures=measures)
    assert (found["level"], found["scale"]) == (level, scale)


def test_what_the_attack_does_is_the_papers_too():
    found = columns("table03", "blended", attacks={"blended": {"test_ratio": 0.9}})
    assert (found["level"], found["scale"]) == ("other", "attack blended test_ratio 0.9 (0.2)")
    found = columns("table03", "ssba", attacks={"ssba": {}})
    assert found["scale"] == "attack ssba variant fast (stegastamp)"
    oracle = {"defenses": {"anp_oracle": {"method": "anp"}}, "rho_grid": [], "measures": {}}
    assert columns("table03", "badnet", "anp_oracle", **oracle)["scale"] == (
        "anp_oracle: other select"
    )


def test_how_qra_and_paths_are_taken_counts_where_their_figures_are_used():
    study = Study.load(ROOT / "params" / "table03.yaml")
    measures = {"query": {"width": 8}, "query_ep": {}, "path": {"points": 3}}
    rows = pd.DataFrame([{"attack": "badnet", "defense": "fst", "rho": None}])
    found = with_settings(Plan(study.replace(measures=measures)), rows)
    told = {}
    for column in ("p_asr", "q_p_asr", "qe_p_asr", "barrier"):
        told[column] = used(found, [column])[["level", "scale"]].iloc[0].to_list()
    assert told == {
        "p_asr": ["paper", ""],
        "q_p_asr": ["other", "query width 8 (1024)"],
        "qe_p_asr": ["other", "query_ep width 8 (1024)"],
        "barrier": ["smaller", "path points 3 (21)"],
    }


def test_rho_and_the_way_to_choose_a_threshold_are_rows_not_budgets():
    assert columns("table03", "blended", "pam@0.5")["level"] == "paper"
    assert columns("table03", "blended", "anp_oracle")["level"] == "paper"
    rhos = [paper_rho("cifar10", a) for a in ("badnet", "blended", "ssba", "lc", "wanet")]
    assert rhos == [0.9, 0.5, 0.5, 0.9, None]
    assert paper_rho("tiny_imagenet", "badnet") == paper_rho("cifar100", "ssba") == 0.4


def test_a_table_of_cells_gets_the_columns_once():
    plan = Plan(Study.load(ROOT / "params" / "demo.yaml"))
    rows = pd.read_csv(ROOT / "notebooks" / "results" / "demo.csv")
    found = with_settings(plan, rows)
    assert (found["level"] == "other").all()
    assert (found["width"] == 16).all()
    assert found["drawn"].all()
    assert with_settings(plan, found) is found
    pam = found[found["defense"] == "pam"]
    assert pam["scale"].nunique() == 1, "a grid of rho is of one scale"
    assert set(at_paper_rho(found).query("defense == 'pam'")["rho"]) == {0.5}
