"""What foretells P-ASR: regressions over purified models, each victim with a level of its own."""

import warnings
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import statsmodels.api as sm

from ppr_core.lab.graph import CLEAN, NO_DEFENSE
from ppr_core.reporting.evidence import CONFIDENCE, SETTING, at_paper_rho, purified
from ppr_core.reporting.rules import threshold

HELD = ("distance", "barrier")  # what a further figure has to explain more than
FURTHER = ("existence", "separation_features")
SAME = threshold("same")  # R2 of a further figure by those, from which it is none of its own
PREDICTORS = ("distance", "path_distance", "barrier", "t_star")
# Batch-norm statistics along the path -> how the columns of its figures begin.
STATISTICS = {"as they are": "", "recalibrated": "rc_"}
EXACT = "ep"
# Victims, and models more than coefficients, from which there is an interval.
LEAST = int(threshold("clusters"))
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
BEYOND = ["who", "figure", "r2_before", "r2", "slope", "low", "high", "shared", *COLUMNS[7:]]


def explained(rows: pd.DataFrame) -> pd.DataFrame:
    """Regress P-ASR on each figure of the path, one row a fit; slopes with 95 % intervals.

    Each figure is that of the path with batch-norm statistics as they are, and recalibrated at
    every point, where the study has both; the distance of the ends is one and the same.

    Purified models only, without EP and what else an oracle made; of PAM's rho grid only the one
    that the paper takes (the others start from the same backdoored model and inverted trigger);
    with PAM and without it. Each victim, a seed's model of one attack, has a level of its own
    (fixed effects), and errors are clustered by it: what a whole attack does is no explanation.
    With fewer than three victims there is no interval.

    Args:
        rows: `results.cells` of a study that measures "path".
    """
    found = []
    for who in ("with PAM", "without PAM"):
        for statistics, name in product(STATISTICS, PREDICTORS):
            column = STATISTICS[statistics] + name
            done = fitted(rows, name, who, statistics)
            victims = _victims(done)
            free = len(done) - victims.nunique() - 1
            done = _levelled(done, victims, ["p_asr", column]) if len(done) else done
            if free >= LEAST and _varies(done[column]):
                about = {"who": who, "statistics": statistics, "predictor": name}
                found.append({**about, **_fit(done, column)})
    return pd.DataFrame(found, columns=COLUMNS)


def fitted(rows: pd.DataFrame, name: str, who: str, statistics: str) -> pd.DataFrame:
    """Return the models that a fit of `explained` is about."""
    done = _models(rows, STATISTICS[statistics] + name)
    done = done[~by_oracle(done)]
    return done if who == "with PAM" else done[done["defense"] != "pam"]


def by_oracle(rows: pd.DataFrame) -> pd.Series:
    """Say which models EP and other oracles made: these are to be explained by no defense."""
    known = rows["oracle"].astype(bool) if "oracle" in rows else False
    return (rows["defense"] == EXACT) | known


def beyond(rows: pd.DataFrame, name: str = FURTHER[0], held: Sequence[str] = HELD) -> pd.DataFrame:
    """Regress P-ASR on distance and barrier, and on a further figure beside them, one row a fit.

    Each victim has a level of its own (fixed effects): models are set beside those that other
    defenses made of the same backdoored model, so that no seed and no attack that sleeps deeper
    passes for an explanation. Both fits are on the very same models: those that have all figures.
    A further figure never lowers R2, so that its slope beside the other two is what counts, with
    its interval; and one that these two foretell nearly without rest has no slope of its own.
    Models that fail a check are left out: what has lost its accuracy has lost every trace, too.

    Args:
        rows: `results.cells` of a study that measures "path" and that figure.
        name: of the figure.
        held: the figures that it has to explain more than, distance and barrier.
    """
    found = []
    rows = rows[rows["checks"] == ""] if "checks" in rows else rows
    for who in ("with PAM", "without PAM"):
        done = _models(rows, *held, name)
        done = done[~by_oracle(done)]
        done = done if who == "with PAM" else done[done["defense"] != "pam"]
        victims = _victims(done)
        done = _levelled(done, victims, ["p_asr", name, *held])
        beside = [column for column in held if _varies(done[column])]
        free = len(done) - victims.nunique() - len(beside) - 1
        if free < LEAST or not _varies(done[name]) or not _varies(done["p_asr"]):
            continue
        shared, before = (_r2(done, of, beside) for of in (name, "p_asr"))
        about = {"who": who, "figure": name, "r2_before": before, "shared": shared}
        fit = _fit(done, name, beside) if shared < SAME else {"models": len(done)}
        found.append({**about, **fit})
    return pd.DataFrame(found, columns=BEYOND)


def sentences(rows: pd.DataFrame) -> list[str]:
    """Say what each further figure that is there explains of P-ASR beyond distance and barrier."""
    known = (name for name in FURTHER if name in rows)
    return [_said(fit) for name in known for _, fit in beyond(rows, name).iterrows()]


