"""Least squares over the models of a study, such as P-ASR by distance and barrier."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ppr_core.errors import DataError, need


def regress(
    response: Sequence[float],
    predictors: Mapping[str, Sequence[float]],
    *,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """Fit a response linearly by ordinary least squares.

    Args:
        response: one value a model.
        predictors: by name, one value a model each.
        confidence: of the intervals, which are Student's.

    Returns:
        One row a coefficient, the intercept first: coefficient (its predictor), value, low and high
        (its confidence interval), r2 (share of the variance explained) and models (their number).

    Raises:
        DataError: fewer models than a fit with an interval takes, values that are not finite, or
            predictors that determine one another.
    """
    import statsmodels.api as sm  # takes a second to import, and only this function needs it

    y = np.asarray(response, float)
    columns = {name: np.asarray(values, float) for name, values in predictors.items()}
    x = pd.DataFrame({"intercept": np.ones(len(y)), **columns})
    count, terms = x.shape
    need(
        count > terms,
        f"expected more than {terms} models for {terms} coefficients, got {count}",
        DataError,
    )
    need(
        np.isfinite(x.to_numpy()).all() and np.isfinite(y).all(),
        "expected finite values",
        DataError,
    )
    need(
        np.linalg.matrix_rank(x / x.abs().max().clip(lower=1e-300)) == terms,
        f"expected predictors that vary independently, got {', '.join(predictors)}; drop one",
        DataError,
    )
    found = sm.OLS(y, x.to_numpy()).fit()
    r2 = found.rsquared if np.ptp(y) else float("nan")
    return [
        {"coefficient": name, "value": value, "low": low, "high": high, "r2": r2, "models": count}
        for name, value, (low, high) in zip(
            x.columns, found.params, found.conf_int(1 - confidence), strict=True
        )
    ]
