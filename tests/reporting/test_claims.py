"""Verdicts on made-up evidence: claims that hold, that fail, and that nothing was measured for."""

import re

import pandas as pd
import pytest

from ppr_core.lab.places import ROOT
from ppr_core.reporting import claims, paper
from ppr_core.reporting.claims import CLAIMS, board, scoreboard, tally
from ppr_core.reporting.evidence import BASELINES, Evidence
from ppr_core.reporting.setting import paper_rho
from tests.reporting.made_up import (
    ALL,
    FROM_SCRATCH,
    IMAGENET,
    PAM,
    all_with,
    along,
    asked,
    at_rate,
    cells,
    everywhere,
    grid,
    line,
    of,
    on_both,
    retuned,
    spanning,
    transferred,
    verdict,
)

WORSE = {**PAM, "p_asr": 30.0}
BARRIERS = {**all_with(barrier=20.0), "pam": {**PAM, "barrier": 60.0}}
LOWER = {**all_with(barrier=20.0), "pam": {**PAM, "barrier": 5.0}}
HIGH, EARLY, LATE = [0, 99, 99, 98, 98], [0, 10, 40, 70, 98], [0, 0, 0, 70, 98]
FLAT, DIP = [98, 97, 96, 97, 98], [98, 60, 20, 60, 98]
ASLEEP = {"qe_clean_p_asr": 3.0, "qe_clean_c_asr": 2.0}
LC = {**IMAGENET, "attack": "lc"}
TEXT = {7: "partly", 8: "partly", 28: "no", 55: "partly", 58: "no"}


def pretraining(scratch, gained):
    parts = [
        cells(at={"dataset": name, "model": model, "scale": scale}, clean={"o_c_acc": value})
        for name in ("cifar100", "tiny_imagenet")
        for model, value, scale in (
            (scratch, 70.0, "pretrained False (True)"),
            ("resnet18_imagenet", 70.0 + gained, ""),
        )
    ]
    return spanning(*parts)


def dashes(anp, ft_sam):
    dense = cells(at={"model": "densenet161"}, anp_oracle={"o_asr": anp})
    rare = cells(at={"attack": "blended", "poison_rate": 0.01}, ft_sam={"o_asr": ft_sam})
    return spanning(cells(**ALL), dense, rare)


def slope(p_asr, **more):
    """Models whose distance along the path grows while their P-ASR is as given."""
    made = [
        cells(at={"attack": attack, "seed": seed}, **{name: {"p_asr": value, **path(index)}})
        .assign(seed=seed)
        for attack in ("badnet", "blended", "ssba")
        for seed in range(3)
        for index, (name, value) in enumerate(zip(BASELINES, p_asr, strict=True))
    ]  # fmt: skip
    return Evidence(pd.concat(made, ignore_index=True).assign(**more))


def path(index):
    return {"distance": 9.0 + index % 2, "path_distance": index, "barrier": 5.0 + index % 3}


def controlled(**columns):
    """QRA's scores in the paper's form on every purified baseline, and the columns given."""
    scores = {"qe_p_asr": 80.0, "qe_c_asr": 1.0, "qe_clean_p_asr": 3.0, "qe_clean_c_asr": 2.0}
    return all_with(**{**scores, **columns})


def universal(qra, other):
    """A generator's scores beside those of a universal perturbation: (P-ASR, C-ASR) of each."""
    kinds = (("qra, eq. 2", qra), other)
    points = [(name, kind, *scores) for name in BASELINES for kind, scores in kinds]
    return asked(*points, **controlled(qe_p_asr=qra[0]))


def labels(*asr):
    """LC on CIFAR-100 and on Tiny-ImageNet: all images of the target class."""
    places = [("cifar100", 0.01), ("tiny_imagenet", 0.005)][: len(asr)]
    made = [
        cells(at={"dataset": name, "poison_rate": rate, **LC}, none={"o_asr": value})
        for (name, rate), value in zip(places, asr, strict=True)
    ]
    return spanning(cells(**ALL), *made)


