"""The rivals on real images: do they purify, and how many poisons wake what they purified?

`python -m tests.benchmarks.rivals` prints the table of `rivals.csv` and `rivals_poisons.csv`.
"""

import math

import pandas as pd

from ppr_core.lab.graph import CLEAN, NO_DEFENSE
from ppr_core.reactivation.cells import Cell, Setting
from ppr_core.reactivation.figures import wake_count
from ppr_core.reactivation.verdicts import Limits
from ppr_core.reporting.checks import SIGN
from ppr_core.reporting.plots.base import named_rows
from tests.benchmarks.scaled import NAMES, RESULTS, arrow, number

LIMITS = Limits()
# C-Acc and ASR on BadNet and Blended, 10 %, PreAct-ResNet18 of full width, as BackdoorBench prints
# them (its AC differs from AC's paper); or what the method's own paper claims in words.
ELSEWHERE = {
    "ac": "88.8/86.2, 88.5/99.7",
    "ss": "90.0/92.4, 90.4/99.8",
    "abl": "83.3/0, 77.3/0.7",
    "dbd": "89.7/1.3, 69.9/100",
    "tsc": "resists adaptive attacks",
    "wd": "distance resists relearning",
    "dist_reg": "distance resists relearning",
    "mc_reg": "a barrier resists relearning",
}


def read():
    """Return the kept rows of both tables, named, a row a model and number of poisons."""
    return pd.concat([pd.read_csv(RESULTS / f"rivals{part}.csv") for part in ("", "_poisons")])


def wakes(rows):
    """Return n50 of one model's rows, one draw a count; 0 where clean images alone wake it."""
    runs = rows[rows["p_asr"].notna()].drop_duplicates("ra_poisons")
    cells = [
        Cell(arm="count", setting=Setting(poisons=int(row["ra_poisons"])), p_asr=row["p_asr"])
        for _, row in runs.iterrows()
    ]
    for p_asr in rows["clean_retuned_asr"].dropna():
        cells.append(Cell(arm="relearn", setting=Setting(poisons=0), p_asr=p_asr))
    count, most = wake_count(cells, LIMITS.woken), int(runs["ra_poisons"].max())
    return f"> {most}" if math.isinf(count) else f"{count:.2g}"


def cells(rows, usual):
    """Return C-Acc, O-ASR -> P-ASR with the study's poisons, and what wakes the model.

    C-Acc is marked where a check failed, so that there is no verdict.
    """
    if rows.empty:
        return ["-"] * 3
    row = rows[rows["ra_poisons"].isna() | (rows["ra_poisons"] == usual)].iloc[0]
    asleep = row["o_asr"] <= LIMITS.purified and pd.notna(row["p_asr"])
    gated = f" {SIGN}" if pd.notna(row["checks"]) else ""
    shown = [number(row["o_c_acc"]) + gated, arrow(row["o_asr"], row["p_asr"])]
    return [*shown, wakes(rows) if asleep else "-"]


def table():
    """Return the Markdown table, a line a defense."""
    rows = named_rows(read())
    usual = rows["ra_poisons"].mode().iloc[0]
    heads = ["defense"]
    for attack in NAMES.values():
        heads += [f"{attack}: C-Acc", "O-ASR -> P-ASR", "wakes at"]
    heads += ["seconds", "reported elsewhere"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 2) + "---|"]
    for name, here in rows.groupby("name", observed=True):
        shown = [str(name)]
        for attack in NAMES:
            shown += cells(here[here["attack"] == attack], usual)
        defense = here["defense"].iloc[0]
        took = "-" if defense in (NO_DEFENSE, CLEAN) else f"{here['seconds'].min():.0f}"
        lines.append("| " + " | ".join([*shown, took, ELSEWHERE.get(defense, "")]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
