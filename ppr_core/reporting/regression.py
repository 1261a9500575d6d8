"""What foretells P-ASR: regressions over purified models, seeds and attacks as clusters."""

import warnings
from itertools import product

import numpy as np
import pandas as pd
import statsmodels.api as sm

from ppr_core.lab.graph import CLEAN, NO_DEFENSE
from ppr_core.reporting.evidence import CONFIDENCE, SETTING, at_paper_rho, purified

PREDICTORS = ("distance", "path_distance", "barrier", "t_star")
# Batch-norm statistics along the path -> how the columns of its figures begin.
STATISTICS = {"as they are": "", "recalibrated": "rc_"}
LEAST = 3  # clusters, and models more than coefficients, from which there is an interval
COLUMNS = [
    "who",
    "statistics",
    "predictor",
    "slope",
    "low",
    "high",
    "r2",
    "models",
    "clusters",
    "by",
]


def explained(rows: pd.DataFrame) -> pd.DataFrame:
    """Regress P-ASR on each figure of the path, one row a fit; slopes with 95 % intervals.

    Each figure is that of the path with batch-norm statistics as they are, and recalibrated at
    every point, where the study has both; the distance of the ends is one and the same.

    Purified models only; of PAM's rho grid only the one that the paper takes (the others start
    from the same backdoored model and inverted trigger); with PAM and without it. Errors are
    clustered by seed and attack; with fewer than three of either by victim, a seed's model of one
    attack. With fewer than three victims there is no interval.

    Args:
        rows: `results.cells` of a study that measures "path".
    """
    found = []
    for who in ("with PAM", "without PAM"):
        for statistics, name in product(STATISTICS, PREDICTORS):
            column = STATISTICS[statistics] + name
            done = _models(rows, column)
            done = done if who == "with PAM" else done[done["defense"] != "pam"]
            if len(done) >= 2 + LEAST and done[column].nunique() > 1:
                about = {"who": who, "statistics": statistics, "predictor": name}
                found.append({**about, **_fit(done, column)})
    return pd.DataFrame(found, columns=COLUMNS)


def _models(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return one row a purified model that has the figure and went through RA."""
    if not {name, "p_asr", "o_asr"} <= {*rows.columns}:
        return rows.iloc[:0].assign(**{name: pd.Series(dtype=float)})
    rows = rows[~rows["defense"].isin([CLEAN, NO_DEFENSE])]
    rows = at_paper_rho(rows).astype({name: float, "p_asr": float, "o_asr": float})
    return purified(rows.dropna(subset=[name, "p_asr", "o_asr"]))


def _fit(rows: pd.DataFrame, name: str) -> dict[str, object]:
    groups, by = _clusters(rows)
    model = sm.OLS(rows["p_asr"].to_numpy(), sm.add_constant(rows[name].to_numpy()))
    plain = model.fit()
    counts = [len(np.unique(column)) for column in groups.T]
    low = high = float("nan")
    if min(counts) >= LEAST:
        with warnings.catch_warnings():  # few clusters: that is what the t with few degrees is for
            warnings.simplefilter("ignore")
            grouped = {"groups": groups if groups.shape[1] > 1 else groups[:, 0]}
            fit = model.fit(cov_type="cluster", cov_kwds=grouped, use_t=True)
            low, high = fit.conf_int(1 - CONFIDENCE)[1]
    return {
        "slope": float(plain.params[1]),
        "low": float(low),
        "high": float(high),
        "r2": float(plain.rsquared),
        "models": len(rows),
        "clusters": " x ".join(map(str, counts)),
        "by": by,
    }


def _clusters(rows: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return each model's clusters as numbers, a column a way to cluster, and their name."""
    settings = [name for name in (*SETTING, "attack") if name in rows]
    seeds = rows.groupby("seed").ngroup().to_numpy()
    attacks = rows.groupby(settings).ngroup().to_numpy()
    if min(len(np.unique(seeds)), len(np.unique(attacks))) >= LEAST:
        return np.column_stack([seeds, attacks]), "seed and attack"
    victims = rows.groupby([*settings, "seed"]).ngroup().to_numpy()
    return victims[:, None], "victim"
