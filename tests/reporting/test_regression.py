"""What foretells P-ASR: the regression behind claim 33."""

import numpy as np
import pandas as pd
import pytest

from ppr_core.reporting.regression import explained
from tests.reporting.made_up import ROW

WHO = ["ep", "anp_oracle", "ibau", "ft_sam", "fst", "bti"]


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
    assert (found["models"], found["clusters"], found["by"]) == (54, "3 x 3", "seed and attack")
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
        rows = models(noise=0.0, seeds=4, attacks=("badnet", "blended", "ssba", "lc"), rng=turn)
        errors = rng.normal(0, 9, 4)[rows["seed"]]
        found = fit(rows.assign(p_asr=rows["p_asr"] + errors))
        inside.append(found["low"] <= -3 <= found["high"])
    assert np.mean(inside) >= 0.8, "errors taken for independent cover a third of them"


def test_too_few_models_give_no_fit():
    assert not len(explained(models().iloc[:4]))
    assert not len(explained(models().drop(columns=["path_distance", "distance", "t_star"])))
