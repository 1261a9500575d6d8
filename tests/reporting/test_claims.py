"""Verdicts on made-up evidence: claims that hold, that fail, and that nothing was measured for."""

import pandas as pd
import pytest

from ppr_core.reporting import claims, paper
from ppr_core.reporting.claims import CLAIMS, TEXT, board, judge, scoreboard, tally
from ppr_core.reporting.evidence import BASELINES, Evidence

ROW = {
    "dataset": "cifar10",
    "model": "resnet18",
    "poison_rate": 0.05,
    "attack": "badnet",
    "seed": 0,
    "rho": None,
    "ra_poisons": 5,
    "o_c_acc": 93.0,
    "o_asr": 2.0,
    "p_c_acc": 93.0,
    "p_asr": 90.0,
    "status": "done",
}
SCRATCH = "resnet18_imagenet from scratch"


def cells(*, at=None, **by_defense):
    """One row a defense; the values given are its P-ASR, or a mapping of columns."""
    made = []
    for name, value in by_defense.items():
        changes = value if isinstance(value, dict) else {"p_asr": value}
        made.append({**ROW, **(at or {}), "defense": name, **changes})
    return pd.DataFrame(made)


def all_with(**columns):
    return dict.fromkeys(BASELINES, columns)


def of(**by_defense):
    return Evidence(cells(**by_defense))


def spanning(*studies):
    """The first of the studies decides; the others are further ones."""
    return Evidence(studies[0], further=pd.concat([pd.DataFrame(), *studies[1:]]))


def line(errors, who, start="backdoored"):
    return [
        {
            "attack": "badnet",
            "defense": name,
            "seed": 0,
            "start": start,
            "batch_norm": "interpolate",
            "t": index / (len(errors) - 1),
            "backdoor_error": error,
            "clean_error": 7.0,
        }
        for name in who
        for index, error in enumerate(errors)
    ]


def along(*lines, rows=None):
    """Evidence of paths; cells of all that the paths belong to."""
    measured = cells(**(rows or {"ep": 3.0, "pam": PAM, **ALL}))
    return Evidence(measured, paths=pd.DataFrame([point for one in lines for point in one]))


def asked(*points):
    """Evidence of perturbations: (defense, perturbation, P-ASR, C-ASR) at the largest budget."""
    frame = pd.DataFrame(points, columns=["defense", "perturbation", "p_asr", "c_asr"])
    weaker = frame.assign(eps=0.0, p_asr=0.0, c_asr=0.0)
    frame = pd.concat([frame.assign(eps=16 / 255), weaker], ignore_index=True)
    return Evidence(cells(**ALL), queries=frame)


def retuned(*asr):
    frame = pd.DataFrame({"epoch": range(len(asr)), "asr": asr, "defense": "bti"})
    return Evidence(cells(**ALL), histories=frame)


def grid(**columns):
    """Evidence of PAM at several rho; each column's values from the smallest to the largest."""
    made = pd.DataFrame(columns)
    rho = made.index / (len(made) - 1)
    return Evidence(pd.DataFrame([{**ROW, "defense": "pam"}] * len(made)).assign(rho=rho, **made))


def slope(p_asr):
    found = {
        name: {"distance": 9.0 + index % 2, "path_distance": index, "barrier": 5.0, "p_asr": value}
        for index, (name, value) in enumerate(zip(BASELINES, p_asr, strict=True))
    }
    return of(**found)


def on_both(first, second=None):
    """The same cells on CIFAR-100 and on Tiny-ImageNet, beside a study of CIFAR-10."""
    sets = (("cifar100", first), ("tiny_imagenet", second or first))
    return spanning(cells(**ALL), *(cells(at={"dataset": name}, **rows) for name, rows in sets))


def at_rate(rate, rows, **at):
    return spanning(cells(**ALL), cells(at={"poison_rate": rate, **at}, **rows))


def everywhere(*by_setting, column="p_asr"):
    """Four studies: a second rate, a second model, a second data set."""
    changes = [{}, {"poison_rate": 0.01}, {"model": "resnet50"}, {"dataset": "cifar100"}]
    pairs = zip(changes, by_setting, strict=False)
    return spanning(*(cells(at=at, **all_with(**{column: value})) for at, value in pairs))


