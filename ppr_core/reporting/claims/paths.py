"""Section C of the claims: linear mode connectivity."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ppr_core.reporting.claims.base import (
    CIFAR10,
    MAIN,
    OTHER_SETS,
    OTHERS,
    RARE,
    Answer,
    Claim,
    Limits,
    Test,
    all_of,
    awake,
    each_in,
    gaps,
    leaving,
    of_purified,
    resting,
)
from ppr_core.reporting.claims.rules import bounds, tolerance, within
from ppr_core.reporting.evidence import CELL, SETTING, Evidence, Scope, purified
from ppr_core.reporting.regression import LEAST, explained, sentences

# Of the positions and the errors of one path.
Figure = Callable[[np.ndarray, pd.DataFrame], float]
KEYS = [*SETTING, "attack", "defense", "seed"]


def _models(e: Evidence, *columns: str) -> pd.DataFrame:
    """Return the rows of the baselines, and of EP beside them."""
    return pd.concat([e.baselines("o_asr", *columns), e.of("ep", "o_asr", *columns)])


def _barriers(e: Evidence) -> Answer | None:
    rows = _models(e, "barrier")
    return of_purified(lambda kept: each_in(kept, "barrier", bounds(29), "barrier"), rows)


def _ask_line(
    rows: pd.DataFrame,
    found: pd.Series,
    limits: Limits,
    what: str,
    by: Sequence[str] = CELL,
    least: int = 1,
) -> Answer | None:
    """Ask a figure of each path (`found`, by `KEYS`), of at least so many defenses."""
    if not len(found):
        return None
    table = rows.merge(found.rename("figure").reset_index(), on=KEYS)
    return (
        each_in(table, "figure", limits, what, by) if table["defense"].nunique() >= least else None
    )


def _figures(points: pd.DataFrame, at: Figure) -> pd.Series:
    """Return a figure of every path, from its errors over t."""
    if not len(points):
        return pd.Series(dtype=float)
    found = {
        place: at(path.sort_values("t")["t"].to_numpy(), path.sort_values("t"))
        for place, path in points.groupby(KEYS)
    }
    index = pd.MultiIndex.from_tuples(found, names=KEYS)
    return pd.Series(list(found.values()), index, dtype=float)


def _lowest(since: float = 0.0) -> Figure:
    def at(t: np.ndarray, path: pd.DataFrame) -> float:
        return float(path["backdoor_error"].to_numpy()[t >= since - 1e-9].min())

    return at


def _asr_at(place: float) -> Figure:
    return lambda t, path: 100 - float(np.interp(place, t, path["backdoor_error"]))


def _connected(e: Evidence) -> Answer | None:
    def ask(kept: pd.DataFrame) -> Answer | None:
        found = _figures(e.line(kept, "purified"), _lowest())
        what = "lowest backdoor error on the path to EP"
        return _ask_line(kept, found, bounds(30), what, least=2)

    return of_purified(ask, e.baselines("o_asr"))


def _exact_far(e: Evidence) -> Answer | None:
    rows = e.of("ep", "o_asr")
    found = _figures(e.line(rows), _lowest(0.2))
    return _ask_line(rows, found, bounds(31), "EP's lowest error from t = 0.2", SETTING)


def _wake_early(e: Evidence) -> Answer | None:
    exact = e.of("ep", "o_asr")
    rest = _figures(e.line(exact), _asr_at(0.5))

    def ask(kept: pd.DataFrame) -> Answer | None:
        found = _figures(e.line(kept), _asr_at(0.5))
        by = [*SETTING, "defense"]  # means over attacks, as in the figure
        return _ask_line(kept, found, bounds(32), "ASR at t = 0.5", by, least=2)

    limits = within(high=tolerance("little"))
    return all_of(
        of_purified(ask, e.baselines("o_asr")),
        _ask_line(exact, rest, limits, "EP's ASR there", SETTING),
    )


def _explains(e: Evidence) -> Answer | None:
    """Ask whether P-ASR falls with the distance along the path.

    With PAM and without it, with batch-norm statistics as they are and recalibrated.
    """
    table = explained(e.cells)
    ours = table[table["predictor"] == "path_distance"]
    if not (ours["who"] == "without PAM").any():
        return None
    rows = pd.concat([_models(e, "path_distance", "p_asr"), e.of("pam", "o_asr", "path_distance")])
    parts = []
    for _, fit in ours.iterrows():
        low, high = (fit["low"], fit["high"]) if fit["low"] == fit["low"] else (fit["slope"],) * 2
        status = "holds" if high < 0 else "fails" if low > 0 else "open"
        text = f"{fit['who']}, batch norm {fit['statistics']}: slope {fit['slope']:.1f} "
        text += f"[{fit['low']:.1f}, {fit['high']:.1f}], R2 {fit['r2']:.2f}, {fit['models']} models"
        text += f", {fit['clusters']} by {fit['by']}"
        seeds = rows["seed"].nunique() if fit["low"] == fit["low"] else 1
        parts.append(Answer(status, text, purified(rows), seeds))
    others = table[(table["predictor"] != "path_distance") & (table["who"] == "with PAM")]
    plain = others[others["statistics"] == "as they are"]
    beside = ", ".join(f"{f['predictor']} R2 {f['r2']:.2f}" for _, f in plain.iterrows())
    bare = min(part.seeds for part in parts) < 2
    few = f"no interval from fewer than {LEAST} clusters" if bare else ""
    anew = "" if ours["statistics"].nunique() > 1 else "paths with recalibrated batch norm"
    found = all_of(*parts)
    rival = "of distance and barrier alone arXiv:2505.22310 says the same of relearning"
    more = "".join(f"; {sentence}" for sentence in sentences(e.cells))
    said = found and replace(found, ours=f"{found.ours}; beside it {beside} ({rival}){more}")
    return leaving(said, awake(rows), few, anew)


def _between(e: Evidence) -> Answer | None:
    def least(t: np.ndarray, path: pd.DataFrame) -> float:
        error = path["backdoor_error"].to_numpy()
        return float(error[-1] - error[1:-1].max()) if len(error) > 2 else float("nan")

    def ask(kept: pd.DataFrame) -> Answer | None:
        found = _figures(e.line(kept), least).dropna()
        what = "lowest ASR between the ends, above that at W"
        return _ask_line(kept, found, bounds(34), what, least=2)

    return of_purified(ask, e.baselines("o_asr"))


def _apart(e: Evidence, who: str) -> pd.DataFrame:
    """Return the mean distance of a defense's path from EP's, by setting, attack and seed."""
    curves = {}
    keys = [*SETTING, "attack", "seed", "t"]
    for name in (who, "ep"):
        points = e.line(e.of(name, "o_asr"))
        if not len(points):
            return pd.DataFrame()
        curves[name] = points.groupby(keys)["backdoor_error"].mean()
    far = (curves[who] - curves["ep"]).abs().dropna()
    return far.groupby(keys[:-1]).mean().rename("figure").reset_index()


def _distance(e: Evidence, who: str, limits: Limits, what: str) -> Answer | None:
    table = _apart(e, who)
    if not len(table):
        return None
    found = each_in(table, "figure", limits, what, SETTING)
    return resting(found, e.of([who, "ep"], "o_asr"))


def _alike_and_not(e: Evidence) -> Answer | None:
    rows = e.of("bti", "o_asr")
    found = _figures(e.line(rows, "purified"), _lowest())
    limits = within(tolerance("away"))
    return all_of(
        _ask_line(rows, found, limits, "lowest error from BTI to EP", SETTING),
        _distance(e, "bti", within(tolerance("low")), "distance of their curves to W0"),
    )


def _higher_barrier(number: int) -> Test:
    """PAM's barrier above that of each baseline, attack by attack."""

    def ask(e: Evidence) -> Answer | None:
        ours = e.of("pam", "o_asr", "barrier")

        def above(kept: pd.DataFrame) -> Answer | None:
            gap = gaps(ours, kept, "barrier", [*SETTING, "attack"], best="max")
            what = "PAM's barrier above the highest baseline's"
            found = each_in(gap, "gap", bounds(number), what, [*SETTING, "attack"])
            return resting(found, gap.attrs["source"])

        return of_purified(above, e.baselines("o_asr", "barrier"))

    return ask


