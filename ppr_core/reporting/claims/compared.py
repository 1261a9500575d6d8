"""One model beside another, and one model over rho: over the same attacks, settings and seeds."""

from collections.abc import Sequence

import pandas as pd
from scipy import stats

from ppr_core.reporting.claims.base import Answer, each_in, resting
from ppr_core.reporting.evidence import SETTING, Span
from ppr_core.reporting.rules import Limits, threshold

VICTIM = [*SETTING, "attack", "seed"]


def gaps(
    first: pd.DataFrame,
    second: pd.DataFrame,
    columns: str | tuple[str, str],
    by: Sequence[str] = SETTING,
    *,
    falls: bool = False,
) -> pd.DataFrame:
    """Return first minus second, `gap`, by setting (or `by`) and seed.

    Over the victims that both have, defense by defense; of several defenses in the second, the
    one that leaves the least.

    Args:
        first: rows of the one.
        second: rows of the other.
        columns: of both, or of each.
        by: what is compared within.
        falls: take second minus first.
    """
    one, other = (columns, columns) if isinstance(columns, str) else columns
    left = first.groupby(VICTIM)[one].mean().rename("left").reset_index()
    right = second.groupby([*VICTIM, "defense"])[other].mean().rename("right").reset_index()
    both = right.merge(left, on=VICTIM).dropna(subset=["left", "right"])
    both["gap"] = (both["right"] - both["left"]) * (1 if falls else -1)
    each = both.groupby([*by, "seed", "defense"])["gap"].mean()
    gap = each.groupby([*by, "seed"]).min().reset_index()
    parts = pd.concat([first, second])
    gap.attrs["source"] = parts[_placed(parts).isin(_placed(both))]
    return gap


def _placed(rows: pd.DataFrame) -> pd.Series:
    return pd.Series([tuple(row) for row in rows[VICTIM].to_numpy()], rows.index, dtype=object)


def gap_in(
    gap: pd.DataFrame, limits: Limits, what: str, by: Sequence[str] = SETTING
) -> Answer | None:
    """Ask whether a difference lies within limits in every setting."""
    asked = each_in(gap, "gap", limits, what, by) if len(gap) else None
    return resting(asked, gap.attrs["source"])


def over_rho(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a figure by seed and rho, as means over the victims that have the whole grid."""
    table = rows.pivot_table(index=VICTIM, columns="rho", values=column, aggfunc="mean")
    return table.dropna().groupby("seed").mean()


def ordered(rows: pd.DataFrame, column: str, what: str, *, falls: bool = False) -> Answer | None:
    """Ask whether a figure rises (or falls) over the whole rho grid: Page's trend over seeds."""
    table = over_rho(rows, column)
    if table.shape[1] < 3 or not len(table):
        return None
    values = -table if falls else table
    course = ", ".join(f"{rho:g}: {value:.1f}" for rho, value in table.mean().items())
    if len(table) < 2:
        found = _spearman(values.iloc[0])
        status = "holds" if found >= threshold("order") else "fails"
        text = f"Spearman {found if not falls else -found:.2f}"
    else:
        chances = [_page(values), _page(-values)]
        chance = threshold("chance")
        status = "holds" if chances[0] < chance else "fails" if chances[1] < chance else "open"
        if status == "open" and _spearman(values.mean()) <= 0:
            status = "fails"
        text = f"Page's trend p {chances[0]:.3f}"
    change = Span.of(table.iloc[:, -1] - table.iloc[:, 0])
    ours = f"{what} by rho {course}; {text}; from the smallest to the largest {change}"
    return Answer(status, ours, rows, len(table))


def _page(values: pd.DataFrame) -> float:
    return float(stats.page_trend_test(values.to_numpy()).pvalue)


def _spearman(values: pd.Series) -> float:
    if values.nunique() < 2:
        return 0.0
    return float(stats.spearmanr(values.index.to_numpy(dtype=float), values).statistic)
