"""What foretells P-ASR: the regression behind claim 33."""

import numpy as np
import pandas as pd
import pytest

from ppr_core.reporting.evidence import Evidence
from ppr_core.reporting.regression import beyond, explained, sentences
from tests.reporting.made_up import ROW, verdict

WHO = ["anp", "nad", "ibau", "ft_sam", "fst", "bti"]


def models(slope=-3.0, noise=2.0, attacks=("badnet", "blended", "ssba"), seeds=3, rng=0):
    """Purified models whose P-ASR falls with the distance along the path."""
    rng = np.random.default_rng(rng)
    rows = [
        {**ROW, "attack": attack, "seed": seed, "defense": name, "path_distance": far}
        for attack in attacks
        for seed in range(seeds)
        for name, far in zip(WHO, rng.uniform(0, 20, len(WHO)), strict=True)
    ]
    rows = pd.DataFrame(rows)
    rows["p_asr"] = 90 + slope * rows["path_distance"] + rng.normal(0, noise, len(rows))
    return rows.assign(distance=rng.uniform(5, 9, len(rows)), barrier=1.0, t_star=0.5)


def fit(rows, predictor="path_distance", who="without PAM", statistics="as they are"):
    table = explained(rows)
    table = table[table["statistics"] == statistics]
    found = table[(table["predictor"] == predictor) & (table["who"] == who)]
    return found.iloc[0] if len(found) else None


def test_the_slope_is_found_with_its_interval():
    found = fit(models())
    assert found["slope"] == pytest.approx(-3, abs=0.2)
    assert found["low"] < -3 < found["high"] < 0
    assert (found["models"], found["clusters"], found["by"]) == (54, 9, "victim")
    assert abs(fit(models(), "distance")["slope"]) < 15
    assert fit(models(), "barrier") is None, "what does not vary explains nothing"


def test_by_hand():
    """y = x on (0, 0), (1, 2), (2, 1), (3, 3), (4, 4): slope 0.9, R2 0.81."""
    rows = models(attacks=("badnet",), seeds=1).iloc[:5]
    rows = rows.assign(path_distance=[0, 1, 2, 3, 4], p_asr=[0.0, 2, 1, 3, 4])
    found = fit(rows)
    assert (found["slope"], found["r2"]) == (pytest.approx(0.9), pytest.approx(0.81))
    assert np.isnan(found["low"]), "one victim is no ground for an interval"
    assert found["by"] == "victim"


def test_paths_with_recalibrated_batch_norm_are_a_regression_of_their_own():
    rows = models()
    assert fit(rows, statistics="recalibrated") is None
    rows["rc_path_distance"] = -2 * rows["path_distance"]
    assert fit(rows, statistics="recalibrated")["slope"] == pytest.approx(1.5, abs=0.1)
    assert fit(rows)["slope"] == pytest.approx(-3, abs=0.2)


def test_models_that_were_never_purified_make_no_slope():
    rows = models(slope=0.0)
    awake = models(slope=0.0, rng=1).assign(o_asr=98.0, p_asr=99.0, path_distance=0.0)
    found = fit(pd.concat([rows, awake], ignore_index=True))
    assert found["slope"] == pytest.approx(fit(rows)["slope"])
    assert found["models"] == len(rows)


def test_ep_and_oracles_are_explained_by_no_defense():
    rows = models()
    far = models(rng=1).assign(p_asr=2.0, path_distance=60.0)
    exact = far.drop_duplicates(["attack", "seed"]).assign(defense="ep")
    both = pd.concat([rows, exact], ignore_index=True)
    assert fit(both)["slope"] == pytest.approx(fit(rows)["slope"])
    both = both.assign(oracle=both["defense"].isin(["ep", "bti"]))
    assert fit(both)["models"] == 45


