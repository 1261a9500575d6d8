"""Made-up runs on which the first rules said "holds" though nothing of the claim was true.

Each of these gets another verdict now: that the claim fails, is open, or was not tested.
"""

import pandas as pd
import pytest

from ppr_core.reporting.evidence import BASELINES, Evidence
from tests.reporting.made_up import (
    ALL,
    PAM,
    ROW,
    all_with,
    along,
    asked,
    attacks,
    cells,
    grid,
    line,
    of,
    spanning,
    transferred,
    verdict,
)

AWAKE = {"o_asr": 97.0, "p_asr": 99.0}  # never purified
HALF = {"o_asr": 16.0, "q_p_asr": 99.0}  # lifted high, but not purified
PURIFIED_ROWS = {"badnet": 0.9, "blended": 0.5, "ssba": 0.5, "lc": 0.9}
REFUTED, UNTESTED = ("no", "fails", "open"), ("not tested",)


def one_rho():
    """PAM at 0.9 for all attacks, fine; at the paper's rho for Blended it is not."""
    low = {**PAM, "rho": 0.5, "o_asr": 30.0, "p_asr": 60.0, "o_c_acc": 70.0}
    rows = [cells(at={"attack": a}, ep=2.0, none={"o_c_acc": 93.0}, pam=PAM) for a in PURIFIED_ROWS]
    rows += [cells(at={"attack": a}, pam=low) for a in ("blended", "ssba")]
    return Evidence(pd.concat(rows, ignore_index=True))


def sleepers():
    """A slope that only models which were never purified give."""
    near = [{"path_distance": 0.0, "distance": 1.0 + i, **AWAKE} for i in range(3)]
    far = [{"path_distance": 4.0 + i, "distance": 9.0, "p_asr": 20.0 + 3 * i} for i in range(5)]
    names = [*BASELINES, "ep", "ft", "nad"]
    made = [
        cells(at={"attack": attack, "seed": seed}, **dict(zip(names, far + near, strict=True)))
        .assign(seed=seed)
        for attack in ("badnet", "blended", "ssba")
        for seed in range(3)
    ]  # fmt: skip
    return Evidence(pd.concat(made, ignore_index=True))


def coarse():
    """At the last point before 0.5, t = 0.33, ASR is high; at 0.5 it has gone."""
    errors, ts = [0, 10, 70, 99, 99, 99, 99], [i / 6 for i in range(7)]
    return along(line(errors, BASELINES, ts=ts), line([0, 99, 99, 99, 99, 99, 99], ["ep"], ts=ts))


def self_control():
    """A generator learnt on the clean model does nothing; those of purified models do."""
    clean = {"q_p_asr": 1.0, "q_c_asr": 1.0}
    bad = {"q_unseen_p_asr": 70.0, "q_unseen_c_asr": 65.0, "q_p_asr": 75.0, "q_c_asr": 2.0}
    return of(clean=clean, **all_with(**bad))


def alone(**columns):
    """The clean model's own generators fall from 80 to 5; what purified models' do is given."""
    points = [("clean", "qra, no surrogate", 80, 1), ("clean", "qra", 5, 1)]
    return asked(*points, **all_with(**columns), clean={"q_p_asr": 5.0})


def universal_only():
    """QRA leaves clean images alone on the purified models, and wakes the clean model as well."""
    kinds = (("qra", 80, 1), ("universal", 20, 15))
    points = [(name, *kind) for name in BASELINES for kind in kinds]
    return asked(*points, **all_with(q_p_asr=80.0, q_unseen_p_asr=79.0, q_unseen_c_asr=2.0))


def among_others():
    """Only pairs of FT, PAM and models that are not purified reach 32."""
    rows = {**ALL, "ft": AWAKE, "bti": AWAKE, "pam": PAM}
    pairs = [("ft", "bti", 90.0), ("bti", "ft", 90.0), ("pam", "ft", 80.0)]
    return transferred(*pairs, ("fst", "ibau", 2.0), ("ibau", "fst", 2.0), **rows)