# Evidence on which a claim holds, and evidence on which it fails.
DECIDED = {
    1: (of(**ALL), of(**{**ALL, "bti": 12.0})),
    2: (everywhere(90, 95, 85, 80), everywhere(90, 95, 85, 40)),
    3: (of(anp_oracle=82.0, fst=85.0), of(anp_oracle=40.0, fst=85.0)),
    4: (
        of(**{**ALL, "anp_oracle": {"o_asr": 1.0}, "fst": {"o_asr": 1.5}}),
        of(**{**ALL, "anp_oracle": {"o_asr": 1.0}, "bti": {"o_asr": 0.5}}),
    ),
    5: (of(clean=4.0), of(clean=40.0)),
    6: (of(ep=4.0), of(ep=40.0)),
    9: (of(**ALL), of(**all_with(p_c_acc=80.0))),
    10: (
        at_rate(0.05, {"clean": 60.0}, ra_poisons=10, scale="RA poisoned 10 (5)"),
        at_rate(0.05, {"clean": 8.0}, ra_poisons=10, scale="RA poisoned 10 (5)"),
    ),
    11: (retuned(2, 60, 85, 90), retuned(2, 3, 4, 90)),
    12: (of(**ALL), of(**dict.fromkeys(BASELINES, 12.0))),
    13: (of(bti=80.0, ep=2.0), of(bti=15.0, ep=2.0)),
    14: (
        at_rate(0.01, all_with(o_asr=40.0), attack="lc"),
        at_rate(0.01, all_with(o_asr=4.0), attack="lc"),
    ),
    15: (labels(60.0, 60.0), labels(60.0, 99.0)),
    16: (dashes(60.0, 50.0), dashes(60.0, 2.0)),
    17: (at_rate(0.002, all_with(o_asr=40.0)), at_rate(0.002, all_with(o_asr=4.0))),
    18: (pretraining(FROM_SCRATCH, 15.0), pretraining("resnet18", 1.0)),
    19: (of(bti={"o_asr": 1.0}, bti_p={"o_asr": 4.0}), of(bti={"o_asr": 4.0}, bti_p=1.0)),
    20: (of(**all_with(qe_p_asr=68.0)), of(**all_with(qe_p_asr=20.0))),
    21: (
        of(**controlled()),
        of(**{**controlled(), "bti": {"qe_p_asr": 80.0, "qe_c_asr": 50.0}}),
    ),
    22: (of(**controlled()), of(**controlled(qe_clean_p_asr=40.0))),
    23: (of(**all_with(q1_clean_p_asr=80.0)), of(**all_with(q1_clean_p_asr=5.0))),
    24: tuple(
        of(**all_with(q1_clean_p_asr=80.0, qe_clean_p_asr=left, qe_p_asr=70.0))
        for left in (5.0, 75.0)
    ),
    25: (
        universal((80, 1), ("universal", (20, 15))),
        universal((80, 70), ("universal", (20, 5))),
    ),
    26: tuple(transferred(("bti", "fst", rate), ("fst", "bti", rate + 4)) for rate in (30.0, 3.0)),
    27: (
        everywhere(90, 60, 70, column="qe_p_asr", **ASLEEP),
        everywhere(90, 60, 10, column="qe_p_asr", **ASLEEP),
    ),
    29: (of(**all_with(barrier=30.0)), of(**{**all_with(barrier=30.0), "bti": {"barrier": 0.0}})),
    30: (
        along(line(FLAT, BASELINES, "purified")),
        along(line(FLAT, BASELINES[1:], "purified"), line(DIP, BASELINES[:1], "purified")),
    ),
    31: (along(line(HIGH, ["ep"])), along(line(EARLY, ["ep"]))),
    32: (
        along(line(HIGH, ["ep"]), line(EARLY, BASELINES)),
        along(line(HIGH, ["ep"]), line(HIGH, BASELINES)),
    ),
    33: (slope([95, 70, 55, 30, 12]), slope([12, 25, 30, 60, 90])),
    34: (along(line(EARLY, BASELINES)), along(line([0, 10, 40, 98, 90], BASELINES))),
    35: (
        along(line(FLAT, ["bti"], "purified"), line(EARLY, ["bti"]), line(HIGH, ["ep"])),
        along(line(FLAT, ["bti"], "purified"), line(HIGH, ["bti", "ep"])),
    ),
    36: (of(**BARRIERS), of(**LOWER)),
    37: (at_rate(0.01, BARRIERS), at_rate(0.01, LOWER)),
    38: (on_both(BARRIERS), on_both(BARRIERS, LOWER)),
    39: (of(**all_with(clean_barrier=1.0)), of(**all_with(clean_barrier=9.0))),
    40: (along(line(HIGH, ["ep", "pam"])), along(line(LATE, ["ep"]), line(HIGH, ["pam"]))),
    41: (of(pam=PAM), of(pam=WORSE)),
    42: (of(pam=PAM, ep=1.0), of(pam=WORSE, ep=1.0)),
    43: (of(**ALL, pam=PAM), of(**{**ALL, "bti": 12.0}, pam=PAM)),
    44: (of(pam=PAM), of(pam={**PAM, "o_asr": 5.0})),
    45: (of(none={"o_c_acc": 93.0}, pam=PAM), of(none={"o_c_acc": 99.0}, pam=PAM)),
    46: (of(pam=PAM), of(pam=WORSE)),
    47: (at_rate(0.01, {"pam": PAM}), at_rate(0.01, {"pam": WORSE})),
    48: (on_both({"pam": PAM}), on_both({"pam": PAM}, {"pam": WORSE})),
    49: (of(**ALL, pam=PAM), of(**ALL, pam={**PAM, "o_c_acc": 80.0})),
    50: (grid(p_asr=[95, 40, 3]), grid(p_asr=[5, 4, 3])),
    51: (grid(barrier=[5, 20, 40]), grid(barrier=[40, 20, 5])),
    52: (grid(o_c_acc=[94, 93, 92]), grid(o_c_acc=[94, 93, 70])),
    53: (grid(p_asr=[95, 40, 3]), grid(p_asr=[95, 94, 93])),
    54: (grid(p_asr=[95, 4, 3]), grid(p_asr=[95, 40, 3])),
    56: (grid(distance=[5, 6, 8]), grid(distance=[8, 6, 5])),
    57: (of(bti_sam=96.0, pam=PAM), of(bti_sam=8.0, pam=PAM)),
    59: (of(none={"o_asr": 99.0, "p_asr": None}), of(none={"o_asr": 60.0, "p_asr": None})),
    60: (of(**ALL), of(**{**ALL, "fst": {"o_asr": 60.0}})),
}
UNRELATED = of(other=50.0)

