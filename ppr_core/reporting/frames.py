"""Result tables as a notebook shows them: few columns, whole words, the woken in red."""

from collections.abc import Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from ppr_core.reporting import ranking, results
from ppr_core.reporting.leaderboard import Submission

WOKEN, ASLEEP = "color: #c0392b; font-weight: 600", "color: #2c7a4b"


def readable(rows: pd.DataFrame) -> Styler:
    """Return `results.cells` with a line for each attack and defense: before, after, change.

    A line that was woken (by `results.WOKEN_BY` points or more) has its change in red; one that was
    purified and stays so has it in green; one that fails a check has no verdict, in red as well.
    """
    table = results.summary(rows)
    heads = {"o_c_acc": "C-Acc", "o_asr": "O-ASR", "p_asr": "P-ASR"} | results.further_heads(table)
    lines, marks = [], []
    for _, row in table.iterrows():
        change, kept = row["change"], row["o_asr"] <= results.PURIFIED_BELOW
        figures = {head: results.cell_text(row, name) for name, head in heads.items()}
        told = f"{change:+.1f}" if pd.notna(change) else "-"
        told = "no verdict" if row["checks"] else told
        lines.append({"attack": row["attack"], "defense": results.label(row), **figures})
        lines[-1]["change of ASR"] = told
        woken = pd.notna(change) and change >= results.WOKEN_BY
        marks.append(
            WOKEN if woken or row["checks"] else ASLEEP if kept and pd.notna(change) else ""
        )
    frame = pd.DataFrame(lines, columns=["attack", "defense", *heads.values(), "change of ASR"])
    return frame.style.hide(axis="index").apply(lambda _: marks, subset=["change of ASR"])


def verdicts(found: Sequence[Submission]) -> Styler:
    """Return what `judge` says of defenses, a line each: the verdict coloured, with its reason."""
    frame = ranking.table(found)
    marks = [ASLEEP if word == "holds" else WOKEN for word in frame["verdict"]]
    marks = ["" if w == "open" else m for w, m in zip(frame["verdict"], marks, strict=True)]
    style = frame.style.hide(axis="index").format(precision=1, na_rep="-")
    style = style.set_properties(subset=["why"], **{"text-align": "left", "max-width": "24rem"})
    return style.apply(lambda _: marks, subset=["verdict"])