def test_pams_rho_grid_counts_once_and_can_be_left_out():
    pam = models(attacks=("badnet",)).assign(defense="pam")
    pam = pam.drop_duplicates(["attack", "seed"])
    grid = pd.concat([pam.assign(rho=r) for r in (0.1, 0.3, 0.5, 0.7, 0.9)])
    rows = pd.concat([models(), grid], ignore_index=True)
    assert fit(rows, who="with PAM")["models"] == 54 + 3
    assert fit(rows, who="without PAM")["models"] == 54


def test_errors_of_one_seed_are_not_independent():
    """Models of one seed share an error: plain errors would be far too sure of themselves."""
    rng = np.random.default_rng(3)
    inside = []
    for turn in range(25):
        rows = models(seeds=4, attacks=("badnet", "blended", "ssba", "lc"), rng=turn)
        errors = rng.normal(0, 9, 4)[rows["seed"]]
        found = fit(rows.assign(p_asr=rows["p_asr"] + errors))
        inside.append(found["low"] <= -3 <= found["high"])
    assert np.mean(inside) >= 0.8, "errors taken for independent cover a third of them"


def test_too_few_models_give_no_fit():
    assert not len(explained(models().iloc[:4]))
    assert not len(explained(models().drop(columns=["path_distance", "distance", "t_star"])))


# -- what a further figure explains beyond distance and barrier ----------------------------------


def with_existence(make, rng=0, **how):
    """Purified models whose P-ASR falls with distance and barrier; an existence made of them."""
    rng = np.random.default_rng(rng)
    rows = models(slope=0.0, noise=0.0, **how)
    count = len(rows)
    rows["distance"], rows["barrier"] = rng.uniform(0, 10, count), rng.uniform(0, 60, count)
    rows["p_asr"] = 80 - 3 * rows["distance"] - 0.5 * rows["barrier"] + rng.normal(0, 2, count)
    rows["existence"] = make(rows, rng)
    return rows


def more(rows, who="without PAM"):
    table = beyond(rows)
    found = table[table["who"] == who]
    return found.iloc[0] if len(found) else None


def test_a_figure_that_says_more_is_found():
    rows = with_existence(lambda rows, rng: rng.uniform(0, 1, len(rows)))
    rows["p_asr"] += 30 * rows["existence"]
    found = more(rows)
    assert found["low"] > 20 and found["slope"] == pytest.approx(30, abs=3)
    assert found["r2"] > found["r2_before"] + 0.1
    assert "explains more of P-ASR beyond distance and barrier (54 models" in sentences(rows)[1]
    rows["existence"] *= -1
    assert "with the opposite sign" in sentences(rows)[1]


def test_by_hand_r2_before_is_that_of_the_other_two_alone_with_a_level_a_victim():
    rows = with_existence(lambda rows, rng: rng.uniform(0, 1, len(rows)))
    rows["p_asr"] += 10 * rows["seed"] - 20 * (rows["attack"] == "badnet")
    levels = pd.get_dummies(rows["attack"] + rows["seed"].astype(str)).to_numpy(float)

    def rest(*columns):
        given = np.column_stack([levels, *(rows[name] for name in columns)])
        found = np.linalg.lstsq(given, rows["p_asr"], rcond=None)[0]
        return ((rows["p_asr"] - given @ found) ** 2).sum(), found[-1]

    found, alone = more(rows), rest()[0]
    assert found["r2_before"] == pytest.approx(1 - rest("distance", "barrier")[0] / alone)
    left, slope = rest("distance", "barrier", "existence")
    assert found["r2"] == pytest.approx(1 - left / alone)
    assert found["slope"] == pytest.approx(slope)