# Evidence that is not enough: one of several things that a claim needs is missing.
SHORT = {
    1: of(bti=90.0),
    2: everywhere(90, 95, 85),  # one data set
    3: of(anp=82.0, fst=85.0),  # another ANP than the paper's
    4: of(anp_oracle={"o_asr": 1.0}, fst={"o_asr": 1.5}),  # none to be better than
    **dict.fromkeys((9, 12, 60), of(bti=90.0)),
    10: of(clean=60.0),  # five samples
    11: Evidence(cells(bti=90.0), histories=retuned(2, 60, 85, 90).histories),
    13: of(bti=80.0),
    15: labels(60.0),
    16: spanning(cells(at={"model": "densenet161"}, anp_oracle={"o_asr": 60.0})),
    17: at_rate(0.01, all_with(o_asr=40.0)),
    18: spanning(cells(at={"dataset": "cifar100", "model": FROM_SCRATCH}, clean=4.0)),
    22: of(clean={"q_p_asr": 1.0, "q_c_asr": 1.0}),  # a generator learnt on the clean model itself
    24: of(**all_with(q1_clean_p_asr=80.0)),
    27: everywhere(90, 60, column="qe_p_asr", **ASLEEP),  # one model
    32: along(line(EARLY, BASELINES)),
    38: spanning(cells(at={"dataset": "cifar100", **IMAGENET}, **BARRIERS)),
    42: of(pam=PAM),
    **dict.fromkeys((43, 49), of(bti=90.0, pam=PAM)),
    47: of(pam=PAM),
    50: Evidence(grid(p_asr=[95, 40, 3]).cells.iloc[1:]),
    **dict.fromkeys((51, 53), grid(p_asr=[95, 3], barrier=[1, 9])),  # two ends are no order
}


def test_every_claim_stands_once_and_in_order():
    assert [claim.number for claim in CLAIMS] == list(range(1, 61))
    assert all(claim.words["text"] and claim.words["needs"] for claim in CLAIMS)
    assert {claim.number for claim in CLAIMS if not claim.test} == set(TEXT)
    assert {claim.number for claim in CLAIMS if claim.test} == set(DECIDED)


def test_what_a_claim_needs_names_files_that_exist():
    named = [name for claim in CLAIMS for name in re.findall(r"\w+\.yaml", claim.words["needs"])]
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "params" / name).is_file()] == []


