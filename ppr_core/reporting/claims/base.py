"""What a claim is, and the questions that claims of several sections put to figures."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ppr_core.reporting.claims.rules import bounds, claims, told, tolerance
from ppr_core.reporting.evidence import (
    CELL,
    HONEST,
    SETTING,
    Evidence,
    Scope,
    Span,
    by_seed,
    purified,
)

Limits = tuple[float, float]

R18, R50, D161, PRE = "resnet18", "resnet50", "densenet161", "resnet18_imagenet"
MAIN = (("cifar10", R18, 0.05),)  # Table 3
CIFAR10 = (*MAIN, ("cifar10", R18, 0.1), ("cifar10", R50, 0.05), ("cifar10", D161, 0.05))
RARE = (("cifar10", R18, 0.01),)
OTHERS = (("cifar100", PRE, 0.05), ("tiny_imagenet", PRE, 0.05))
EVERY = (*CIFAR10, *RARE, *OTHERS)  # Tables 3 to 9


OTHER_SETS = {"dataset": ["cifar100", "tiny_imagenet"]}
ANYWHERE = Scope()


@dataclass(frozen=True)
class Answer:
    """What runs say of a claim.

    Attributes:
        status: "holds", "fails" or "open".
        ours: our figures, in words.
        rows: the cells that they come from.
        seeds: that the weakest figure rests on.
        left_out: what was left out, and why.
    """

    status: str
    ours: str
    rows: pd.DataFrame
    seeds: int
    left_out: tuple[str, ...] = ()


Test = Callable[[Evidence], Answer | None]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and how runs decide it; its words and limits are in `rules`.

    Attributes:
        number: as in the list of testable claims; sections A to E.
        scope: the settings that it is about.
        test: the question; None where it is answered from the text and the tables.
    """

    number: int
    scope: Scope = ANYWHERE
    test: Test | None = None

    @property
    def words(self) -> dict[str, str]:
        """Its text, what it needs, the paper's numbers, and what the paper's tables say."""
        return claims()[self.number]


def mean_in(rows: pd.DataFrame, column: str, limits: Limits, what: str) -> Answer | None:
    """Ask whether the mean over seeds lies within limits."""
    values = by_seed(rows, column)
    if not len(values):
        return None
    span = Span.of(values)
    worst = _worst_cell(rows, column, limits)
    text = f"{what} {span} ({told(limits)})" + (f"; worst {worst}" if worst else "")
    return Answer(span.against(*limits), text, rows, span.seeds)


def _worst_cell(rows: pd.DataFrame, column: str, limits: Limits) -> str:
    places = _places(rows, CELL)
    if not places:
        return ""
    cells = rows.groupby(places, dropna=False)[column].mean()
    if len(cells) < 2:
        return ""
    worst = int(_outside(cells, limits).argmax())
    return f"{_name(cells.index[worst])} {cells.iloc[worst]:.1f}"


def each_in(
    rows: pd.DataFrame, column: str, limits: Limits, what: str, by: Sequence[str] = CELL
) -> Answer | None:
    """Ask whether every group (every cell) lies within limits; the worst one is named."""
    rows = rows[rows[column].notna()]
    if not len(rows):
        return None
    groups = rows.groupby(_places(rows, by), dropna=False)
    spans = {place: Span.of(by_seed(part, column)) for place, part in groups}
    found = [span.against(*limits) for span in spans.values()]
    status = "fails" if "fails" in found else "open" if "open" in found else "holds"
    means = pd.Series([span.mean for span in spans.values()])
    worst = list(spans)[int(_outside(means, limits).argmax())]
    inside = found.count("holds")
    text = f"{what} ({told(limits)}): {inside} of {len(found)} within"
    one = len(spans) == 1
    text = f"{what} {spans[worst]} ({told(limits)})" if one else text
    text += "" if one else f"; worst {_name(worst)} {spans[worst]}"
    return Answer(status, text, rows, min(span.seeds for span in spans.values()))


def _places(rows: pd.DataFrame, by: Sequence[str]) -> list[str]:
    own = ["rho"] if "rho" in rows and [*by] == CELL else []
    return [name for name in (*by, *own) if name in rows]


def _outside(values: pd.Series, limits: Limits) -> np.ndarray:
    """Return how far values are on the wrong side of the limit that they come closest to."""
    return np.asarray(np.maximum(limits[0] - values, values - limits[1]))


def _name(place: Any) -> str:
    parts = place if isinstance(place, tuple) else (place,)
    named = [str(p) for p in parts if isinstance(p, str)]
    named += [f"{p:g}" for p in parts if isinstance(p, float) and p == p]
    return "/".join(named)


