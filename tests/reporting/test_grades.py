"""Grades of evidence: what a verdict is worth, its interval, and what was left out."""

import numpy as np
import pandas as pd
import pytest

from ppr_core.reporting import claims
from ppr_core.reporting.claims.base import CIFAR10, EVERY
from ppr_core.reporting.evidence import BASELINES, Evidence, Span, by_seed
from ppr_core.reporting.rules import bounds, rules
from tests.reporting.made_up import ALL, PAM, cells, of, spanning, verdict, whole


def changed(evidence, **columns):
    return Evidence(evidence.cells.assign(**columns))


def test_the_papers_setting_and_three_seeds_decide():
    found = verdict(5, whole(EVERY, clean=4.0))
    assert (found.verdict, found.grade, found.seeds, found.cells) == ("holds", "decided", 3, 25)
    assert found.left_out == ""
    assert verdict(5, whole(EVERY, clean=40.0)).verdict == "fails"


@pytest.mark.parametrize(
    ("columns", "grade", "scale"),
    [
        ({"level": "smaller", "scale": "width 16 (64)"}, "indicated", "width 16 (64)"),
        ({"level": "other", "scale": "drawn images"}, "seen", "drawn images"),
        ({"level": None, "scale": None}, "seen", "scale not recorded"),
    ],
)
def test_another_scale_is_worth_less_and_is_told(columns, grade, scale):
    found = verdict(5, changed(whole(EVERY, clean=4.0), **columns))
    assert found.grade == grade
    assert f"at another scale: {scale}" in found.left_out


def test_how_qra_was_taken_grades_what_is_said_of_qra_alone():
    rows = {n: {"q_p_asr": 65.0, "qe_p_asr": 65.0, "p_asr": 90.0} for n in BASELINES}
    made = whole([("cifar10", "resnet18", 0.05)], **rows)
    made = changed(made, measure_scale="query_ep width 8 (1024); path points 3 (21)")
    found = verdict(20, made)
    assert found.grade == "seen" and "query_ep width 8 (1024)" in found.left_out
    assert "points" not in found.left_out
    assert verdict(20, changed(made, measure_scale="")).grade == "decided"
    assert "query" not in verdict(1, made).left_out


def test_what_did_not_implant_judges_no_defense_whatever_its_settings():
    made = cells(none={"o_asr": 20.0}, fst=90.0, bti=90.0)
    made.loc[made["defense"] == "fst", "scale"] = "fst: other alpha"
    assert set(Evidence(made).done()["defense"]) == {"none"}


def test_one_seed_is_seen_and_has_no_interval():
    found = verdict(5, of(clean=4.0))
    assert (found.verdict, found.grade, found.seeds) == ("yes", "seen", 1)
    assert "[" not in found.ours
    two = Evidence(pd.concat([cells(clean=4.0), cells(clean=5.0).assign(seed=1)]))
    assert verdict(5, two).grade == "seen", "two seeds are too few"


def test_a_smaller_study_does_not_mix_with_one_of_the_papers_own():
    exact = whole(EVERY, clean=4.0).cells
    small = exact.assign(level="smaller", scale="width 16 (64)", p_asr=60.0)
    assert verdict(5, spanning(small, exact)).verdict == "holds"
    assert verdict(5, spanning(small, exact)).grade == "decided"


def test_a_claim_about_all_settings_is_open_until_all_are_there():
    found = verdict(6, whole(CIFAR10, ep=4.0))
    assert (found.verdict, found.grade) == ("open", "decided")
    assert "not asked in cifar10 resnet18 0.01, cifar100" in found.left_out
    assert verdict(6, whole(CIFAR10, ep=40.0)).verdict == "fails", "one setting refutes it"


