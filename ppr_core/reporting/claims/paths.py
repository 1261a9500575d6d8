"""Section C of the claims: linear mode connectivity."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ppr_core.reporting.claims.base import (
    ALL,
    CIFAR10,
    MAIN,
    OTHER_SETS,
    OTHERS,
    RARE,
    Answer,
    Claim,
    Test,
    all_of,
    awake,
    each_in,
    leaving,
    of_one,
    of_purified,
    on_both,
    resting,
)
from ppr_core.reporting.claims.compared import gap_in, gaps
from ppr_core.reporting.evidence import CELL, SETTING, Evidence, Scope
from ppr_core.reporting.regression import LEAST, by_oracle, explained, fitted, sentences
from ppr_core.reporting.rules import Limits, bounds, threshold, within

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
    since = threshold("early")
    found = _figures(e.line(rows), _lowest(since))
    return _ask_line(rows, found, bounds(31), f"EP's lowest error from t = {since:g}", SETTING)


def _wake_early(e: Evidence) -> Answer | None:
    exact, half = e.of("ep", "o_asr"), threshold("half")
    rest = _figures(e.line(exact), _asr_at(half))

    def ask(kept: pd.DataFrame) -> Answer | None:
        found = _figures(e.line(kept), _asr_at(half))
        by = [*SETTING, "defense"]  # means over attacks, as in the figure
        return _ask_line(kept, found, bounds(32), f"ASR at t = {half:g}", by, least=2)

    limits = within(high=threshold("little"))
    return all_of(
        of_purified(ask, e.baselines("o_asr")),
        _ask_line(exact, rest, limits, "EP's ASR there", SETTING),
    )


def _explains(e: Evidence) -> Answer | None:
    """Ask whether P-ASR falls with the distance along the path, among the models of one victim.

    With PAM and without it, with batch-norm statistics as they are and recalibrated.
    """
    table = explained(e.cells)
    ours = table[table["predictor"] == "path_distance"]
    if not (ours["who"] == "without PAM").any():
        return None
    parts = []
    for _, fit in ours.iterrows():
        bare = fit["low"] != fit["low"]
        span = f" [{fit['low']:.1f}, {fit['high']:.1f}]"
        low, high = (fit["slope"],) * 2 if bare else (fit["low"], fit["high"])
        status = "holds" if high < bounds(33).high else "fails" if low > bounds(33).high else "open"
        about = f"{fit['who']}, batch norm {fit['statistics']}"
        same = (table["who"] == fit["who"]) & (table["statistics"] == fit["statistics"])
        others = table[same & (table["predictor"] != "path_distance")]
        beside = ", ".join(f"{f['predictor']} {f['r2']:.2f}" for _, f in others.iterrows())
        text = f"{about}: slope {fit['slope']:.1f}{'' if bare else span}, R2 {fit['r2']:.2f} "
        text += f"(beside it {beside or 'nothing'}), {fit['models']} models, {fit['clusters']} "
        text += f"by {fit['by']}"
        rows = fitted(e.cells, "path_distance", str(fit["who"]), str(fit["statistics"]))
        parts.append(Answer(status, text, rows, 1 if bare else rows["seed"].nunique()))
    few = f"no interval from fewer than {LEAST} victims" if min(p.seeds for p in parts) < 2 else ""
    anew = "" if ours["statistics"].nunique() > 1 else "paths with recalibrated batch norm"
    found = all_of(*parts)
    rival = "of distance and barrier alone arXiv:2505.22310 says the same of relearning"
    more = "".join(f"; {sentence}" for sentence in sentences(e.cells))
    said = found and replace(found, ours=f"{found.ours}; {rival}{more}")
    done = e.cells[e.cells["path_distance"].notna() & e.cells["p_asr"].notna()]
    oracles = ", ".join(dict.fromkeys(done.loc[by_oracle(done), "defense"]))
    return leaving(said, awake(done), f"{oracles}: by an oracle" if oracles else "", few, anew)


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
    victims = [*SETTING, "attack", "seed"]
    return resting(found, e.of([who, "ep"], "o_asr").merge(table[victims]))


def _alike_and_not(e: Evidence) -> Answer | None:
    rows = e.of("bti", "o_asr")
    found = _figures(e.line(rows, "purified"), _lowest())
    limits = within(threshold("away"))
    return all_of(
        _ask_line(rows, found, limits, "lowest error from BTI to EP", SETTING),
        _distance(e, "bti", within(threshold("low")), "distance of their curves to W0"),
    )


def _higher_barrier(number: int) -> Test:
    """PAM's barrier above that of each baseline, attack by attack."""

    def ask(e: Evidence) -> Answer | None:
        def ours(pam: pd.DataFrame) -> Answer | None:
            def above(kept: pd.DataFrame) -> Answer | None:
                by = [*SETTING, "attack"]
                what = "PAM's barrier above the highest baseline's"
                return gap_in(gaps(pam, kept, "barrier", by), bounds(number), what, by)

            return of_purified(above, e.baselines("o_asr", "barrier"))

        return of_one(ours, e.of("pam", "o_asr", "barrier"))

    return ask


def _clean_barriers(e: Evidence) -> Answer | None:
    rows = pd.concat([_models(e, "clean_barrier"), e.of("pam", "o_asr", "clean_barrier")])
    return of_purified(lambda k: each_in(k, "clean_barrier", bounds(39), "clean barrier"), rows)


def _pam_line(e: Evidence) -> Answer | None:
    """Compare the paths of PAM and of EP where both are purified."""

    def ask(kept: pd.DataFrame) -> Answer | None:
        here = replace(e, cells=kept)
        return _distance(here, "pam", bounds(40), "mean distance of the two curves")

    return of_one(ask, e.of(["pam", "ep"], "o_asr"))


BOTH = ("bti", "ep")
EXACT = (*ALL, "ep")
PAM = ("pam", *ALL)

CLAIMS = [
    Claim(29, Scope(CIFAR10), _barriers, EXACT),
    Claim(30, Scope(MAIN), _connected, ALL),
    Claim(31, Scope(CIFAR10), _exact_far, ("ep",)),
    Claim(32, Scope(CIFAR10), _wake_early, EXACT),
    Claim(33, Scope(MAIN), _explains, ("ibau", "ft_sam", "fst", "bti", "pam")),
    Claim(34, Scope(CIFAR10), _between, ALL),
    Claim(35, Scope(MAIN), _alike_and_not, BOTH),
    Claim(36, Scope(CIFAR10), _higher_barrier(36), PAM),
    Claim(37, Scope(RARE, {"poison_rate": [0.01]}), _higher_barrier(37), PAM),
    Claim(38, Scope(OTHERS, OTHER_SETS), on_both(_higher_barrier(38)), PAM),
    Claim(39, Scope(MAIN), _clean_barriers, (*EXACT, "pam")),
    Claim(40, Scope(CIFAR10), _pam_line, ("pam", "ep")),
]