def asleep(rows: pd.DataFrame) -> list[str]:
    """Say of each attack how far its purified models sleep on the way back, and how they wake.

    Args:
        rows: `results.cells` of a study that measures "path".
    """
    lines = []
    for attack, here in rows.groupby("attack", sort=False):
        done = _models(here, "path_distance")
        if not len(done):
            continue
        order = done.sort_values("path_distance", ascending=False)
        far = ", ".join(
            f"{row['defense']} {row['path_distance']:.2f} (P-ASR {row['p_asr']:.0f} %)"
            for _, row in order.iterrows()
        )
        lines.append(f"{attack}: L2 distance on the line over which the backdoor sleeps: {far}.")
        if len(done) >= 2 + LEAST:
            rank = float(done["path_distance"].corr(done["p_asr"], method="spearman"))
            lines.append(
                f"{attack}: rank correlation with P-ASR {rank:+.2f} over {len(done)} purified "
                "models; -1 would be the paper's explanation without an exception."
            )
        else:
            lines.append(
                f"{attack}: {len(done)} purified models are too few for a rank correlation, which "
                f"takes {2 + LEAST}."
            )
    return lines


def _said(fit: pd.Series) -> str:
    """Return one fit of `beyond` in words."""
    name, count = fit["figure"], f"{fit['models']} models, {fit['who']}"
    if fit["shared"] >= SAME:
        return (
            f"{name} cannot be told from distance and barrier ({count}): they foretell it with "
            f"R2 {fit['shared']:.2f}"
        )
    rise = f"R2 {fit['r2_before']:.2f} to {fit['r2']:.2f}, slope {fit['slope']:.1f}"
    if fit["low"] != fit["low"]:
        return (
            f"{name} beside distance and barrier ({count}): {rise}; no interval from fewer than "
            f"{LEAST} clusters, so that nothing is said of what it explains beyond them"
        )
    says = "more of P-ASR" if fit["low"] > 0 else "nothing that is told from chance"
    says = "P-ASR with the opposite sign" if fit["high"] < 0 else says
    return (
        f"{name} explains {says} beyond distance and barrier ({count}): {rise} "
        f"[{fit['low']:.1f}, {fit['high']:.1f}], {fit['clusters']} by {fit['by']}"
    )


def _levelled(rows: pd.DataFrame, groups: pd.Series, columns: list[str]) -> pd.DataFrame:
    """Return rows with each of these columns as its difference from its group's mean."""
    means = rows[columns].groupby(groups).transform("mean")
    return rows.assign(**{name: rows[name] - means[name] for name in columns})


def _varies(values: pd.Series) -> bool:
    return bool(values.abs().max() > 1e-9)


def _r2(rows: pd.DataFrame, of: str, by: list[str]) -> float:
    """Return the share of a column's variance that others explain, by least squares."""
    if not by:
        return 0.0
    given = sm.add_constant(rows[by].to_numpy())
    return float(sm.OLS(rows[of].to_numpy(), given).fit().rsquared)


def _models(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Return one row a purified model that has the figures and went through RA."""
    needed = [*names, "p_asr", "o_asr"]
    if not {*needed} <= {*rows.columns}:
        return rows.iloc[:0].assign(**dict.fromkeys(needed, pd.Series(dtype=float)))
    rows = rows[~rows["defense"].isin([CLEAN, NO_DEFENSE])]
    rows = at_paper_rho(rows).astype(dict.fromkeys(needed, float))
    return purified(rows.dropna(subset=needed))


def _fit(rows: pd.DataFrame, name: str, held: Sequence[str] = ()) -> dict[str, object]:
    """Regress P-ASR on a figure, with others beside it; the slope is the figure's own.

    Args:
        rows: one a model, each victim with its level taken off.
        name: of the figure.
        held: the others.
    """
    groups = _victims(rows).to_numpy()
    model = sm.OLS(rows["p_asr"].to_numpy(), sm.add_constant(rows[[name, *held]].to_numpy()))
    plain = model.fit()
    victims = len(np.unique(groups))
    low = high = float("nan")
    if victims >= LEAST:
        with warnings.catch_warnings():  # few clusters: that is what the t with few degrees is for
            warnings.simplefilter("ignore")
            fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
            low, high = fit.conf_int(1 - CONFIDENCE)[1]
    return {
        "slope": float(plain.params[1]),
        "low": float(low),
        "high": float(high),
        "r2": float(plain.rsquared),
        "models": len(rows),
        "clusters": victims,
        "by": "victim",
    }


def _victims(rows: pd.DataFrame) -> pd.Series:
    """Return each model's victim as a number: the model of one attack, setting and seed."""
    settings = [name for name in (*SETTING, "attack", "seed") if name in rows]
    return rows.groupby(settings).ngroup()