@pytest.mark.parametrize("number", DECIDED)
def test_every_claim_can_hold_and_fail_and_stay_untested(number):
    holds, fails = (verdict(number, evidence) for evidence in DECIDED[number])
    assert holds.verdict in ("yes", "holds"), holds
    assert fails.verdict in ("no", "fails"), fails
    assert any(letter.isdigit() for letter in holds.ours), "a verdict without a figure"
    assert holds.cells > 0
    assert holds.paper and holds.tables
    assert verdict(number, UNRELATED).verdict == "not tested"


@pytest.mark.parametrize("number", SHORT)
def test_a_part_of_what_a_claim_needs_is_no_verdict(number):
    found = verdict(number, SHORT[number])
    assert (found.verdict, found.ours, found.grade) == ("not tested", "", "")


@pytest.mark.parametrize("number", TEXT)
def test_what_no_run_can_tell_is_answered_from_text_and_tables(number):
    for evidence in (UNRELATED, Evidence(cells())):
        found = verdict(number, evidence)
        assert (found.verdict, found.grade) == (TEXT[number], "text")
        assert "not by a run" in found.ours


def test_nothing_measured_is_no_verdict_and_says_what_it_would_take():
    for evidence in (Evidence(cells()), UNRELATED):
        verdicts = scoreboard(evidence)
        assert sum(v.verdict == "not tested" for v in verdicts) == 55
        assert tally(verdicts).endswith("3 partly, 2 no; not tested: 55")
        needs = dict(zip(range(1, 61), board(verdicts)["ours"], strict=True))
        assert all(needs[n].startswith("needs ") for n in needs if n not in TEXT)
    for number, words in {
        1: "two of the baselines anp_oracle (or anp), ibau, ft_sam, fst, bti",
        5: "clean control",
        10: "retuning.poisoned: 10",
        14: "LC at 1 %",
        20: "measure query",
        24: "query_alone",
        26: "measure transfer",
        29: "measure path",
        30: "measure connection",
        53: "rho grid",
    }.items():
        assert words in needs[number]


def test_the_text_lists_all_claims_by_grade_and_fits_a_terminal():
    text = claims.text(scoreboard(of(clean=4.0, ep=40.0)))
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["seen:", "yes", "5."]
    assert "P-ASR 4.0 (at most 10)" in lines[1]
    assert "the paper: mean 2.4, worst cell 8.1; its tables: YES" in text
    assert text.count("not tested") == 54
    assert max(map(len, lines)) <= 120
    assert " ".join(lines[-2:]).endswith("not tested: 53")


def test_the_papers_own_numbers_get_the_verdicts_that_its_tables_give():
    """One seed in the paper's own setting: what the tables bear out is seen, and what not, not."""
    table = paper.numbers()
    table = table[table["table"].between(3, 9)]
    rows = table.pivot_table(index=["table", *paper.MEANINGS], columns="figure", values="paper")
    rows = rows.reset_index().assign(status="done", seed=0, ra_poisons=5, level="paper", scale="")
    rows["rho"] = [
        paper_rho(d, a) if who == "pam" else None
        for d, a, who in zip(rows["dataset"], rows["attack"], rows["defense"], strict=True)
    ]
    evidence = spanning(rows[rows["table"] == 3], rows[rows["table"] != 3])
    found = {v.number: v for v in scoreboard(evidence)}
    said = {number: v.verdict for number, v in found.items() if v.grade == "seen"}
    for number, v in said.items():
        tables = found[number].tables
        assert (v == "yes") == (tables == "YES"), (number, tables, found[number].ours)
    assert {9, 12, 13, 43, 47} <= set(said)
    for number, figures in {
        2: "worst anp_oracle: 59.5",  # on Blended and SSBA, which Tables 6 and 7 have, too
        1: "worst cifar10/resnet18/blended/anp_oracle at 1 %: 0.8",
        41: "worst tiny_imagenet/resnet18_imagenet at 5 %: 7.5",
        43: "worst cifar10/resnet18 at 1 %: 43.5",
        45: "worst tiny_imagenet/resnet18_imagenet at 5 %: 4.9",
        47: "rise 0.2",
    }.items():
        assert figures in found[number].ours


def test_a_failed_cell_is_no_evidence():
    failed = {"status": "failed: diverged", "p_asr": None}
    assert verdict(5, of(clean=failed)).verdict == "not tested"
    further = at_rate(0.01, {"pam": {**PAM, "status": "failed: diverged"}})
    assert verdict(47, further).verdict == "not tested"