def pretraining(scratch, gained):
    parts = [
        cells(at={"dataset": name, "model": model}, clean={"o_c_acc": value})
        for name in ("cifar100", "tiny_imagenet")
        for model, value in ((scratch, 70.0), ("resnet18_imagenet", 70.0 + gained))
    ]
    return spanning(*parts)


def dashes(anp, ft_sam):
    dense = cells(at={"model": "densenet161"}, anp={"o_asr": anp})
    rare = cells(at={"attack": "blended", "poison_rate": 0.01}, ft_sam={"o_asr": ft_sam})
    return spanning(cells(**ALL), dense, rare)


ALL = dict.fromkeys(BASELINES, 90.0)
PAM = {"rho": 0.9, "p_asr": 3.0}
BARRIERS = {**all_with(barrier=20.0), "pam": {**PAM, "barrier": 60.0}}
LOWER = {**all_with(barrier=20.0), "pam": {**PAM, "barrier": 5.0}}
WORSE = {**PAM, "p_asr": 30.0}
HIGH, EARLY, LATE = [0, 99, 99, 98, 98], [0, 10, 40, 70, 98], [0, 0, 0, 70, 98]
FLAT, DIP = [98, 97, 96, 97, 98], [98, 60, 20, 60, 98]
SURROGATE = "qra, no surrogate"

