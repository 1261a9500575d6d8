"""Section D of the claims: path-aware minimization (PAM)."""

import pandas as pd

from ppr_core.reporting.claims.base import (
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
    gap_in,
    gaps,
    leaving,
    mean_in,
    of_purified,
    ordered,
    resting,
)
from ppr_core.reporting.claims.rules import bounds, tolerance, within
from ppr_core.reporting.evidence import SETTING, Evidence, Scope, purified
from ppr_core.reporting.results import PURIFIED_BELOW


def _below(column: str, number: int, what: str) -> Test:
    """PAM's mean over attacks in each setting, as the paper's tables have it."""
    return lambda e: each_in(e.of("pam", column), column, bounds(number), what, SETTING)


def _like_exact(e: Evidence) -> Answer | None:
    gap = gaps(e.of("pam", "p_asr"), e.of("ep", "p_asr"), "p_asr")
    return gap_in(gap, bounds(42), "P-ASR of PAM above EP's")


def _above_baselines(e: Evidence) -> Answer | None:
    def ask(kept: pd.DataFrame) -> Answer | None:
        gap = gaps(e.of("pam", "p_asr"), kept, "p_asr", best="min", falls=True)
        return gap_in(gap, bounds(43), "best baseline's P-ASR above PAM's")

    return of_purified(ask, e.baselines("o_asr", "p_asr"))


def _cost(e: Evidence) -> Answer | None:
    gap = gaps(e.of("pam", "o_c_acc"), e.of("none", "o_c_acc"), "o_c_acc", falls=True)
    return gap_in(gap, bounds(45), "C-Acc lost")


def _small_rise(number: int) -> Test:
    def ask(e: Evidence) -> Answer | None:
        rows = e.of("pam", "o_asr", "p_asr")
        rows = rows.assign(rise=rows["p_asr"] - rows["o_asr"])
        return each_in(rows, "rise", bounds(number), "rise", SETTING)

    return ask


def _both(test: Test) -> Test:
    """Ask only where both of the other data sets have PAM."""
    return lambda e: test(e) if e.of("pam", "p_asr")["dataset"].nunique() > 1 else None


def _good_accuracy(e: Evidence) -> Answer | None:
    def ask(kept: pd.DataFrame) -> Answer | None:
        gap = gaps(e.of("pam", "o_c_acc"), kept, "o_c_acc", best="max")
        return gap_in(gap, bounds(49), "C-Acc above the best baseline's")

    return of_purified(ask, e.baselines("o_asr", "o_c_acc"))


def _grid(e: Evidence, *columns: str) -> pd.DataFrame:
    """Return PAM's rows that have these figures, of the attacks with the whole grid of rho."""
    rows = e.cells
    if not len(rows) or not {"rho", *columns} <= {*rows.columns}:
        return pd.DataFrame(columns=["rho", "seed", *columns])
    rows = rows[rows["defense"] == "pam"]
    rows = rows.astype(dict.fromkeys(("rho", *columns), float)).dropna(subset=["rho", *columns])
    count = rows.groupby([*SETTING, "attack"])["rho"].transform("nunique")
    return rows[(count > 1) & (count == count.max())]


def _ends(grid: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return by how much a figure falls from the smallest to the largest rho, by seed."""
    table = grid.pivot_table(index="seed", columns="rho", values=column, aggfunc="mean").dropna()
    falls = table.iloc[:, 0] - table.iloc[:, -1] if table.shape[1] > 1 else pd.Series(dtype=float)
    return falls.rename("fall").reset_index()


def _fall(e: Evidence, column: str, limits: tuple[float, float], what: str) -> Answer | None:
    grid = _grid(e, column)
    found = mean_in(_ends(grid, column), "fall", limits, what) if len(grid) else None
    return resting(found, grid)


def _proxy(e: Evidence) -> Answer | None:
    grid = _grid(e, "o_asr", "p_asr")
    alone = grid[grid["rho"] == 0]
    if not len(alone):
        return None
    high, far = within(tolerance("high")), within(tolerance("far"))
    return all_of(
        mean_in(alone, "o_asr", within(high=PURIFIED_BELOW), "O-ASR at rho 0"),
        of_purified(lambda k: mean_in(k, "p_asr", high, "P-ASR at rho 0"), alone, least=1),
        _fall(e, "p_asr", far, "P-ASR lost to the largest rho"),
    )


def _trend(column: str, what: str, *, falls: bool = False) -> Test:
    return lambda e: ordered(_grid(e, column), column, what, falls=falls)


def _little_accuracy(e: Evidence) -> Answer | None:
    cost = (0.0, bounds(52)[1])
    return all_of(
        _trend("o_c_acc", "C-Acc", falls=True)(e),
        _fall(e, "o_c_acc", cost, "C-Acc lost from the smallest rho"),
    )


def _gains(e: Evidence) -> Answer | None:
    return all_of(
        _trend("p_asr", "P-ASR", falls=True)(e),
        _fall(e, "p_asr", bounds(53), "P-ASR lost from the smallest rho"),
    )


def _flat_above(e: Evidence) -> Answer | None:
    grid = _grid(e, "p_asr")
    grid = grid[grid["rho"] >= 0.3]
    if not len(grid) or grid["rho"].nunique() < 2:
        return None
    table = grid.groupby(["seed", "rho"])["p_asr"].mean()
    ranges = table.groupby("seed").agg(lambda p: p.max() - p.min()).rename("range").reset_index()
    return resting(mean_in(ranges, "range", bounds(54), "range of P-ASR from rho 0.3"), grid)


def _not_by_sharpness(e: Evidence) -> Answer | None:
    rows = e.of("bti_sam", "o_asr", "p_asr")
    gap = gaps(purified(rows), e.of("pam", "p_asr"), "p_asr")
    return leaving(gap_in(gap, bounds(57), "P-ASR above PAM's"), awake(rows))


DATA_SETS = (*CIFAR10, *OTHERS)  # the rows of Tables 1 and 2
RHO = Scope(MAIN)

CLAIMS = [
    Claim(41, Scope(DATA_SETS), _below("p_asr", 41, "P-ASR")),
    Claim(42, Scope(DATA_SETS), _like_exact),
    Claim(43, Scope(EVERY), _above_baselines),
    Claim(44, Scope(DATA_SETS), _below("o_asr", 44, "O-ASR")),
    Claim(45, Scope(DATA_SETS), _cost),
    Claim(46, Scope(CIFAR10), _small_rise(46)),
    Claim(47, Scope(RARE, {"poison_rate": [0.01]}), _small_rise(47)),
    Claim(48, Scope(OTHERS, OTHER_SETS), _both(_small_rise(48))),
    Claim(49, Scope(DATA_SETS), _good_accuracy),
    Claim(50, RHO, _proxy),
    Claim(51, RHO, _trend("barrier", "barrier")),
    Claim(52, RHO, _little_accuracy),
    Claim(53, RHO, _gains),
    Claim(54, RHO, _flat_above),
    Claim(55),
    Claim(56, RHO, _trend("distance", "distance")),
    Claim(57, Scope(MAIN), _not_by_sharpness),
    Claim(58),
]
