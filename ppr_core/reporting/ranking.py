"""Does the order of defenses change from RA as published to the worst case? What judges say."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from ppr_core.reactivation.cells import Cell
from ppr_core.reporting.submissions import Examined, Submission

LEAST = 3  # defenses from which on an order is worth a number


def points(found: Sequence[Submission]) -> pd.DataFrame:
    """Return one row a cell of every battery.

    Columns: attack, defense, seed, arm, setting, poisons, p_asr (percent), counts (False where a
    clean model wakes or breaks, too, or did not go through it). A setting that was left out since
    it implants has no P-ASR; draws that diverged are left out.
    """
    rows = [
        {
            "attack": one.attack,
            "defense": one.title,
            "seed": run.seed,
            "arm": cell.arm,
            "setting": str(cell.setting.place),
            "poisons": cell.setting.poisons,
            "p_asr": cell.p_asr,
            "counts": cell.admissible is True or cell.arm == "start",
        }
        for one in found
        for run in one.runs
        for cell in run.cells
        if cell.p_asr is not None or cell.admissible is False
    ]
    return pd.DataFrame(rows).astype({"p_asr": float})


def gated(submission: Submission) -> bool:
    """Say whether a check has left it without a verdict."""
    return submission.verdict.word == "no verdict"


def orders(found: Sequence[Submission]) -> pd.DataFrame:
    """Return P-ASR by RA as published and in the worst case: one row a defense that was purified.

    Columns: attack, defense, gated, and for each of paper and worst the mean over draws and seeds
    with the lowest and highest of them (percent).
    """
    rows = []
    for one in found:
        paper, worst = _draws(one)
        if not paper or not worst:
            continue
        row = {"attack": one.attack, "defense": one.title, "gated": gated(one)}
        for what, values in (("paper", paper), ("worst", worst)):
            row |= {what: statistics.fmean(values)}
            row |= {f"{what}_low": min(values), f"{what}_high": max(values)}
        rows.append(row)
    spread = [f"{what}{end}" for what in ("paper", "worst") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["attack", "defense", "gated", *spread])


def _draws(submission: Submission) -> tuple[list[float], list[float]]:
    """Return P-ASR of every draw and seed: by RA as published, and in the worst case."""
    paper = [cell.p_asr for run in submission.runs for cell in _paper(run)]
    worst = [p_asr for run in submission.runs for p_asr in run.figures.p_asr]
    return [p_asr for p_asr in paper if p_asr is not None], worst


def _paper(run: Examined) -> list[Cell]:
    return [
        cell
        for cell in run.cells
        if cell.arm == "count" and cell.setting.poisons == run.figures.paper_poisons
    ]


def sentences(found: Sequence[Submission]) -> list[str]:
    """Say of each attack whether the order of defenses changes, with the spread over draws.

    Rows that fail a check, and models that were not purified, have no place in an order.
    """
    lines = []
    for attack in dict.fromkeys(one.attack for one in found):
        here = [one for one in found if one.attack == attack]
        kept = [one for one in here if not gated(one) and all(_draws(one))]
        left = [one.title for one in here if one not in kept]
        lines.append(f"{attack}: {_order(kept)}")
        if left:
            lines.append(
                f"{attack}, without a place in the order (not purified, or a check failed): "
                f"{', '.join(left)}."
            )
    return lines


def _order(kept: Sequence[Submission]) -> str:
    count = len(kept)
    if count < LEAST:
        return f"{count} defenses with a verdict; an order takes {LEAST}."
    frame, draws = orders(kept), [_draws(one) for one in kept]
    swapped = []
    rows: Any = frame.itertuples()
    for one, other in itertools.combinations(rows, 2):
        if (one.paper - other.paper) * (one.worst - other.worst) < 0:
            swapped.append((one, other))
    surely = [pair for pair in swapped if _apart(*pair, "paper") and _apart(*pair, "worst")]
    pairs = count * (count - 1) // 2
    tau = _tau(frame["paper"], frame["worst"])
    taus = [
        _tau([paper[i % len(paper)] for paper, _ in draws], [w[j % len(w)] for _, w in draws])
        for i in range(max(len(paper) for paper, _ in draws))
        for j in range(max(len(worst) for _, worst in draws))
    ]
    change = "stays" if not swapped else "changes" if surely else "changes within the spread"
    return (
        f"from RA as published to the worst case the order of {count} defenses {change}: "
        f"{len(swapped)} of {pairs} pairs trade places, {len(surely)} of them by more than the "
        f"spread over draws (Kendall's tau {tau:.2f}; {min(taus):.2f} to {max(taus):.2f} by draw)."
    )


def _apart(one: tuple, other: tuple, what: str) -> bool:
    """Say whether two defenses' draws do not overlap."""
    spans = [(getattr(row, f"{what}_low"), getattr(row, f"{what}_high")) for row in (one, other)]
    return spans[0][0] > spans[1][1] or spans[1][0] > spans[0][1]


def _tau(first: Iterable[float], second: Iterable[float]) -> float:
    """Return Kendall's tau; ties all over leave no order to compare, which counts as 0."""
    tau = float(stats.kendalltau([*first], [*second]).statistic)
    return tau if tau == tau else 0.0


def table(found: Sequence[Submission]) -> pd.DataFrame:
    """Return one row a defense and attack as people read them, with the verdict."""
    rows = []
    for one in found:
        paper, worst = _draws(one)
        rows.append(
            {
                "attack": one.attack,
                "defense": one.title,
                "verdict": one.verdict.word,
                "O-ASR": statistics.fmean(run.figures.o_asr for run in one.runs),
                "P-ASR, RA as published": statistics.fmean(paper) if paper else None,
                "P-ASR, worst case": statistics.fmean(worst) if worst else None,
                "C-Acc lost": (one.victim_c_acc or 0) - (one.c_acc or 0),
                "why": one.verdict.reason,
            }
        )
    return pd.DataFrame(rows)
