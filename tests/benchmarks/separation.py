"""Where the backdoor sleeps: tables and picture of `separation.csv`.

`python -m tests.benchmarks.separation` prints the ones and draws the other.
"""

import pandas as pd

from ppr_core.lab.graph import CLEAN, NO_DEFENSE
from ppr_core.reporting import regression
from ppr_core.reporting.evidence import purified
from ppr_core.reporting.plots.base import look_of, named_rows, new_figure
from tests.benchmarks.scaled import NAMES, RESULTS, arrow, each, number

FIGURES = {
    "separation": "as it stands",
    "separation_layer": "last layer back",
    "separation_features": "and statistics anew",
}
OTHERS = {"o_asr": "O-ASR", "barrier": "barrier", "rc_barrier": "barrier, recalibrated"}
STUDIES = {"shapes": "demo", "folder": "CIFAR-10"}


def read():
    """Return the kept rows of models that RA was made of, by name."""
    rows = named_rows(pd.read_csv(RESULTS / "separation.csv"))
    return rows[rows["defense"] != NO_DEFENSE].sort_values("seed")


def table():
    """Return the Markdown table, a line a model; a cell lists its seeds."""
    heads = ["images, attack", "defense", *FIGURES.values(), "O-ASR -> P-ASR"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for (data, attack), here in read().groupby(["dataset", "attack"]):
        for name, rows in here.groupby("name", observed=True):
            shown = [each(map(number, rows[figure])) for figure in FIGURES]
            shown.append(each(map(arrow, rows["o_asr"], rows["p_asr"])))
            lines.append(" | ".join([f"| {STUDIES[data]}, {attack}", name, *shown]) + " |")
    return "\n".join(lines)


def ranks():
    """Return the Markdown table of rank correlations with P-ASR over purified models."""
    kinds = FIGURES | OTHERS
    heads = ["victim", "models", *kinds.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    rows = purified(read())
    rows = rows[rows["defense"] != CLEAN]
    for (data, attack, seed), here in rows.groupby(["dataset", "attack", "seed"]):
        found = [here[kind].corr(here["p_asr"], method="spearman") for kind in kinds]
        shown = ["-" if value != value else f"{value:.2f}" for value in found]
        victim = f"{STUDIES[data]}, {attack}, seed {seed}"
        lines.append(" | ".join([f"| {victim}", str(len(here)), *shown]) + " |")
    return "\n".join(lines)


def picture():
    """Draw an arrow a purified model, from its separation as it stands to that of its features."""
    rows = read()
    rows = rows[rows["defense"] != CLEAN]
    groups = list(purified(rows).groupby(["dataset", "attack"]))
    figure, axes = new_figure(4.2 * len(groups), 4, ncols=len(groups), sharex=True, sharey=True)
    look = look_of(rows["name"])
    for axis, ((data, attack), here) in zip(axes[0], groups, strict=True):
        for name, some in here.groupby("name", observed=True):
            ends = some["separation"], some["separation_features"], some["p_asr"]
            colour, marker = look["palette"][name], look["markers"][name]
            axis.hlines(ends[2], *ends[:2], color=colour, alpha=0.5)
            axis.scatter(ends[1], ends[2], color=colour, marker=marker, s=80, label=name, zorder=3)
            axis.scatter(ends[0], ends[2], color=colour, s=12)
        axis.axvline(50, color="grey", linestyle=":")
        axis.set(title=f"{STUDIES[data]}, {NAMES[attack]}", xlabel="separation, %", ylim=(-4, 104))
    axes[0][0].set_ylabel("P-ASR, %")
    shown = {}
    for axis in axes[0]:
        shown |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
    axes[0][-1].legend(shown.values(), shown, **beside)
    figure.tight_layout()
    return figure


def explained():
    """Return what features explain of the demo's P-ASR beyond distance and either barrier."""
    rows = read()
    rows = rows[rows["dataset"] == "shapes"]
    ways = [("distance", barrier) for barrier in ("barrier", "rc_barrier")]
    fits = [regression.beyond(rows, "separation_features", way).assign(held=way[1]) for way in ways]
    return pd.concat(fits)[["held", "who", "models", "r2_before", "r2", "slope", "low", "high"]]


if __name__ == "__main__":
    print(table(), ranks(), explained().round(2).to_string(index=False), sep="\n\n")
    picture().savefig(RESULTS / "separation.png", dpi=90, bbox_inches="tight")