def test_one_that_only_repeats_them_explains_nothing_more():
    """It goes with P-ASR as well as they do: alone it would be taken for the explanation."""

    def copy(rows, rng):
        return 1 - 0.06 * rows["distance"] - 0.01 * rows["barrier"] + rng.normal(0, 0.1, len(rows))

    verdicts = [more(with_existence(copy, rng)) for rng in range(12)]
    assert all(found["shared"] > 0.5 for found in verdicts)
    assert sum(found["low"] <= 0 <= found["high"] for found in verdicts) >= 10
    exact = with_existence(lambda rows, rng: 1 - 0.06 * rows["distance"] - 0.01 * rows["barrier"])
    assert np.isnan(more(exact)["slope"])
    assert "cannot be told from distance and barrier" in sentences(exact)[0]


def test_noise_raises_r2_and_says_nothing():
    rows = with_existence(lambda rows, rng: rng.uniform(0, 1, len(rows)))
    found = more(rows)
    assert found["r2"] > found["r2_before"], "a rise of R2 alone would call it an explanation"
    assert found["low"] <= 0 <= found["high"]
    assert "explains nothing that is told from chance" in sentences(rows)[1]


@pytest.mark.parametrize("shared", ["seed", "attack"])
def test_what_a_victim_s_models_share_is_no_evidence(shared):
    """Existence and P-ASR both vary by seed (or attack) alone: 54 rows, but three levels."""
    told = 0
    for turn in range(20):
        rng = np.random.default_rng(100 + turn)
        rows = with_existence(lambda rows, own: own.normal(0, 0.01, len(rows)), turn)
        level = rows[shared].astype("category").cat.codes
        rows["existence"] += rng.uniform(0, 1, 3)[level]
        rows["p_asr"] += rng.normal(0, 15, 3)[level]
        found = more(rows)
        told += not found["low"] <= 0 <= found["high"]
    assert told <= 3, "pooled, with errors by cluster, 7 of 20 would be told; plainly, nearly all"


def test_both_fits_are_on_the_same_models_and_none_was_awake_before():
    rows = with_existence(lambda rows, rng: rng.uniform(0, 1, len(rows)))
    odd = rows.iloc[:20].assign(existence=None, p_asr=0.0)
    awake = rows.iloc[:20].assign(o_asr=98.0, p_asr=99.0, existence=1.0)
    found = more(pd.concat([rows, odd, awake], ignore_index=True))
    assert found["models"] == len(rows)
    assert found["r2_before"] == pytest.approx(more(rows)["r2_before"])


def test_what_has_lost_its_accuracy_is_no_evidence():
    """Such a model neither wakes nor has traces left: a few of them would make an explanation."""
    rows = with_existence(lambda rows, rng: rng.uniform(0.7, 1, len(rows))).assign(checks="")
    lost = rows.iloc[::6].assign(p_asr=1.0, existence=-0.7, distance=5.0, barrier=30.0)
    both = pd.concat([rows, lost], ignore_index=True)
    assert more(both)["low"] > 0, "unchecked, it seems to explain"
    both.loc[len(rows) :, "checks"] = "The defense costs C-Acc"
    found = more(both)
    assert found["models"] == len(rows) and found["low"] <= 0 <= found["high"]


def test_little_or_no_data_say_nothing():
    rows = with_existence(lambda rows, rng: rng.uniform(0, 1, len(rows)))
    assert sentences(rows.drop(columns="existence")) == []
    assert sentences(rows.iloc[:6]) == []
    one = rows[(rows["seed"] == 0) & (rows["attack"] == "badnet")]
    assert sentences(pd.concat([one, one.assign(existence=one["existence"] + 0.1)]))[0].endswith(
        "so that nothing is said of what it explains beyond them"
    )
    assert sentences(rows.assign(existence=0.5)) == []


def test_the_verdict_on_claim_33_says_it_where_it_was_measured():
    rows = with_existence(lambda rows, rng: rng.uniform(0, 1, len(rows)))
    told = verdict(33, Evidence(rows))
    assert "existence explains nothing that is told from chance" in told.ours
    without = verdict(33, Evidence(rows.drop(columns="existence")))
    assert told.ours.startswith(without.ours) and "existence" not in without.ours
    assert (told.verdict, told.grade) == (without.verdict, without.grade)
