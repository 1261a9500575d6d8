"""Section D of the claims: path-aware minimization (PAM)."""

import pandas as pd

from ppr_core.reporting.claims.base import (
    ALL,
    CIFAR10,
    EVERY,
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
    mean_in,
    of_one,
    of_purified,
    on_both,
    resting,
)
from ppr_core.reporting.claims.compared import VICTIM, gap_in, gaps, ordered, over_rho
from ppr_core.reporting.evidence import CELL, SETTING, Evidence, Scope, purified
from ppr_core.reporting.rules import Limits, bounds, threshold, within


def _below(column: str, number: int, what: str) -> Test:
    """PAM's mean over attacks in each setting, as the paper's tables have it."""
    return lambda e: each_in(e.of("pam", column), column, bounds(number), what, SETTING)


def _like_exact(e: Evidence) -> Answer | None:
    by = [*SETTING, "attack"]
    gap = gaps(e.of("pam", "p_asr"), e.of("ep", "p_asr"), "p_asr", by)
    return gap_in(gap, bounds(42), "P-ASR of PAM above EP's", by)


def _above_baselines(e: Evidence) -> Answer | None:
    def ask(kept: pd.DataFrame) -> Answer | None:
        gap = gaps(e.of("pam", "p_asr"), kept, "p_asr", falls=True)
        return gap_in(gap, bounds(43), "best baseline's P-ASR above PAM's")

    return of_purified(ask, e.baselines("o_asr", "p_asr"))


def _cost(e: Evidence) -> Answer | None:
    def ask(kept: pd.DataFrame) -> Answer | None:
        gap = gaps(kept, e.of("none", "o_c_acc"), "o_c_acc", falls=True)
        return gap_in(gap, bounds(45), "C-Acc lost")

    return of_one(ask, e.of("pam", "o_asr", "o_c_acc"))


def _small_rise(number: int) -> Test:
    def ask(kept: pd.DataFrame) -> Answer | None:
        kept = kept.assign(rise=kept["p_asr"] - kept["o_asr"])
        return each_in(kept, "rise", bounds(number), "rise", SETTING)

    return lambda e: of_one(ask, e.of("pam", "o_asr", "p_asr"))


def _good_accuracy(e: Evidence) -> Answer | None:
    def ours(pam: pd.DataFrame) -> Answer | None:
        def ask(kept: pd.DataFrame) -> Answer | None:
            gap = gaps(pam, kept, "o_c_acc")
            return gap_in(gap, bounds(49), "C-Acc above the best baseline's")

        return of_purified(ask, e.baselines("o_asr", "o_c_acc"))

    return of_one(ours, e.of("pam", "o_asr", "o_c_acc"))


def _grid(e: Evidence, *columns: str) -> pd.DataFrame:
    """Return PAM's rows that have these figures, of the victims with the whole grid of rho."""
    rows = e.cells
    if not len(rows) or not {"rho", *columns} <= {*rows.columns}:
        return pd.DataFrame(columns=[*CELL, "rho", "seed", "o_asr", *columns])
    rows = rows[rows["defense"] == "pam"]
    rows = rows.astype(dict.fromkeys(("rho", *columns), float)).dropna(subset=["rho", *columns])
    count = rows.groupby(VICTIM)["rho"].transform("nunique")
    return rows[(count > 1) & (count == count.max())]


def _fall(grid: pd.DataFrame, column: str, limits: Limits, what: str) -> Answer | None:
    """Ask by how much a figure falls from the smallest to the largest rho, by seed."""
    table = over_rho(grid, column)
    if table.shape[1] < 2:
        return None
    falls = (table.iloc[:, 0] - table.iloc[:, -1]).rename("fall").reset_index()
    return resting(mean_in(falls, "fall", limits, what), grid)


def _proxy(e: Evidence) -> Answer | None:
    grid = _grid(e, "o_asr", "p_asr")
    alone = grid[grid["rho"] == 0]
    if not len(alone):
        return None
    high, far = within(threshold("high")), within(threshold("far"))
    return all_of(
        mean_in(alone, "o_asr", within(high=threshold("purified")), "O-ASR at rho 0"),
        of_purified(lambda k: mean_in(k, "p_asr", high, "P-ASR at rho 0"), alone, least=1),
        _fall(grid, "p_asr", far, "P-ASR lost to the largest rho"),
    )


