"""Result tables as a notebook shows them: few columns, whole words, the woken in red."""

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd
from IPython.display import HTML, Markdown
from pandas.io.formats.style import Styler

from ppr_core.reporting import ranking, results
from ppr_core.reporting.claims import NOT_TESTED
from ppr_core.reporting.submissions import Submission

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


def plain(rows: pd.DataFrame, heads: Mapping[str, str]) -> Styler:
    """Return columns of a table under the names that people read; a dash where there is no value.

    Args:
        rows: with the columns.
        heads: column -> heading.
    """
    frame = rows[list(heads)].rename(columns=dict(heads))
    return frame.style.hide(axis="index").format(precision=2, na_rep="-")


def victims(table: pd.DataFrame) -> Styler:
    """Return `victims.table` under the names that people read."""
    heads = {
        "attack": "attack",
        "poisoned": "poisoned images",
        "psnr_train_db": "PSNR in training (dB)",
        "psnr_test_db": "PSNR at test time (dB)",
        "c_acc": "C-Acc",
        "asr": "ASR",
        "clean_model_asr": "ASR on the clean model",
        "seconds": "seconds",
    }
    return plain(table, heads)


def paths(rows: pd.DataFrame) -> Styler:
    """Return the figures of the path of `results.cells`, one line a purified model."""
    rows = rows[rows["distance"].notna()]
    heads = {
        "attack": "attack",
        "name": "defense",
        "seed": "seed",
        "p_asr": "P-ASR",
        "barrier": "barrier",
        "clean_barrier": "clean barrier",
        "t_star": "t*",
        "distance": "L2 distance",
        "path_distance": "of it, asleep",
    }
    further = {"existence": "existence", "separation_features": "separation of features"}
    heads |= {
        name: head for name, head in further.items() if name in rows and any(rows[name].notna())
    }
    return plain(rows.assign(name=rows.apply(results.label, axis=1)), heads)


def regressions(table: pd.DataFrame) -> Styler | Markdown:
    """Return `regression.explained` as people read it, or that there are too few models for it."""
    if not len(table):
        return Markdown("Too few purified models for a regression.")
    heads = {
        "who": "models",
        "models": "count",
        "statistics": "batch norm",
        "predictor": "predictor",
        "slope": "slope",
        "low": "from",
        "high": "to",
        "r2": "R²",
        "by": "clusters by",
    }
    return plain(table, heads)


def claims(board: pd.DataFrame) -> HTML:
    """Return the scoreboard: what was tested, with the reasons on demand; the rest folded."""
    tested = board[board["verdict"] != NOT_TESTED]
    rest = board[board["verdict"] == NOT_TESTED]
    return HTML(
        f"{_claims(tested)}<details><summary>{len(rest)} claims that this study does not "
        f"test</summary>{_claims(rest)}</details>"
    )


def _claims(board: pd.DataFrame) -> str:
    heads = ("claim", "verdict", "ours", "paper")
    lines = ["".join(f'<th style="text-align:left">{head}</th>' for head in heads)]
    for _, row in board.iterrows():
        word = str(row["verdict"])
        look = ASLEEP if word in ("yes", "holds") else WOKEN if word in ("no", "fails") else ""
        grade = f" ({row['grade']})" if row["grade"] else ""
        left = str(row["left out"] or "")
        why = f"<details><summary>left out</summary>{escape(left)}</details>" if left else ""
        cells = [escape(str(row["claim"])), f'<span style="{look}">{escape(word)}</span>{grade}']
        cells += [escape(str(row["ours"])) + why, escape(str(row["paper"]))]
        lines.append("".join(f'<td style="text-align:left">{cell}</td>' for cell in cells))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def verdicts(found: Sequence[Submission]) -> Styler:
    """Return what `judge` says of defenses, a line each: the verdict coloured, with its reason."""
    frame = ranking.table(found)
    marks = [ASLEEP if word == "holds" else WOKEN for word in frame["verdict"]]
    marks = ["" if w == "open" else m for w, m in zip(frame["verdict"], marks, strict=True)]
    style = frame.style.hide(axis="index").format(precision=1, na_rep="-")
    style = style.set_properties(subset=["why"], **{"text-align": "left", "max-width": "24rem"})
    return style.apply(lambda _: marks, subset=["verdict"])
