"""The README's table and picture of real images, from the kept runs.

`python -m tests.benchmarks.scaled` prints one and draws the other.
"""

import pandas as pd

from ppr_core.lab.places import ROOT
from ppr_core.reporting import paper, plots
from ppr_core.reporting.evidence import purified
from ppr_core.reporting.plots.base import named_rows

RESULTS = ROOT / "notebooks" / "results"
POISONS = {"badnet": (20, 50), "blended": (20,)}  # of RA, beside the paper's 5 and 1
WAYS = {
    "distance": "distance",
    "path_distance": "asleep over",
    "barrier": "barrier",
    "rc_barrier": "barrier, recalibrated",
}
NAMES = {"badnet": "BadNet", "blended": "Blended"}


def read(*names):
    """Return what was kept of the study, one table of several files."""
    return pd.concat([pd.read_csv(RESULTS / f"cifar10_scaled{name}.csv") for name in names])


def number(value):
    """Return a percentage as the table shows it."""
    return "-" if pd.isna(value) else f"{value:.1f}"


def arrow(before, after):
    """Return O-ASR -> P-ASR, or O-ASR alone."""
    return number(before) + (f" -> {number(after)}" if pd.notna(after) else "")


def theirs(attack, defense, rho):
    """Return the paper's O-ASR -> P-ASR in Table 3, or in Table 1 for PAM at its rho."""
    given = {"table": 3 if pd.isna(rho) else 1, "defense": defense if rho != 0 else ""}
    found = paper.printed()
    given |= {"attack": attack, "model": "resnet18", "poison_rate": 0.05}
    for column, value in given.items():
        found = found[found[column] == value]
    found = found.set_index("figure")["paper"]
    return arrow(found["o_asr"], found.get("p_asr")) if len(found) else "-"


def each(values):
    """Return what the seeds gave, in their order."""
    return "; ".join(values)


def cells(runs, more, attack):
    """Return a defense's columns of one attack; `more` has its rows with further poisons."""
    found = runs[runs["attack"] == attack].sort_values("seed")
    rows = [row for _, row in found.iterrows()]
    shown = [each(number(row["o_c_acc"]) for row in rows) or "not run"]
    shown.append(each(arrow(row["o_asr"], row["p_asr"]) for row in rows) or "not run")
    for count in POISONS[attack]:
        at = more[(more["attack"] == attack) & (more["ra_poisons"] == count)].sort_values("seed")
        shown.append(each(number(value) for value in at["p_asr"]) or "-")
    return [*shown, theirs(attack, *runs[["defense", "rho"]].iloc[0])]


def table():
    """Return the Markdown table; a cell lists its seeds."""
    runs, more = named_rows(read("", "_seeds")), named_rows(read("_poisons"))
    heads = ["defense"]
    for attack, counts in POISONS.items():
        heads += [f"{NAMES[attack]} C-Acc", "O-ASR -> P-ASR"]
        heads += [f"{count} poisons" for count in counts] + ["the paper"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, here in runs.groupby("name", observed=True):
        shown = [name]
        for attack in POISONS:
            shown += cells(here, more[more["name"] == name], attack)
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def paths():
    """Return the Markdown table of the paths, and what orders the models' P-ASR on them."""
    runs = named_rows(read(""))
    runs = runs[runs["barrier"].notna()]
    heads = ["attack", "defense", *WAYS.values(), "O-ASR -> P-ASR"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for attack, here in runs.groupby("attack"):
        for _, row in here.iterrows():
            shown = [attack, row["name"], *(number(row[way]) for way in WAYS)]
            lines.append("| " + " | ".join([*shown, arrow(row["o_asr"], row["p_asr"])]) + " |")
        asleep = purified(here)
        orders = asleep[[*WAYS]].corrwith(asleep["p_asr"], method="spearman")
        shown = [attack, f"rank correlation with P-ASR, {len(asleep)} purified models"]
        lines.append("| " + " | ".join([*shown, *(f"{order:.2f}" for order in orders), ""]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), paths(), sep="\n\n")
    runs, points = read(""), read("_paths")
    known = named_rows(runs)["name"].cat.categories  # colours are those of their order
    points["name"] = pd.Categorical(points["name"], known)
    figures = {"": plots.robustness_bars(runs), "_paths": plots.path_curves(points)}
    for name, figure in figures.items():
        file = RESULTS / f"cifar10_scaled{name}.png"
        figure.savefig(file, dpi=90, bbox_inches="tight")
