"""The battery as pictures: what wakes a model, how few poisons do, and who is safest."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ppr_core.reporting import ranking
from ppr_core.reporting.plots.base import AFTER, CLEAN, MARKERS, names_of, new_figure
from ppr_core.reporting.results import COLOURS
from ppr_core.reporting.submissions import Submission

ARMS = ("start", "relearn", "count", "strength", "batch norm", "trigger", "fresh")
OUT = "#c9ced4"  # of what does not count
NONE = 0.5  # poisons: where a model stands that clean samples alone wake
MOST = 1.6  # times the largest count: where a model stands that no count wakes


def battery_map(found: Sequence[Submission]) -> Figure:
    """Draw the battery of every defense that purifies: its arms by poisons, the colour is P-ASR.

    A field is the worst setting of its arm with so many poisons, among those that count; grey where
    none does, since a clean model wakes or breaks there as well, or was not tried (a dash where no
    setting was run).

    Args:
        found: what `judge` says of the defenses, at least one of them purified.
    """
    rows = ranking.points(found)
    every = list(rows.groupby(["attack", "defense"], sort=False))
    panels = [(place, part) for place, part in every if set(part["arm"]) != {"start"}] or every
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    counts = sorted(rows["poisons"].unique())
    size = {"nrows": lines, "ncols": columns, "sharey": True}
    figure, axes = new_figure(4.6 * columns + 1, 3.1 * lines, **size)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for index, (axis, (place, part)) in enumerate(zip(axes.flat, panels, strict=False)):
        _map(axis, part, counts, bar=index == len(panels) - 1)
        axis.set_title(", ".join(map(str, place[::-1])), fontsize=11)
    figure.tight_layout()
    return figure


def _map(axis: Axes, part: pd.DataFrame, counts: list[int], *, bar: bool) -> None:
    by_draw = part.groupby(["arm", "poisons", "counts", "setting", "seed"])["p_asr"].mean()
    worst = by_draw.groupby(["arm", "poisons", "counts", "seed"]).max()
    means = worst.groupby(["arm", "poisons", "counts"]).mean().unstack("counts")
    means = means.reindex(columns=[True, False])
    tables = {
        kept: means[kept].unstack("poisons").reindex(index=ARMS, columns=counts)
        for kept in (True, False)
    }
    shown: Any = tables[True]
    tried = {*zip(part["arm"], part["poisons"], strict=True)}
    limits = {"vmin": 0, "vmax": 100, "cmap": "Reds"}
    style = {"annot": True, "fmt": ".0f", "annot_kws": {"fontsize": 9}, "linewidths": 0.5}
    sns.heatmap(shown, cbar=bar, ax=axis, cbar_kws={"label": "P-ASR (%)"}, **limits, **style)
    for line, arm in enumerate(ARMS):
        for column, count in enumerate(counts):
            value: Any = tables[False].loc[arm, count]
            if pd.isna(shown.loc[arm, count]) and (arm, count) in tried:
                axis.add_patch(Rectangle((column, line), 1, 1, facecolor=OUT, edgecolor="white"))
                middle: dict[str, Any] = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": 9,
                    "color": "#5b6775",
                }
                text = "–" if pd.isna(value) else f"{value:.0f}"
                axis.text(column + 0.5, line + 0.5, text, **middle)
    axis.grid(visible=False)
    axis.set(xlabel="poisoned samples", ylabel="")
    axis.tick_params(axis="y", rotation=0)


def wake_counts(found: Sequence[Submission]) -> Figure:
    """Draw the fewest poisons that wake each model, beside those that clean models need.

    Args:
        found: what `judge` says of the defenses.
    """
    attacks = names_of(pd.Series([one.attack for one in found]))
    tried = [count for one in found for run in one.runs for count, _ in run.figures.counts]
    beyond = MOST * max(tried, default=50)
    longest = max(sum(one.attack == attack for one in found) for attack in attacks)
    figure, axes = new_figure(6.4 * len(attacks) + 1, 0.5 * longest + 1.6, ncols=len(attacks))
    for axis, attack in zip(axes[0], attacks, strict=True):
        here = [one for one in found if one.attack == attack]
        names = []
        for line, one in enumerate(reversed(here)):
            purified = [run.figures for run in one.runs if run.figures.counts or run.figures.p_asr]
            some = 0 < len(purified) < len(one.runs)
            names.append(one.title + f", {len(purified)} of {len(one.runs)} seeds" * some)
            if not purified:
                text: dict[str, Any] = {"va": "center", "fontsize": 9, "backgroundcolor": "white"}
                axis.text(1, line, "not purified: nothing to wake", **text)
            for judged in purified:
                clean = _placed(judged.clean_wake_count, beyond)
                own = _placed(judged.wake_count, beyond)
                axis.plot([own, clean], [line, line], color=OUT, linewidth=2, zorder=1)
                axis.plot(clean, line, marker="s", color=CLEAN, linestyle="", markersize=7)
                face = "none" if ranking.gated(one) else AFTER
                shape: dict[str, Any] = {
                    "marker": "o",
                    "markersize": 9,
                    "markeredgewidth": 2,
                    "linestyle": "",
                }
                axis.plot(own, line, color=AFTER, markerfacecolor=face, **shape)
        axis.set_yticks(range(len(here)), names)
        axis.set_xscale("log")
        ticks = [NONE, *sorted(set(tried)), beyond]
        axis.set_xticks(ticks, ["none", *(f"{tick:g}" for tick in ticks[1:-1]), "more"])
        axis.minorticks_off()
        axis.set(title=attack, xlabel="poisoned samples that bring ASR to 50 %")
        axis.set_ylim(-0.6, len(here) - 0.4)
    dot: dict[str, Any] = {"marker": "o", "color": AFTER, "linestyle": ""}
    handles = [
        axes[0][-1].plot([], [], label="this model", **dot)[0],
        axes[0][-1].plot([], [], label="a check failed", markerfacecolor="none", **dot)[0],
        axes[0][-1].plot([], [], "s", color=CLEAN, label="clean models")[0],
    ]
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
    axes[0][-1].legend(handles=handles, **beside)
    figure.tight_layout()
    return figure


def _placed(count: float | None, beyond: float) -> float:
    """Return where a wake count stands on a scale that has neither 0 nor "more than any tried"."""
    return beyond if count is None else max(count, NONE)


def order_changes(found: Sequence[Submission]) -> Figure:
    """Draw each defense's P-ASR by RA as published and in the worst case; bars span all draws.

    Args:
        found: what `judge` says of the defenses; those that were not purified are left out.
    """
    frame = ranking.orders(found)
    attacks = names_of(frame["attack"])
    names = names_of(frame["defense"])
    figure, axes = new_figure(
        4.6 * max(len(attacks), 1) + 1.8, 4.4, ncols=max(len(attacks), 1), sharey=True
    )
    for axis, attack in zip(axes[0], attacks, strict=False):
        rows: Any = frame[frame["attack"] == attack].itertuples()
        for row in rows:
            index = names.index(row.defense)
            means = [row.paper, row.worst]
            reach = [
                [row.paper - row.paper_low, row.worst - row.worst_low],
                [row.paper_high - row.paper, row.worst_high - row.worst],
            ]
            look: dict[str, Any] = {
                "color": COLOURS[(index + 1) % len(COLOURS)],
                "capsize": 4,
                "markersize": 8,
            }
            look |= {"marker": MARKERS[index % len(MARKERS)], "markersize": 8, "linewidth": 2}
            if row.gated:
                look |= {"linestyle": ":", "markerfacecolor": "none"}
            label = row.defense + (", a check failed" if row.gated else "")
            axis.errorbar([0, 1], means, yerr=reach, label=label, **look)
        axis.set_xticks([0, 1], ["RA as published", "worst case"])
        axis.set(title=attack, ylabel="P-ASR (%)", xlim=(-0.25, 1.25), ylim=(-3, 103))
    if attacks:
        axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.tight_layout()
    return figure
