"""Verdicts on made-up evidence: claims that hold, that fail, and that nothing was measured for."""

import pandas as pd
import pytest

from ppr_core.claims import CLAIMS, board, scoreboard, tally
from ppr_core.evidence import BASELINES, Evidence

ROW = {
    "dataset": "cifar10",
    "poison_rate": 0.05,
    "attack": "badnet",
    "seed": 0,
    "rho": None,
    "o_c_acc": 93.0,
    "o_asr": 2.0,
    "p_c_acc": 93.0,
    "p_asr": 90.0,
    "status": "done",
}


def cells(**by_defense):
    """One row a defense; the values given are its P-ASR, or a mapping of columns."""
    made = []
    for name, value in by_defense.items():
        changes = value if isinstance(value, dict) else {"p_asr": value}
        made.append({**ROW, "defense": name, **changes})
    return pd.DataFrame(made)


def verdict(number, evidence):
    return {v.number: v for v in scoreboard(evidence)}[number]


def along(**lines):
    return pd.DataFrame(
        [
            {
                "attack": "badnet",
                "defense": name,
                "seed": 0,
                "start": "backdoored",
                "batch_norm": "interpolate",
                "t": index / (len(line) - 1),
                "backdoor_error": error,
                "clean_error": 7.0,
            }
            for name, line in lines.items()
            for index, error in enumerate(line)
        ]
    )


def test_every_claim_stands_once_and_in_order():
    assert [claim.number for claim in CLAIMS] == list(range(1, 61))
    assert all(claim.text and claim.needs for claim in CLAIMS)


def test_nothing_measured_is_no_verdict():
    verdicts = scoreboard(Evidence(cells()))
    assert {v.verdict for v in verdicts} == {"not tested"}
    assert tally(verdicts).endswith("0 hold, 0 fail, 60 not tested")
    assert all(text.startswith("needs ") for text in board(verdicts)["ours"])


ALL = dict.fromkeys(BASELINES, 90.0)
PAM = {"rho": 0.9, "p_asr": 3.0}


@pytest.mark.parametrize(
    ("number", "rows", "expected"),
    [
        (1, ALL, "holds"),
        (1, {**ALL, "bti": 12.0}, "fails"),
        (1, {"bti": 90.0}, "not tested"),
        (5, {"clean": 4.0}, "holds"),
        (5, {"clean": 40.0}, "fails"),
        (6, {"ep": 4.0}, "holds"),
        (13, {"bti": 80.0, "ep": 2.0}, "holds"),
        (13, {"bti": 15.0, "ep": 2.0}, "fails"),
        (41, {"pam": PAM}, "holds"),
        (41, {"pam": {**PAM, "p_asr": 97.2}}, "fails"),
        (43, {**ALL, "pam": PAM}, "holds"),
        (45, {"none": {"o_c_acc": 99.0}, "pam": PAM}, "fails"),
        (59, {"none": {"o_asr": 99.0, "p_asr": None}}, "holds"),
        (60, {**ALL, "fst": {"o_asr": 60.0}}, "fails"),
        (20, ALL, "not tested"),
        (7, ALL, "not tested"),
    ],
)
def test_verdicts_from_cells(number, rows, expected):
    assert verdict(number, Evidence(cells(**rows))).verdict == expected


def test_a_failed_cell_is_no_evidence():
    failed = {"status": "failed: diverged", "p_asr": None}
    assert verdict(5, Evidence(cells(clean=failed))).verdict == "not tested"


def test_the_rho_curve():
    grid = [
        {**ROW, "defense": "pam", "rho": r, "p_asr": p} for r, p in ((0, 95), (0.5, 40), (1, 3))
    ]
    evidence = Evidence(pd.DataFrame(grid))
    assert verdict(53, evidence).verdict == "holds"
    assert verdict(54, evidence).verdict == "fails", "37 points between rho 0.5 and 1"
    assert verdict(41, evidence).ours.startswith("P-ASR 3.00"), (
        "the study's PAM has the largest rho"
    )
    flat = Evidence(pd.DataFrame(grid).assign(p_asr=90.0))
    assert verdict(53, flat).verdict == "fails"


def test_paths():
    rows = cells(ep=3.0, pam=PAM, **ALL)
    high, low = [0, 90, 98, 98, 98], [0, 10, 40, 70, 98]
    paths = along(ep=high, pam=high, **dict.fromkeys(BASELINES, low))
    good = Evidence(rows, paths=paths)
    assert verdict(31, good).verdict == "holds"
    assert verdict(32, good).verdict == "fails", "EP's ASR is 10 at t = 0.25"
    assert verdict(34, good).verdict == "holds"
    assert verdict(40, good).verdict == "holds"
    bad = Evidence(rows, paths=along(ep=low, pam=high))
    assert verdict(31, bad).verdict == "fails"
    assert verdict(40, bad).verdict == "fails"


def test_queries():
    rows = cells(clean={"q_c_asr": 1.0, "q_p_asr": 2.0}, **ALL).assign(q_c_asr=1.0)
    rows.loc[rows["defense"] != "clean", "q_p_asr"] = 80.0
    points = [
        {"defense": name, "perturbation": what, "eps": 16 / 255, "p_asr": rate, "c_asr": 1.0}
        for name in BASELINES
        for what, rate in (("qra", 80.0), ("universal", 20.0))
    ]
    for point in points:
        point["c_asr"] = 1.0 if point["perturbation"] == "qra" else 15.0
    evidence = Evidence(rows, queries=pd.DataFrame(points))
    assert [verdict(n, evidence).verdict for n in (20, 21, 22, 25)] == ["holds"] * 4
    assert verdict(23, evidence).verdict == "not tested"
    ordinary = pd.DataFrame(points).assign(c_asr=70.0)
    ordinary.loc[ordinary["perturbation"] == "universal", "c_asr"] = 5.0
    assert verdict(25, Evidence(rows, queries=ordinary)).verdict == "fails"