# Evidence on which a claim holds, and evidence on which it fails.
DECIDED = {
    1: (of(**ALL), of(**{**ALL, "bti": 12.0})),
    2: (everywhere(90, 95, 85, 80), everywhere(90, 95, 85, 40)),
    3: (of(anp=82.0, fst=85.0), of(anp=40.0, fst=85.0)),
    4: (
        of(**{**ALL, "anp": {"o_asr": 1.0}, "fst": {"o_asr": 1.5}}),
        of(**{**ALL, "anp": {"o_asr": 1.0}, "bti": {"o_asr": 0.5}}),
    ),
    5: (of(clean=4.0), of(clean=40.0)),
    6: (of(ep=4.0), of(ep=40.0)),
    9: (of(**ALL), of(**all_with(p_c_acc=80.0))),
    10: (
        at_rate(0.05, {"clean": 60.0}, ra_poisons=10),
        at_rate(0.05, {"clean": 8.0}, ra_poisons=10),
    ),
    11: (retuned(2, 60, 85, 90), retuned(2, 3, 4, 90)),
    12: (of(**ALL), of(**dict.fromkeys(BASELINES, 12.0))),
    13: (of(bti=80.0, ep=2.0), of(bti=15.0, ep=2.0)),
    14: (
        at_rate(0.01, all_with(o_asr=40.0), attack="lc"),
        at_rate(0.01, all_with(o_asr=4.0), attack="lc"),
    ),
    15: (
        on_both({"none": {"attack": "lc", "o_asr": 60.0}}),
        on_both(*({"none": {"attack": "lc", "o_asr": asr}} for asr in (60.0, 99.0))),
    ),
    16: (dashes(60.0, 50.0), dashes(60.0, 2.0)),
    17: (at_rate(0.002, all_with(o_asr=40.0)), at_rate(0.002, all_with(o_asr=4.0))),
    18: (pretraining(SCRATCH, 15.0), pretraining("resnet18", 1.0)),
    20: (of(**all_with(q_p_asr=80.0)), of(**all_with(q_p_asr=20.0))),
    21: (of(**all_with(q_c_asr=1.0)), of(**all_with(q_c_asr=50.0))),
    22: (
        of(clean={"q_c_asr": 1.0, "q_p_asr": 2.0}),
        of(clean={"q_c_asr": 1.0, "q_p_asr": 80.0}),
    ),
    23: (asked(("clean", SURROGATE, 80, 1)), asked(("clean", SURROGATE, 5, 1))),
    24: (
        asked(("clean", SURROGATE, 80, 1), ("clean", "qra", 5, 1)),
        asked(("clean", SURROGATE, 80, 1), ("clean", "qra", 75, 1)),
    ),
    25: (
        asked(("bti", "qra", 80, 1), ("bti", "universal", 20, 15)),
        asked(("bti", "qra", 80, 70), ("bti", "universal", 20, 5)),
    ),
    26: tuple(
        Evidence(cells(**ALL), transfers=pd.DataFrame({"p_asr": [rate, rate + 4]}))
        for rate in (30.0, 3.0)
    ),
    27: (
        everywhere(90, 60, 70, column="q_p_asr"),
        everywhere(90, 60, 10, column="q_p_asr"),
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
    33: (slope([95, 70, 55, 30, 12]), slope([12, 95, 30, 90, 20])),
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
    44: (of(pam={**PAM, "o_asr": 1.0}), of(pam={**PAM, "o_asr": 5.0})),
    45: (of(none={"o_c_acc": 94.0}, pam=PAM), of(none={"o_c_acc": 99.0}, pam=PAM)),
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
    4: of(anp={"o_asr": 1.0}, fst={"o_asr": 1.5}),  # none to be better than
    **dict.fromkeys((9, 12, 60), of(bti=90.0)),
    10: of(clean=60.0),  # five samples
    11: Evidence(cells(bti=90.0), histories=retuned(2, 60, 85, 90).histories),
    13: of(bti=80.0),
    15: spanning(cells(at={"dataset": "cifar100", "attack": "lc"}, none={"o_asr": 60.0})),
    16: spanning(cells(at={"model": "densenet161"}, anp={"o_asr": 60.0})),
    17: at_rate(0.01, all_with(o_asr=40.0)),
    18: spanning(cells(at={"dataset": "cifar100", "model": SCRATCH}, clean=4.0)),
    24: asked(("clean", SURROGATE, 80, 1)),
    27: everywhere(90, 60, column="q_p_asr"),  # one model
    32: along(line(EARLY, BASELINES)),
    38: spanning(cells(at={"dataset": "cifar100"}, **BARRIERS)),
    42: of(pam=PAM),
    **dict.fromkeys((43, 49), of(bti=90.0, pam=PAM)),
    47: of(pam=PAM),
    50: Evidence(grid(p_asr=[95, 40, 3]).cells.iloc[1:]),
    53: Evidence(grid(p_asr=[95, 40, 3]).cells.iloc[:1]),
}


def verdict(number, evidence):
    return judge(CLAIMS[number - 1], evidence)


def test_every_claim_stands_once_and_in_order():
    assert [claim.number for claim in CLAIMS] == list(range(1, 61))
    assert all(claim.text and claim.needs for claim in CLAIMS)
    assert [claim.number for claim in CLAIMS if claim.needs == TEXT] == [7, 8, 28, 55, 58]
    assert {claim.number for claim in CLAIMS if claim.test} == set(DECIDED)


@pytest.mark.parametrize("number", DECIDED)
def test_every_claim_can_hold_and_fail_and_stay_untested(number):
    holds, fails = (verdict(number, evidence) for evidence in DECIDED[number])
    assert holds.verdict == "holds", holds.ours
    assert fails.verdict == "fails", fails.ours
    assert any(letter.isdigit() for letter in holds.ours), "a verdict without a figure"
    assert verdict(number, UNRELATED).verdict == "not tested"


@pytest.mark.parametrize("number", SHORT)
def test_a_part_of_what_a_claim_needs_is_no_verdict(number):
    found = verdict(number, SHORT[number])
    assert (found.verdict, found.ours) == ("not tested", "")


def test_nothing_measured_is_no_verdict_and_says_what_it_would_take():
    for evidence in (Evidence(cells()), UNRELATED):
        verdicts = scoreboard(evidence)
        assert {v.verdict for v in verdicts} == {"not tested"}
        assert tally(verdicts).endswith("0 hold, 0 fail, 60 not tested")
        needs = dict(zip(range(1, 61), board(verdicts)["ours"], strict=True))
        assert all(text.startswith("needs ") for text in needs.values())
    for number, words in {
        1: "two of the defenses anp, ibau, ft_sam, fst, bti",
        5: "clean control",
        10: "retuning.poisoned: 10",
        14: "LC at 1 %",
        20: "measure query",
        24: "measure query_alone",
        26: "measure transfer",
        29: "measure path",
        30: "measure connection",
        53: "rho grid",
        58: "nothing that a run could give",
    }.items():
        assert words in needs[number]


def test_the_text_lists_all_claims_the_tested_ones_first():
    lines = claims.text(scoreboard(of(clean=4.0, ep=40.0))).splitlines()
    assert len(lines) == 61
    assert lines[0].split()[:2] == ["holds", "5."]
    assert lines[1].split()[:2] == ["fails", "6."]
    assert lines[2].startswith("not tested   1. RA wakes every purified model: needs at least two")
    assert lines[-1].endswith("1 hold, 1 fail, 58 not tested")


def test_the_papers_own_numbers_get_the_verdicts_that_its_tables_give():
    """Some of the paper's claims fail on the paper's own tables, as a count by hand shows."""
    table = paper.numbers()
    table = table[table["table"].between(3, 9)]
    rows = table.pivot_table(index=["table", *paper.MEANINGS], columns="figure", values="paper")
    rows = rows.reset_index().assign(status="done", seed=0, rho=0.9, ra_poisons=5)
    evidence = spanning(rows[rows["table"] == 3], rows[rows["table"] != 3])
    found = {v.number: v for v in scoreboard(evidence)}
    assert {number for number, v in found.items() if v.verdict == "fails"} == {2, 41, 44, 48}
    for number, figures in {
        2: "anp 44.7",  # from 44.71 at 1 % to 89.37 at 10 %
        6: "P-ASR 2.22",
        41: "P-ASR 4.55",
        43: "79.35",
        44: "O-ASR 2.24",
        45: "C-Acc lost 1.89",
        47: "rise 0.25",
        48: "cifar100: rise 0.74 (at most 3); tiny_imagenet: rise 5.92",
    }.items():
        assert figures in found[number].ours


def test_a_failed_cell_is_no_evidence():
    failed = {"status": "failed: diverged", "p_asr": None}
    assert verdict(5, of(clean=failed)).verdict == "not tested"
    further = at_rate(0.01, {"pam": {**PAM, "status": "failed: diverged"}})
    assert verdict(47, further).verdict == "not tested"


def test_the_rho_curve():
    evidence = grid(p_asr=[95, 40, 3])
    assert verdict(41, evidence).ours.startswith("P-ASR 3.00"), (
        "the study's PAM has the largest rho"
    )
    assert verdict(54, evidence).verdict == "fails", "37 points between rho 0.5 and 1"


def test_each_settings_pam_is_the_one_with_its_own_largest_rho():
    """CIFAR-100 is tuned with a smaller rho than CIFAR-10: both count."""
    here = cells(pam={"rho": 0.9, "p_asr": 10.0})
    smaller = [{**ROW, "dataset": "cifar100", "defense": "pam", "rho": r} for r in (0.1, 0.4)]
    there = pd.DataFrame(smaller).assign(p_asr=[80.0, 20.0])
    pooled = spanning(here, there).at()
    assert pooled.mean("p_asr", "pam") == 15.0


def test_further_studies_decide_only_the_claims_that_span_several():
    alone, further = cells(bti=90.0), cells(at={"poison_rate": 0.01}, clean=4.0, pam=PAM)
    verdicts = {v.number: v.verdict for v in scoreboard(spanning(alone, further))}
    assert verdicts[47] == "holds"
    assert verdicts[5] == verdicts[41] == "not tested", "the study itself did not measure them"


def test_settings_know_data_set_model_and_rate():
    found = everywhere(90, 80, 70, 60).settings()
    assert list(found) == [
        ("cifar10", "resnet18", 0.05),
        ("cifar10", "resnet18", 0.01),
        ("cifar10", "resnet50", 0.05),
        ("cifar100", "resnet18", 0.05),
    ]
    assert [here.mean("p_asr", "bti") for here in found.values()] == [90, 80, 70, 60]
    assert len(everywhere(90, 80).at(poison_rate=[0.01, 0.1]).cells) == len(BASELINES)
    undefended = cells(at={"attack": "none", "poison_rate": 0.0}, fst=1.0)
    assert list(spanning(cells(**ALL), undefended).settings()) == [("cifar10", "resnet18", 0.05)]


def test_a_row_that_an_oracle_chose_speaks_for_no_baseline():
    honest = {**ALL, "ep": 3.0, "pam": PAM}
    best = {"o_asr": 0.0, "p_asr": 0.0, "o_c_acc": 99.0}
    assert scoreboard(of(**honest, anp_oracle=best)) == scoreboard(of(**honest))
    assert scoreboard(of(**{**honest, "anp": best})) != scoreboard(of(**honest))
