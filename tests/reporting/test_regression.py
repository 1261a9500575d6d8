import math

import numpy as np
import pytest

from ppr_core.errors import DataError
from ppr_core.reporting.regression import regress


def fitted(response, predictors, **named):
    return {row["coefficient"]: row for row in regress(response, predictors, **named)}


def test_regression_by_hand():
    """y = x on (0, 0), (1, 2), (2, 1), (3, 3): slope 0.8, residual 1.8, t(2) = 4.3027."""
    found = fitted([0, 2, 1, 3], {"x": [0, 1, 2, 3]})
    slope = found["x"]
    assert slope["value"] == pytest.approx(0.8)
    reach = (slope["high"] - slope["low"]) / 2
    assert reach == pytest.approx(4.302653 * math.sqrt(0.9 / 5), rel=1e-5)
    assert found["intercept"]["value"] == pytest.approx(0.3)
    assert (slope["r2"], slope["models"]) == (pytest.approx(1 - 1.8 / 5), 4)


def test_regression_finds_the_coefficients_and_covers_them():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        distance, rise = rng.uniform(0, 20, 30), rng.uniform(0, 80, 30)
        p_asr = 90 - 3 * distance - 0.5 * rise + rng.normal(0, 5, 30)
        found = fitted(p_asr, {"distance": distance, "barrier": rise})
        inside += found["distance"]["low"] <= -3 <= found["distance"]["high"]
    assert 180 <= inside <= 198  # 95 % of 200
    narrow = fitted(p_asr, {"distance": distance, "barrier": rise}, confidence=0.5)["barrier"]
    assert found["barrier"]["low"] < narrow["low"] < narrow["high"]
    assert math.isnan(fitted([5, 5, 5, 5], {"x": [1, 2, 3, 5]})["x"]["r2"])


@pytest.mark.parametrize(
    ("response", "predictors", "message"),
    [
        ([1, 2], {"x": [1, 2]}, "more than 2 models"),
        ([1, 2, math.nan], {"x": [1, 2, 4]}, "finite values"),
        ([1, 2, 3, 5], {"x": [1, 2, 3, 4], "y": [2, 4, 6, 8]}, "vary independently, got x, y"),
    ],
)
def test_regressions_that_cannot_be_had(response, predictors, message):
    with pytest.raises(DataError, match=message):
        regress(response, predictors)