def _trend(column: str, what: str, *, falls: bool = False) -> Test:
    return lambda e: ordered(_grid(e, column), column, what, falls=falls)


def _little_accuracy(e: Evidence) -> Answer | None:
    cost, grid = within(0.0, bounds(52).high), _grid(e, "o_c_acc")
    return all_of(
        ordered(grid, "o_c_acc", "C-Acc", falls=True),
        _fall(grid, "o_c_acc", cost, "C-Acc lost from the smallest rho"),
    )


def _gains(e: Evidence) -> Answer | None:
    def ask(kept: pd.DataFrame) -> Answer | None:
        return all_of(
            ordered(kept, "p_asr", "P-ASR", falls=True),
            _fall(kept, "p_asr", bounds(53), "P-ASR lost from the smallest rho"),
        )

    return of_purified(ask, _grid(e, "o_asr", "p_asr"), least=1)


def _flat_above(e: Evidence) -> Answer | None:
    """Above some rho P-ASR is nearly the same, and low: where nothing ever slept, it is, too."""

    def ask(kept: pd.DataFrame) -> Answer | None:
        table = over_rho(kept, "p_asr")
        if table.shape[1] < 2:
            return None
        ranges = (table.max(axis=1) - table.min(axis=1)).rename("range").reset_index()
        found = resting(mean_in(ranges, "range", bounds(54), f"range of P-ASR {since}"), kept)
        low = within(high=threshold("high"))
        return all_of(found, resting(mean_in(kept, "p_asr", low, f"P-ASR {since}"), kept))

    flat = threshold("flat")
    since = f"from rho {flat:g}"
    grid = _grid(e, "o_asr", "p_asr")
    return of_purified(ask, grid[grid["rho"] >= flat], least=1)


def _not_by_sharpness(e: Evidence) -> Answer | None:
    rows = e.of("bti_sam", "o_asr", "p_asr")
    gap = gaps(purified(rows), e.of("pam", "p_asr"), "p_asr")
    return leaving(gap_in(gap, bounds(57), "P-ASR above PAM's"), awake(rows))


DATA_SETS = (*CIFAR10, *OTHERS)  # the rows of Tables 1 and 2
RHO = Scope(MAIN)
PAM = ("pam",)
FIRST = ("blended",)  # the attack of Table 10

CLAIMS = [
    Claim(41, Scope(DATA_SETS), _below("p_asr", 41, "P-ASR"), PAM),
    Claim(42, Scope(DATA_SETS), _like_exact, ("pam", "ep")),
    Claim(43, Scope(EVERY), _above_baselines, (*PAM, *ALL)),
    Claim(44, Scope(DATA_SETS), _below("o_asr", 44, "O-ASR"), PAM),
    Claim(45, Scope(DATA_SETS), _cost, ("pam", "none"), accuracy=True),
    Claim(46, Scope(CIFAR10), _small_rise(46), PAM),
    Claim(47, Scope(RARE, {"poison_rate": [0.01]}), _small_rise(47), PAM),
    Claim(48, Scope(OTHERS, OTHER_SETS), on_both(_small_rise(48), "pam"), PAM),
    Claim(49, Scope(DATA_SETS), _good_accuracy, (*PAM, *ALL), accuracy=True),
    Claim(50, RHO, _proxy, PAM, FIRST, grid=True),
    Claim(51, RHO, _trend("barrier", "barrier"), PAM, grid=True),
    Claim(52, RHO, _little_accuracy, PAM, FIRST, grid=True, accuracy=True),
    Claim(53, RHO, _gains, PAM, FIRST, grid=True),
    Claim(54, RHO, _flat_above, PAM, FIRST, grid=True),
    Claim(55),
    Claim(56, RHO, _trend("distance", "distance"), PAM, grid=True),
    Claim(57, Scope(MAIN), _not_by_sharpness, ("bti_sam", "pam")),
    Claim(58),
]
