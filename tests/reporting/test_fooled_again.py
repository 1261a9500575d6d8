"""Made-up runs on which the rules of version 3 said "holds" (or "no") against what they show."""

import numpy as np
import pandas as pd
import pytest

from ppr_core.reactivation.gates import Gates
from ppr_core.reporting import claims
from ppr_core.reporting.claims.base import CIFAR10, EVERY, MAIN
from ppr_core.reporting.evidence import BASELINES, Evidence
from ppr_core.reporting.rules import threshold
from tests.reporting.made_up import (
    ALL,
    FROM_SCRATCH,
    IMAGENET,
    PAM,
    ROW,
    all_with,
    along,
    at_rate,
    attacks,
    cells,
    everywhere,
    grid,
    line,
    of,
    on_both,
    retuned,
    spanning,
    verdict,
    whole,
)

REFUTED, UNTESTED = ("no", "fails", "open"), ("not tested",)
UNPURIFIED = {**PAM, "o_asr": 99.0, "p_asr": 99.4, "o_c_acc": 93.0}
DEAD = {**PAM, "o_asr": 0.0, "p_asr": 0.0, "o_c_acc": 10.0, "p_c_acc": 10.0}
BACKDOORED = {"o_asr": 99.0, "o_c_acc": 93.0}
FLAT = {"barrier": 0.0}
IDLE = {"q_p_asr": 2.0, "q_c_asr": 1.0, "q_unseen_p_asr": 1.0, "q_unseen_c_asr": 1.0}
IDLE |= {"qe_p_asr": 2.0, "qe_c_asr": 1.0, "qe_clean_p_asr": 1.0, "qe_clean_c_asr": 1.0}
WORKING = {"qe_p_asr": 80.0, "qe_c_asr": 1.0, "qe_clean_p_asr": 1.0, "qe_clean_c_asr": 1.0}
SCORED = ("self", "backdoored", "ep", "clean", "clean_unseen")
LOW = {"barrier": 20.0}


def scored(own, woken, universal):
    """QRA scored on five models, a universal perturbation on one: (P-ASR, C-ASR) of each."""
    pairs = dict(zip(SCORED, (own, woken, (2, 2), (2, 2), (2, 2)), strict=True))
    rows = [
        (name, kind, model, *pair)
        for name in BASELINES
        for kind in ("qra", "qra, eq. 2")
        for model, pair in pairs.items()
    ] + [(name, "universal", "self", *universal) for name in BASELINES]
    frame = pd.DataFrame(rows, columns=["defense", "perturbation", "scored", "p_asr", "c_asr"])
    frame = frame.assign(attack="badnet", seed=0, eps=16 / 255)
    more = frame.assign(eps=64 / 255, p_asr=100.0, c_asr=0.0)
    by = {"qe_p_asr": own[0], "qe_clean_p_asr": 2.0, "qe_clean_c_asr": 2.0}
    by |= {"q_p_asr": own[0], "q_unseen_p_asr": 2.0, "q_unseen_c_asr": 2.0}
    return Evidence(cells(**all_with(**by)), queries=pd.concat([frame, more]))


def by_attack_alone():
    """Distance and P-ASR both set by the attack; none of either within an attack."""
    rng, rows = np.random.default_rng(0), []
    for attack, far, p_asr in (("badnet", 0.5, 95), ("blended", 2, 55), ("ssba", 4, 8)):
        for seed in range(3):
            for name in BASELINES:
                own = {"path_distance": far + rng.normal(0, 0.3), "distance": rng.uniform(5, 9)}
                own |= {"p_asr": p_asr + rng.normal(0, 2), "attack": attack, "seed": seed}
                rows.append({**ROW, "defense": name, "barrier": rng.uniform(0, 50), **own})
    return Evidence(pd.DataFrame(rows))


def oracle_alone():
    """Baselines that all wake, whatever their distance; only EP is far, and asleep."""
    rng, rows = np.random.default_rng(0), []
    for attack in ("badnet", "blended", "ssba"):
        for seed in range(3):
            for name in [*BASELINES, "ep"]:
                far = name == "ep"
                own = {"path_distance": 6.0 * far + rng.uniform(0, 1), "attack": attack}
                own |= {"p_asr": 2.0 if far else 90 + rng.normal(0, 3), "seed": seed}
                rows.append({**ROW, "defense": name, **own})
    return Evidence(pd.DataFrame(rows))


def slow():
    """Purified models at 5 % that wake late, beside quick ones at other rates, never purified."""
    awake = all_with(o_asr=16.0, p_asr=99.0)
    late = retuned(2, 3, 4, 90)
    about = {"dataset": "cifar10", "model": "resnet18"}
    parts = [late.histories.assign(**about, poison_rate=0.05)]
    quick = retuned(16, 99, 99, 99).histories
    parts += [quick.assign(**about, poison_rate=rate) for rate in (0.01, 0.1)]
    others = [cells(at={"poison_rate": rate}, **awake) for rate in (0.01, 0.1)]
    return Evidence(late.cells, further=pd.concat(others), histories=pd.concat(parts))


