"""What ANP, RNP and Fine-Pruning need: `python -m tests.benchmarks.pruning` prints the tables.

With `CSV` it writes what each threshold did in the study params/pruning.yaml, from the store in
which that was run (`pruning_sweep.csv`).
"""

import sys

import pandas as pd

from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reporting.checks import SIGN
from tests.benchmarks.scaled import NAMES, RESULTS, arrow, number

LOSSES = (2, 5, 10)  # points of test C-Acc


def sweep():
    """Return a row a threshold that a study's masks were tried at; pruned units where none were."""
    plan, store, rows = Plan(Study.load(ROOT / "params" / "pruning.yaml")), Store(), []
    for cell in plan.cells():
        run = store.find(plan.source(cell).key)
        info = store.summary(run).info if run else {}
        place = {"attack": cell.attack, "defense": cell.defense, "seed": cell.seed}
        if "pruned" in info:
            chosen = {"tau": info.get("tau"), "pruned": info["pruned"], "chosen": True}
            rows.append({**place, **chosen})
        rows += [{**place, **tried, "chosen": False} for tried in info.get("sweep", [])]
    return pd.DataFrame(rows)


def chosen():
    """Return the Markdown table of what each rule chose, and what came of it."""
    rows = pd.read_csv(RESULTS / "pruning.csv").set_index(["defense", "attack"])
    picked = pd.read_csv(RESULTS / "pruning_sweep.csv").query("chosen")
    picked = picked.set_index(["defense", "attack"])
    heads = ["defense"]
    for attack in NAMES:
        heads += [f"{NAMES[attack]}: threshold", "pruned", "C-Acc", "O-ASR -> P-ASR"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for defense in rows.index.unique("defense"):
        cells = [defense]
        for attack in NAMES:
            row, pick = rows.loc[(defense, attack)], picked.reindex([(defense, attack)]).iloc[0]
            none = pd.isna(pick["tau"]) or pick["tau"] < 0
            cells.append("-" if none else f"{pick['tau']:g}")
            cells.append("-" if pd.isna(pick["pruned"]) else f"{pick['pruned']:.0f}")
            cells.append(number(row["o_c_acc"]) + (f" {SIGN}" if pd.notna(row["checks"]) else ""))
            cells.append(arrow(row["o_asr"], row["p_asr"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def frontier():
    """Return the Markdown table of the least test ASR of any threshold, by the C-Acc it costs."""
    rows = pd.read_csv(RESULTS / "pruning_sweep.csv")
    rows = rows[~rows["chosen"] & rows["asr"].notna()]
    heads = ["masks of", "attack", "nothing pruned", *(f"at most {most} points" for most in LOSSES)]
    heads.append("C-Acc at the first threshold below 15")
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for (defense, attack), tried in rows.groupby(["defense", "attack"], sort=False):
        start = tried.iloc[0]
        cells = [defense.removesuffix("_oracle"), NAMES[attack]]
        cells.append(f"{number(start['c_acc'])} / {number(start['asr'])}")
        for most in LOSSES:
            kept = tried[start["c_acc"] - tried["c_acc"] <= most]
            best = kept.loc[kept["asr"].idxmin()]
            cells.append(f"{number(best['c_acc'])} / {number(best['asr'])}")
        low = tried[tried["asr"] < 15]
        cells.append(number(low.iloc[0]["c_acc"]) if len(low) else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        sweep().to_csv(sys.argv[1], index=False)
    else:
        print(chosen(), frontier(), sep="\n\n")