def gaps(
    first: pd.DataFrame,
    second: pd.DataFrame,
    columns: str | tuple[str, str],
    by: Sequence[str] = SETTING,
    best: str = "mean",
    *,
    falls: bool = False,
) -> pd.DataFrame:
    """Return first minus second, `gap`, by setting (or `by`) and seed, where both are there.

    Args:
        first: rows of the one.
        second: rows of the other.
        columns: of both, or of each.
        by: what is compared within.
        best: "min" or "max" takes the lowest or highest defense of the second, not the mean.
        falls: return second minus first.
    """
    one, other = (columns, columns) if isinstance(columns, str) else columns
    attacks = {tuple(p) for p in second[[*SETTING, "attack"]].to_numpy()}
    shared = [tuple(p) in attacks for p in first[[*SETTING, "attack"]].to_numpy()]
    first = first[np.array(shared, dtype=bool)]
    keys = [*by, "seed"]
    left = first.groupby(keys)[one].mean()
    right = second.groupby([*keys, "defense"])[other].mean().groupby(keys).agg(best)
    gap = (right - left if falls else left - right).dropna().rename("gap").reset_index()
    parts = pd.concat([first, second])
    gap.attrs["source"] = parts[_placed(parts, keys).isin(_placed(gap, keys))]
    return gap


def _placed(rows: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    return pd.Series([tuple(row) for row in rows[list(keys)].to_numpy()], rows.index, dtype=object)


def resting(answer: Answer | None, rows: pd.DataFrame) -> Answer | None:
    """Let an answer about what was made of cells stand on these cells themselves."""
    return answer and replace(answer, rows=rows)


def gap_in(gap: pd.DataFrame, limits: Limits, what: str) -> Answer | None:
    """Ask whether a difference lies within limits in every setting."""
    asked = each_in(gap, "gap", limits, what, SETTING) if len(gap) else None
    return resting(asked, gap.attrs["source"])


def ordered(rows: pd.DataFrame, column: str, what: str, *, falls: bool = False) -> Answer | None:
    """Ask whether a figure rises (or falls) over the whole rho grid: Page's trend over seeds."""
    table = rows.pivot_table(index="seed", columns="rho", values=column, aggfunc="mean").dropna()
    if table.shape[1] < 3 or not len(table):
        return None
    values = -table if falls else table
    course = ", ".join(f"{rho:g}: {value:.1f}" for rho, value in table.mean().items())
    if len(table) < 2:
        found = _spearman(values.iloc[0])
        status = "holds" if found >= tolerance("order") else "fails"
        text = f"Spearman {found if not falls else -found:.2f}"
    else:
        chances = [_page(values), _page(-values)]
        chance = tolerance("chance")
        status = "holds" if chances[0] < chance else "fails" if chances[1] < chance else "open"
        if status == "open" and _spearman(values.mean()) <= 0:
            status = "fails"
        text = f"Page's trend p {chances[0]:.3f}"
    return Answer(status, f"{what} by rho {course}; {text}", rows, len(table))


def _page(values: pd.DataFrame) -> float:
    return float(stats.page_trend_test(values.to_numpy()).pvalue)


def _spearman(values: pd.Series) -> float:
    if values.nunique() < 2:
        return 0.0
    return float(stats.spearmanr(values.index.to_numpy(dtype=float), values).statistic)


def all_of(*answers: Answer | None) -> Answer | None:
    """Ask whether all parts hold; not measured if one is not."""
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(answers):
        return None
    found = [answer.status for answer in known]
    status = "fails" if "fails" in found else "open" if "open" in found else "holds"
    rows = pd.concat([answer.rows for answer in known])
    left = dict.fromkeys(text for answer in known for text in answer.left_out)
    seeds = min(answer.seeds for answer in known)
    return Answer(status, "; ".join(a.ours for a in known), rows, seeds, tuple(left))


def leaving(answer: Answer | None, *reasons: str) -> Answer | None:
    """Add what was left out to an answer."""
    if answer is None:
        return None
    left = dict.fromkeys((*answer.left_out, *(reason for reason in reasons if reason)))
    return replace(answer, left_out=tuple(left))


def awake(rows: pd.DataFrame) -> str:
    """Say how many cells were left out since their model is not purified, and which is worst."""
    out = rows.drop(purified(rows).index)
    if not len(out):
        return ""
    worst = out.iloc[int(np.nanargmax(out["o_asr"].astype(float)))]
    name = f"{worst['defense']}/{worst['attack']} {float(worst['o_asr']):.1f}"
    return f"{len(out)} of {len(rows)} rows, not purified (worst O-ASR {name})"


def of_purified(
    ask: Callable[[pd.DataFrame], Answer | None], rows: pd.DataFrame, least: int = 2
) -> Answer | None:
    """Ask of purified models only, of at least so many defenses; say what was left out."""
    kept = purified(rows) if len(rows) else rows
    if kept["defense"].nunique() < least:
        return None
    return leaving(ask(kept), awake(rows))


def of_baselines(
    number: int, column: str, what: str, by: Sequence[str] = CELL, *, mean: bool = False
) -> Test:
    """Ask a figure of the purified baselines: of each group `by`, or the mean of all."""

    def ask(kept: pd.DataFrame) -> Answer | None:
        limits = bounds(number)
        if mean:
            return mean_in(kept, column, limits, what)
        return each_in(kept, column, limits, what, by)

    return lambda e: of_purified(ask, e.baselines("o_asr", column))


def stands_in(rows: pd.DataFrame) -> Iterable[str]:
    """Say where a defense stands in for the paper's own."""
    for name, paper in HONEST.items():
        if "defense" in rows and (rows["defense"] == name).any():
            yield f"{paper} (the paper's): {name}, chosen by validation, stands in"