def idle():
    """RA wakes nothing: the share of a rise that is not there is anything."""
    return Evidence(
        cells(**dict.fromkeys(BASELINES, 2.0)), histories=retuned(2, 2, 3, 2.2, 2).histories
    )


def from_scratch(epochs):
    parts = []
    for name in ("cifar100", "tiny_imagenet"):
        scale = f"pretrained False (True); training epochs {epochs} (10)"
        level = {"dataset": name, "model": FROM_SCRATCH, "level": "smaller", "scale": scale}
        parts.append(cells(at=level, seeds=3, clean={"o_c_acc": 20.0}))
        parts.append(cells(at={"dataset": name, **IMAGENET}, seeds=3, clean={"o_c_acc": 75.0}))
    return spanning(*parts)


def faint_labels():
    at = {"attack": "lc", "poison_rate": 0.0001, "level": "other"}
    return on_both({"none": {"o_asr": 2.0}}, **at, scale="poison rate 0.0001; attack lc")


def scattered(**columns):
    """Three attacks, each with one seed of its own."""
    made = [
        cells(at={"attack": attack}, **all_with(**columns)).assign(seed=seed)
        for seed, attack in enumerate(("badnet", "blended", "ssba"))
    ]
    return Evidence(pd.concat(made, ignore_index=True))


def alone(name, p_asr=90.0, **at):
    return cells(at=at, **{name: p_asr})


BLENDED = {**PAM, "rho": 0.5}
IN_TWO = {"bti": {"o_asr": 40.0}, "fst": {"o_asr": 2.0}}
FOOLED = [
    # PAM that never purified
    (46, whole(CIFAR10, pam=UNPURIFIED), UNTESTED),
    (47, at_rate(0.01, {"pam": UNPURIFIED}), UNTESTED),
    (48, on_both({"pam": UNPURIFIED}), UNTESTED),
    (45, of(none=BACKDOORED, pam={**UNPURIFIED, "o_c_acc": 91.0}), UNTESTED),
    (49, of(**ALL, pam=UNPURIFIED), UNTESTED),
    (36, of(**all_with(barrier=20.0), pam={**UNPURIFIED, "barrier": 60.0}), UNTESTED),
    (40, along(line([0, 0, 1, 2, 3], ["ep", "pam"]),
               rows={"ep": {"o_asr": 97.0}, "pam": UNPURIFIED}), UNTESTED),
    (46, Evidence(attacks(badnet={"pam": PAM}, blended={"pam": {**UNPURIFIED, "rho": 0.5}})),
     REFUTED),
    (53, Evidence(grid(p_asr=[99, 90, 70]).cells.assign(o_asr=[98, 88, 60])), UNTESTED),
    (54, grid(p_asr=[98, 97, 97]), REFUTED),
    # models that have lost their accuracy
    *((number, of(**ALL, none=BACKDOORED, pam=DEAD), UNTESTED) for number in (41, 43, 44, 46)),
    (60, of(none=BACKDOORED, **all_with(o_asr=0.0, o_c_acc=10.0)), UNTESTED),
    (41, Evidence(attacks(badnet={"none": BACKDOORED, "pam": PAM},
                          blended={"none": BACKDOORED, "pam": {**DEAD, "rho": 0.5}})), REFUTED),
    # ties
    (36, whole(CIFAR10, **all_with(**FLAT), pam={**PAM, **FLAT}), REFUTED),
    (19, whole(MAIN, bti={"o_asr": 2.0}, bti_p={"o_asr": 2.0}), REFUTED),
    (4, whole(CIFAR10, **ALL), REFUTED),
    (34, along(line([0, 98, 98, 98, 98], BASELINES)), REFUTED),
    (14, at_rate(0.01, IN_TWO, attack="lc"), REFUTED),
    (17, at_rate(0.002, IN_TWO), REFUTED),
    # means over other attacks than those of the other side, and errors that cancel
    (43, Evidence(attacks(badnet={"pam": PAM, "bti": 4.0, "fst": 4.0},
                          blended={"bti": 90.0, "fst": 90.0})), REFUTED),
    (4, Evidence(attacks(badnet={"anp_oracle": {"o_asr": 2.0}, "fst": {"o_asr": 2.0},
                                 "bti": {"o_asr": 0.5}}, blended={"bti": {"o_asr": 12.0}})),
     REFUTED),
    (42, Evidence(attacks(badnet={"pam": {**PAM, "p_asr": 40.0}, "ep": 2.0},
                          blended={"ep": 78.0})), REFUTED),
    (42, Evidence(attacks(badnet={"pam": {**PAM, "p_asr": 42.0}, "ep": 2.0},
                          blended={"pam": {**BLENDED, "p_asr": 2.0}, "ep": 42.0})), REFUTED),
    (45, Evidence(attacks(badnet={"none": {"o_c_acc": 99.0}, "pam": PAM},
                          blended={"none": {"o_c_acc": 87.0}})), REFUTED),
    (9, of(bti={"p_c_acc": 81.0}, fst={"p_c_acc": 103.0}), REFUTED),
    (2, spanning(pd.concat([alone("bti"), alone("fst")]), alone("bti", poison_rate=0.01),
                 alone("fst", model="resnet50"),
                 alone("ibau", 20.0, dataset="cifar100", **IMAGENET)), UNTESTED),
    # rises that are none, other rates, other budgets
    (11, idle(), UNTESTED),
    (11, slow(), REFUTED),
    (15, faint_labels(), UNTESTED),
    (18, from_scratch(1), UNTESTED),
    # QRA
    (21, of(**all_with(**IDLE)), UNTESTED),
    (22, of(**all_with(**IDLE)), UNTESTED),
    (22, of(**{**all_with(**WORKING), "fst": {**WORKING, "qe_clean_p_asr": 40.0}}), REFUTED),
    (24, of(**all_with(q1_clean_p_asr=95.0, qe_clean_p_asr=70.0, qe_p_asr=80.0)), REFUTED),
    (20, of(**all_with(q_p_asr=68.0, qe_p_asr=2.0)), REFUTED),
    (25, scored((60, 58), (100, 3), (40, 45)), REFUTED),
    (25, scored((62, 2), (100, 95), (20, 15)), ("yes",)),  # was "no"
    (27, everywhere(90, 90, 90, column="q_p_asr", q_unseen_p_asr=95.0, q_unseen_c_asr=9.0),
     REFUTED),
    # the regression
    (33, by_attack_alone(), REFUTED),
    (33, oracle_alone(), REFUTED),
]  # fmt: skip