# Claim -> (made-up runs, what may be said of the claim now).
FOOLED = {
    1: (Evidence(attacks(badnet=ALL, blended={**ALL, "bti": 12.0})), REFUTED),  # a mean of 51
    3: (of(anp=AWAKE | {"p_asr": 82.0}, anp_oracle=AWAKE, fst=AWAKE), UNTESTED),
    4: (of(anp={"o_asr": 1.0}, anp_oracle={"o_asr": 12.0}, fst={"o_asr": 1.5}, bti=2.0), REFUTED),
    16: (
        spanning(
            cells(**ALL),
            cells(at={"model": "densenet161"}, anp={"o_asr": 60.0}, anp_oracle={"o_asr": 2.0}),
            cells(at={"attack": "blended", "poison_rate": 0.01}, ft_sam={"o_asr": 50.0}),
        ),
        REFUTED,
    ),
    20: (of(**{**all_with(q_p_asr=40.0), "fst": HALF, "bti": HALF, "ft_sam": HALF}), REFUTED),
    22: (self_control(), REFUTED),
    23: (alone(q1_clean_p_asr=3.0), REFUTED),
    24: (alone(q1_clean_p_asr=80.0, qe_clean_p_asr=5.0, qe_p_asr=4.0), REFUTED),  # wakes nothing
    25: (universal_only(), REFUTED),
    26: (among_others(), REFUTED),
    32: (coarse(), REFUTED),
    33: (sleepers(), REFUTED),
    36: (of(**all_with(barrier=10.0) | {"bti": {"barrier": 70.0}},
            pam={**PAM, "barrier": 60.0}), REFUTED),
    **dict.fromkeys((41, 42, 44, 45, 46), (one_rho(), REFUTED)),
    49: (of(**{**all_with(o_c_acc=90.0), "fst": {"o_c_acc": 96.0}}, pam=PAM), REFUTED),
    51: (grid(barrier=[5, 60, 2, 1, 6]), REFUTED),
    52: (grid(o_c_acc=[93.0, 89.5, 94.0, 89.6, 92.9]), REFUTED),
    56: (grid(distance=[5, 9, 1, 2, 5.1]), REFUTED),
}  # fmt: skip


@pytest.mark.parametrize("number", FOOLED)
def test_what_fooled_the_first_rules_fools_no_more(number):
    evidence, expected = FOOLED[number]
    assert verdict(number, evidence).verdict in expected, verdict(number, evidence)


def test_a_models_own_pam_beside_ep_is_not_comparable_when_it_is_far_better():
    """ "Comparable" and "about" have two sides."""
    better = {"o_asr": 1.0, "p_asr": 1.0}
    assert verdict(42, of(pam=PAM | better, ep=40.0)).verdict == "no"
    free = of(none={"o_c_acc": 91.0}, pam=PAM | {"o_c_acc": 96.0})
    assert verdict(45, free).verdict == "no", "a gain of C-Acc is no loss of about 2"
    assert verdict(20, of(**all_with(q_p_asr=99.0))).verdict == "no"
    assert ROW["o_asr"] == 2.0


def test_a_defense_that_doubts_its_own_inversion_is_not_judged():
    rows = cells(**{**ALL, "bti": 3.0}).assign(warnings="")
    assert verdict(1, Evidence(rows)).verdict == "no"
    rows.loc[rows["defense"] == "bti", "warnings"] = "uncertain label: it has 30% of the votes"
    found = verdict(1, Evidence(rows))
    assert found.verdict == "yes"
    assert "bti/badnet: it doubts its own work" in found.left_out
    rows["warnings"] = "short search: 90% of its steps only lowered the image MSE"
    assert verdict(1, Evidence(rows)).verdict == "no", "that is no reason to look away"


def test_an_attack_that_did_not_implant_judges_no_defense_but_itself():
    rows = cells(**{**ALL, "none": {"o_asr": 40.0}, "clean": 3.0})
    assert verdict(1, Evidence(rows)).verdict == "not tested"
    assert verdict(59, Evidence(rows)).verdict == "no"
    assert verdict(5, Evidence(rows)).verdict == "yes"
    assert verdict(1, Evidence(cells(**{**ALL, "none": {"o_asr": 99.0}}))).verdict == "yes"
