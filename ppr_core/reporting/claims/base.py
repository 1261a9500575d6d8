"""What a claim is, and the questions that claims of several sections put to figures."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ppr_core.reporting.evidence import (
    BASELINES,
    CELL,
    HONEST,
    Evidence,
    Scope,
    Span,
    by_seed,
    purified,
)
from ppr_core.reporting.rules import Limits, bounds, claims, told

R18, R50, D161, PRE = "resnet18", "resnet50", "densenet161", "resnet18_imagenet"
MAIN = (("cifar10", R18, 0.05),)  # Table 3
CIFAR10 = (*MAIN, ("cifar10", R18, 0.1), ("cifar10", R50, 0.05), ("cifar10", D161, 0.05))
RARE = (("cifar10", R18, 0.01),)
OTHERS = (("cifar100", PRE, 0.05), ("tiny_imagenet", PRE, 0.05))
EVERY = (*CIFAR10, *RARE, *OTHERS)  # Tables 3 to 9


OTHER_SETS = {"dataset": ["cifar100", "tiny_imagenet"]}
ANYWHERE = Scope()
ALL = tuple(BASELINES)


@dataclass(frozen=True)
class Answer:
    """What runs say of a claim.

    Attributes:
        status: "holds", "fails" or "open".
        ours: our figures, in words.
        rows: the cells that they come from.
        seeds: that the weakest figure rests on.
        left_out: what was left out, and why.
        indirect: whether the paper's own measure is not what they were taken with.
    """

    status: str
    ours: str
    rows: pd.DataFrame
    seeds: int
    left_out: tuple[str, ...] = ()
    indirect: bool = False


Test = Callable[[Evidence], Answer | None]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and how runs decide it; its words and limits are in `rules`.

    Attributes:
        number: as in the list of testable claims; sections A to E.
        scope: the settings that it is about.
        test: the question; None where it is answered from the text and the tables.
        names: the defenses that it is about: what decides it has all that the paper's table has.
        attacks: that it is about; empty for those of the paper's table.
        grid: whether it is about the rho of Table 10.
        accuracy: whether it is about C-Acc itself, so that models that lost it count.
    """

    number: int
    scope: Scope = ANYWHERE
    test: Test | None = None
    names: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    grid: bool = False
    accuracy: bool = False

    @property
    def words(self) -> dict[str, str]:
        """Its text, what it needs, the paper's numbers, and what the paper's tables say."""
        return claims()[self.number]


def mean_in(rows: pd.DataFrame, column: str, limits: Limits, what: str) -> Answer | None:
    """Ask whether the mean over seeds lies within limits."""
    rows = rows[rows[column].notna()]
    values = by_seed(rows, column)
    if not len(values):
        return None
    span = Span.of(values)
    worst = _worst_cell(rows, column, limits)
    text = f"{what} {span} ({told(limits)})" + (f"; worst {worst}" if worst else "")
    return Answer(span.against(limits), text, rows, span.seeds)


def _worst_cell(rows: pd.DataFrame, column: str, limits: Limits) -> str:
    places = _places(rows, CELL)
    if not places:
        return ""
    cells = rows.groupby(places, dropna=False)[column].mean()
    if len(cells) < 2:
        return ""
    worst = int(_outside(cells, limits).argmax())
    return f"{_name(cells.index[worst], places)}: {cells.iloc[worst]:.1f}"


def each_in(
    rows: pd.DataFrame, column: str, limits: Limits, what: str, by: Sequence[str] = CELL
) -> Answer | None:
    """Ask whether every group (every cell) lies within limits; the worst one is named."""
    rows = rows[rows[column].notna()]
    if not len(rows):
        return None
    places = _places(rows, by)
    groups = rows.groupby(places, dropna=False)
    spans = {place: Span.of(by_seed(part, column)) for place, part in groups}
    found = [span.against(limits) for span in spans.values()]
    means = pd.Series([span.mean for span in spans.values()])
    worst = list(spans)[int(_outside(means, limits).argmax())]
    text = f"{what} {spans[worst]} ({told(limits)})"
    if len(spans) > 1:
        text = f"{what} ({told(limits)}): {found.count('holds')} of {len(found)} within"
        text += (
            f"; worst {_name(worst, places)}: {spans[worst]}; mean {Span.of(by_seed(rows, column))}"
        )
    return Answer(_joint(found), text, rows, min(span.seeds for span in spans.values()))


def _joint(found: Sequence[str]) -> str:
    """Return the status of a claim by those of its parts."""
    return "fails" if "fails" in found else "open" if "open" in found else "holds"


def _places(rows: pd.DataFrame, by: Sequence[str]) -> list[str]:
    own = ["rho"] if "rho" in rows and [*by] == CELL else []
    return [name for name in (*by, *own) if name in rows]


def _outside(values: pd.Series, limits: Limits) -> np.ndarray:
    """Return how far values are on the wrong side of the limit that they come closest to."""
    return np.asarray(np.maximum(limits.low - values, values - limits.high))


def _name(place: Any, names: Sequence[str]) -> str:
    """Return how texts call a cell: cifar10/resnet18/blended/pam at 5 %, rho 0.5."""
    parts = dict(zip(names, place if isinstance(place, tuple) else (place,), strict=True))
    rate, rho = parts.pop("poison_rate", None), parts.pop("rho", None)
    said = "/".join(str(part) for part in parts.values())
    said += f" at {100 * rate:g} %" if rate is not None else ""
    return said + (f", rho {rho:g}" if rho is not None and rho == rho else "")


def resting(answer: Answer | None, rows: pd.DataFrame) -> Answer | None:
    """Let an answer about what was made of cells stand on these cells themselves."""
    return answer and replace(answer, rows=rows)


def all_of(*answers: Answer | None) -> Answer | None:
    """Ask whether all parts hold; not measured if one is not."""
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(answers):
        return None
    rows = pd.concat([answer.rows for answer in known])
    left = dict.fromkeys(text for answer in known for text in answer.left_out)
    return Answer(
        _joint([answer.status for answer in known]),
        "; ".join(answer.ours for answer in known),
        rows,
        min(answer.seeds for answer in known),
        tuple(left),
        any(answer.indirect for answer in known),
    )


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


def of_one(ask: Callable[[pd.DataFrame], Answer | None], rows: pd.DataFrame) -> Answer | None:
    """Ask of the purified models of the one defense that a claim is about, such as PAM.

    Where some of its models are not purified, the claim is open at best: it is about all of them.
    """
    found = of_purified(ask, rows, least=1)
    if found is not None and found.status == "holds" and awake(rows):
        return replace(found, status="open")
    return found


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


def on_both(test: Test, who: str | None = None) -> Test:
    """Ask only where both of the other data sets are there (both have a defense)."""

    def ask(e: Evidence) -> Answer | None:
        rows = e.of(who, "p_asr") if who else e.cells
        return test(e) if len(rows) and rows["dataset"].nunique() > 1 else None

    return ask


def stands_in(rows: pd.DataFrame) -> Iterable[str]:
    """Say where a defense stands in for the paper's own."""
    for name, paper in HONEST.items():
        if "defense" in rows and (rows["defense"] == name).any():
            yield f"{paper} (the paper's): {name}, chosen by validation, stands in"