@pytest.mark.parametrize(("number", "evidence", "expected"), FOOLED)
def test_what_fooled_the_third_rules_fools_no_more(number, evidence, expected):
    found = verdict(number, evidence)
    assert found.verdict in expected, found


def test_what_decides_is_whole():
    """All attacks and defenses of the paper's tables, and three seeds in each cell."""
    assert verdict(60, whole(EVERY, **ALL)).grade == "decided"
    few = whole(EVERY, bti=90.0, fst=90.0).cells
    found = verdict(60, Evidence(few[few["attack"] == "badnet"]))
    assert found.grade == "indicated"
    assert "not measured: 97 of 111 cells (anp_oracle/badnet, " in found.left_out
    assert verdict(20, scattered(qe_p_asr=68.0)).grade == "seen", "a seed a cell"
    assert verdict(20, scattered(qe_p_asr=68.0)).seeds == 1
    both = whole(MAIN, **all_with(q_p_asr=68.0, qe_p_asr=68.0))
    assert (verdict(20, both).verdict, verdict(20, both).grade) == ("holds", "decided")
    assert "the authors' form: rise" in verdict(20, both).ours
    authors = verdict(20, Evidence(both.cells.drop(columns="qe_p_asr")))
    assert (authors.verdict, authors.grade) == ("holds", "indicated")
    assert "eq. 2 with EP as surrogate (query_ep): not measured" in authors.left_out


def test_a_lost_accuracy_is_no_evidence_but_of_what_it_costs_and_is_counted():
    lost = {"o_c_acc": 75.0, "o_asr": 0.0, "p_asr": 0.0}
    rows = {**ALL, "none": BACKDOORED, "bti": lost}
    found = verdict(1, of(**rows))
    assert found.verdict == "yes"
    assert "bti/badnet: it lost more than 10 points of C-Acc (1 row)" in found.left_out
    assert verdict(45, of(none=BACKDOORED, pam={**PAM, "o_c_acc": 75.0})).verdict == "no"
    assert threshold("lost") == Gates().lost


def test_a_claim_without_a_purified_model_says_so():
    found = verdict(46, of(pam=UNPURIFIED))
    assert found.left_out == "1 of 1 rows, not purified (worst O-ASR pam/badnet 99.0)"
    frame = claims.board([found])
    assert frame["ours"].item().startswith("needs ") and frame["left out"].item()


def test_pam_is_not_judged_at_another_rho_where_it_is_withheld_at_the_papers():
    rows = cells(none=BACKDOORED, pam=DEAD)
    other = cells(pam={**PAM, "rho": 0.5})
    found = verdict(41, Evidence(pd.concat([rows, other], ignore_index=True)))
    assert found.verdict == "not tested"
    assert "pam/badnet: it lost more than 10 points" in found.left_out


def test_a_mean_has_its_interval_beside_the_worst_cell_and_a_trend_has_one():
    rows = whole(MAIN, **{**ALL, "bti": 80.0})
    assert "; worst " in verdict(1, rows).ours and "; mean 88.0 [" in verdict(1, rows).ours
    found = verdict(51, grid(seeds=3, barrier=[5, 20, 40]))
    assert "from the smallest to the largest 35.0 [35.0, 35.0]" in found.ours