def test_a_setting_that_no_claim_is_about_is_judged_only_where_no_other_is_there():
    drawn = cells(at={"dataset": "shapes", "level": "other", "scale": "drawn images"}, clean=40.0)
    assert verdict(5, Evidence(drawn)).verdict == "no"
    assert verdict(5, spanning(drawn, cells(clean=4.0))).verdict == "yes"
    assert verdict(5, spanning(drawn.iloc[:0], drawn)).verdict == "not tested"


def test_an_interval_across_the_limit_is_open():
    rows = [cells(clean=value).assign(seed=seed) for seed, value in enumerate((2.0, 9.0, 16.0))]
    found = verdict(5, Evidence(pd.concat(rows)))
    assert found.verdict == "open"
    assert "9.0 [-8.4, 26.4]" in found.ours  # 9 +- 4.3027 * 7 / sqrt(3)


def test_rows_of_one_seed_are_one_observation():
    many = pd.DataFrame({"seed": [0] * 50 + [1] * 50, "x": [1.0] * 50 + [3.0] * 50})
    span = Span.of(by_seed(many, "x"))
    assert span.seeds == 2
    assert (span.low, span.high) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-2)


def test_an_interval_holds_its_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    spans = [Span.of(rng.normal(5, 2, 3)) for _ in range(400)]
    assert 0.92 <= np.mean([s.low <= 5 <= s.high for s in spans]) <= 0.98


def test_every_cell_counts_and_the_worst_is_named():
    one = whole(EVERY, **ALL)
    assert verdict(1, one).verdict == "holds"
    bad = one.cells["defense"].eq("bti") & one.cells["model"].eq("resnet50")
    bad &= one.cells["attack"].eq("badnet")
    found = verdict(1, Evidence(one.cells.assign(p_asr=one.cells["p_asr"].where(~bad, 12.0))))
    assert found.verdict == "fails", "means would be 88"
    assert "124 of 125 within; worst cifar10/resnet50/badnet/bti" in found.ours


def test_what_is_not_purified_is_left_out_and_counted():
    found = verdict(1, of(**{**ALL, "bti": {"o_asr": 40.0, "p_asr": 1.0}}))
    assert found.verdict == "yes"
    assert "1 of 5 rows, not purified (worst O-ASR bti/badnet 40.0)" in found.left_out
    assert found.cells == 4


def test_pam_at_another_rho_is_only_seen():
    grade = verdict(41, whole(CIFAR10, pam=PAM)).grade
    other = verdict(41, whole(CIFAR10, pam={**PAM, "rho": 0.5}))
    assert (grade, other.grade) == ("decided", "seen")
    assert "PAM at rho 0.5 against badnet (the paper: 0.9)" in other.left_out


def test_anp_by_validation_stands_in_only_where_the_papers_is_missing():
    honest = {name: 90.0 for name in BASELINES if name != "anp_oracle"} | {"anp": 90.0}
    found = verdict(60, whole(EVERY, **honest))
    assert found.grade == "indicated"
    assert "anp, chosen by validation, stands in" in found.left_out
    both = verdict(60, whole(EVERY, **honest, anp_oracle={"o_asr": 1.0}))
    assert (both.grade, both.cells) == ("decided", 125)


def test_the_head_counts_by_grade_and_never_over_grades():
    verdicts = claims.scoreboard(whole(EVERY, clean=4.0, ep=40.0))
    assert claims.tally(verdicts) == (
        "claims of the paper, by grade: decided: 1 holds, 1 fails; indicated: none; seen: none; "
        "from the paper's text and tables: 3 partly, 2 no; not tested: 53"
    )


def test_the_rules_are_data_with_a_version_and_dated_changes():
    data = rules()
    assert data["version"] == data["changes"][-1]["version"] >= 2
    assert all({"date", "what", "why"} <= {*change} for change in data["changes"])
    assert bounds(20)[:2] == pytest.approx((56.13, 76.13))
    assert bounds(41) == (float("-inf"), 4.5, True)
    tested = {claim.number for claim in claims.CLAIMS if claim.test}
    assert {*data["limits"]} <= tested, "a limit that nothing asks for"
