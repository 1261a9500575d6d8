"""Where the backdoor sleeps: the table of `separation.csv`, printed by this module."""

import pandas as pd

from ppr_core.lab.graph import CLEAN, NO_DEFENSE
from ppr_core.reporting.evidence import purified
from ppr_core.reporting.plots.base import named_rows
from tests.benchmarks.scaled import RESULTS, arrow, each, number

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


if __name__ == "__main__":
    print(table(), ranks(), sep="\n\n")
