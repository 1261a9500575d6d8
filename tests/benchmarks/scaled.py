"""The README's table of real images, from the kept runs: `python -m tests.benchmarks.scaled`."""

import pandas as pd

from ppr_core.lab.places import ROOT
from ppr_core.reporting import paper

RESULTS = ROOT / "notebooks" / "results"
ROWS = ["none", "clean", "ep", "anp", "anp_oracle", "ibau", "ft_sam", "fst", "bti"]
ROWS += ["pam 0", "pam 0.9"]  # its rho: 0 is the same tuning without its step
ORACLES = ("ep", "anp_oracle")
HEADS = "| defense | BadNet C-Acc | O-ASR -> P-ASR | 20 poisons | 50 | the paper | "
HEADS += "Blended C-Acc | O-ASR -> P-ASR | the paper |"


def number(value):
    """Return a percentage as the table shows it."""
    return "-" if pd.isna(value) else f"{value:.1f}"


def arrow(before, after):
    """Return O-ASR -> P-ASR, or O-ASR alone."""
    return number(before) + (f" -> {number(after)}" if pd.notna(after) else "")


def picked(rows, attack, name):
    """Return the rows of one cell."""
    label, _, rho = name.partition(" ")
    found = rows[(rows["attack"] == attack) & (rows["defense"] == label)]
    return found[found["rho"] == float(rho)] if rho else found


def theirs(attack, name):
    """Return the paper's O-ASR -> P-ASR in Table 3, or in Table 1 for PAM at its rho."""
    label, _, rho = name.partition(" ")
    given = {"table": 1 if rho else 3, "attack": attack, "defense": label if rho != "0" else ""}
    found = paper.printed()
    for column, value in {**given, "model": "resnet18", "poison_rate": 0.05}.items():
        found = found[found[column] == value]
    found = found.set_index("figure")["paper"]
    return arrow(found["o_asr"], found.get("p_asr")) if len(found) else "-"


def table():
    """Return the Markdown table."""
    runs = pd.read_csv(RESULTS / "cifar10_scaled.csv")
    more = pd.read_csv(RESULTS / "cifar10_scaled_poisons.csv")
    lines = [HEADS, "|---|" + "---:|" * 8]
    for name in ROWS:
        label, _, rho = name.partition(" ")
        cells = [label + (f" rho {rho}" if rho else "") + " (oracle)" * (name in ORACLES)]
        for attack in ("badnet", "blended"):
            found = picked(runs, attack, name)
            known = len(found) and not pd.isna(found["o_asr"].iloc[0])
            row = found.iloc[0] if known else None
            cells.append(number(row["o_c_acc"]) if known else "not run")
            cells.append(arrow(row["o_asr"], row["p_asr"]) if known else "not run")
            if attack == "badnet":
                for count in (20, 50):
                    at = picked(more[more["ra_poisons"] == count], attack, name)
                    cells.append(number(at["p_asr"].iloc[0]) if len(at) else "-")
            cells.append(theirs(attack, name))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