def _both(test: Test) -> Test:
    """Ask only where both of the other data sets are there."""
    return lambda e: test(e) if len(e.cells) and e.cells["dataset"].nunique() > 1 else None


def _clean_barriers(e: Evidence) -> Answer | None:
    rows = pd.concat([_models(e, "clean_barrier"), e.of("pam", "o_asr", "clean_barrier")])
    return of_purified(lambda k: each_in(k, "clean_barrier", bounds(39), "clean barrier"), rows)


def _pam_line(e: Evidence) -> Answer | None:
    return _distance(e, "pam", bounds(40), "mean distance of the two curves")


CLAIMS = [
    Claim(29, Scope(CIFAR10), _barriers),
    Claim(30, Scope(MAIN), _connected),
    Claim(31, Scope(CIFAR10), _exact_far),
    Claim(32, Scope(CIFAR10), _wake_early),
    Claim(33, Scope(MAIN), _explains),  # distances of two architectures do not compare
    Claim(34, Scope(CIFAR10), _between),
    Claim(35, Scope(MAIN), _alike_and_not),
    Claim(36, Scope(CIFAR10), _higher_barrier(36)),
    Claim(37, Scope(RARE, {"poison_rate": [0.01]}), _higher_barrier(37)),
    Claim(38, Scope(OTHERS, OTHER_SETS), _both(_higher_barrier(38))),
    Claim(39, Scope(MAIN), _clean_barriers),
    Claim(40, Scope(CIFAR10), _pam_line),
]
