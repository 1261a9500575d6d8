"""Tables 1 to 11 as the paper prints them: its rows and columns, our numbers over its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ppr_core.reporting import checks, paper
from ppr_core.reporting.evidence import SETTING
from ppr_core.reporting.setting import PAPER

TITLES = {
    1: "PAM on CIFAR-10",
    2: "PAM on CIFAR-100 and Tiny-ImageNet",
    3: "CIFAR-10, ResNet-18, 5 % poisoned",
    4: "CIFAR-10, ResNet-18, 10 % poisoned",
    5: "CIFAR-10, ResNet-50, 5 % poisoned",
    6: "CIFAR-10, DenseNet-161, 5 % poisoned",
    7: "CIFAR-10, ResNet-18, 1 % poisoned",
    8: "CIFAR-100, ResNet-18 pretrained, 5 % poisoned",
    9: "Tiny-ImageNet, ResNet-18 pretrained, 5 % poisoned",
    10: "PAM over rho, Blended, CIFAR-10, ResNet-18",
    11: "BTI with SAM beside PAM, CIFAR-10, ResNet-18, 5 % poisoned",
}
BLOCKED = (1, 2)  # tables with a block of rows for each setting, and averages
OVER_RHO = 10
METHODS = {
    **{"none": "Attack", "clean": "Clean", "ep": "EP", "anp_oracle": "ANP", "ibau": "BAU"},
    **{"ft_sam": "SAM", "fst": "FST", "bti": "BTI", "bti_sam": "BTI+SAM", "pam": "PAM"},
}
MODES = {"O-Backdoor": "O-Back", "O-Robustness": "O-Rob", "P-Robustness": "P-Rob"}
ATTACKS = {"badnet": "BadNet", "blended": "Blended", "ssba": "SSBA", "lc": "LC", "avg": "Avg"}
PLACES = {
    **{"resnet18": "ResNet18", "resnet50": "ResNet50", "densenet161": "Dense161"},
    **{"cifar100": "CIFAR-100", "tiny_imagenet": "Tiny"},
}
LEGEND = "O-Back: no defense. O-Rob: after the defense. P-Rob: after RA."
NOT_RUN = "no study has this cell"
Held = dict[Any, pd.DataFrame]  # data set, model, rate, attack, defense -> our rows
MARKS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Printed:
    """A table of the paper beside ours.

    Attributes:
        number: of the paper's table.
        title: what it shows.
        heads: of the columns: (group, metric).
        lines: one a row of the paper's: its label, our texts, the paper's texts.
        notes: mark of a dash -> why there is no number.
        filled: how many of the paper's numbers stand beside ours, and how many there are.
        failed: a line for each check that rows behind figures with a sign fail.
    """

    number: int
    title: str
    heads: list[tuple[str, str]]
    lines: list[tuple[str, list[str], list[str]]]
    notes: dict[str, str]
    filled: tuple[int, int]
    failed: list[str]

    def text(self) -> str:
        """Return the table for a terminal, at most 120 columns wide."""
        width = max(len(line[0]) for line in self.lines) + 1
        groups = [g if place % 2 == 0 else "" for place, (g, _) in enumerate(self.heads)]
        rows = [["", "", *groups], ["", "", *(metric for _, metric in self.heads)]]
        for label, ours, theirs in self.lines:
            rows += [[label, "ours", *ours], ["", "paper", *theirs]]
        lines = [self.caption(), LEGEND, ""]
        wide = max(8, *(len(cell) for row in rows for cell in row[2:]))
        for row in rows:
            cells = " ".join(f"{cell:>{wide}s}" for cell in row[2:])
            lines.append(f"{row[0]:{width}s} {row[1]:5s} {cells}".rstrip())
        return "\n".join([*lines, *self._told()])

    def markdown(self) -> str:
        """Return the table as Markdown, ours over the paper's in each cell."""
        heads = [f"{group} {metric}" for group, metric in self.heads]
        lines = [f"**{self.caption()}.** {LEGEND}", "", f"| | {' | '.join(heads)} |"]
        lines.append(f"|---|{'---:|' * len(heads)}")
        for label, ours, theirs in self.lines:
            cells = [f"{a}<br>{b}" for a, b in zip(ours, theirs, strict=True)]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        return "\n".join([*lines, *self._told()])

    def frame(self) -> pd.DataFrame:
        """Return the table with a row for ours and one for the paper's, for CSV."""
        heads = [f"{group} {metric}" for group, metric in self.heads]
        rows = [
            [self.number, label, who, *texts]
            for label, ours, theirs in self.lines
            for who, texts in (("ours", ours), ("paper", theirs))
        ]
        return pd.DataFrame(rows, columns=["table", "row", "who", *heads])

    def caption(self) -> str:
        """Return number, title, and how many numbers of the paper have ours beside them."""
        here, count = self.filled
        return f"Table {self.number}. {self.title}: {here} of {count} numbers, percent"

    def _told(self) -> list[str]:
        dashes = [f"-{mark}: {why}" for mark, why in self.notes.items()]
        told = [*dashes, *(f"{checks.SIGN} {line}" for line in self.failed)]
        return ["", *told] if told else []


def all_tables(rows: pd.DataFrame, *, other_scale: bool = False) -> list[Printed]:
    """Return Tables 1 to 11 from the union of the studies that hold their cells.

    Args:
        rows: `results.cells` of all studies.
        other_scale: fill them with what was made at another scale than the paper's.
    """
    rows = rows.copy()
    rows.attrs = {}  # which pandas copies at every step
    beside = paper.compare(rows, other_scale=other_scale)
    held = dict(iter(rows.groupby(paper.MEANINGS))) if len(rows) else {}
    gated = paper.at_scale(rows, other_scale=other_scale)
    gated = gated[checks.column(gated) != ""]
    return [_printed(number, held, beside, gated) for number in TITLES]


def _printed(number: int, held: Held, beside: pd.DataFrame, gated: pd.DataFrame) -> Printed:
    theirs = paper.printed()
    theirs = theirs[theirs["table"] == number]
    beside = beside[beside["table"] == number]
    rho = number == OVER_RHO
    group = [f"rho {r:g}" for r in theirs["rho"]] if rho else theirs["attack"].map(ATTACKS)
    theirs = theirs.assign(group=group, label=[_label(number, row) for _, row in theirs.iterrows()])
    heads = list(dict.fromkeys(zip(theirs["group"], theirs["metric"], strict=True)))
    marks: dict[str, str] = {}
    found = _by_cell(beside)
    gated, places = _gated(gated, theirs)
    lines = []
    for label, cells in theirs.groupby("label", sort=False):
        cells = cells.set_index(["group", "metric"])
        ours = [_ours(cells.loc[head], held, found, marks, places) for head in heads]
        lines.append((str(label), ours, [cells.loc[h, "text"] or "-" for h in heads]))
    count = int(theirs["paper"].notna().sum())
    notes = {mark: why for why, mark in marks.items()}
    filled, failed = (len(beside), count), checks.listed(gated)
    return Printed(number, TITLES[number], heads, lines, notes, filled, failed)


def _label(number: int, row: pd.Series) -> str:
    mode, method = MODES[row["mode"]], METHODS[row["defense"]]
    if number == OVER_RHO:
        return mode
    if number not in BLOCKED:
        return f"{method} {mode}"
    place = PLACES.get(row["dataset"]) or f"{PLACES[row['model']]} {100 * row['poison_rate']:g}%"
    return f"{place} {mode}" + (f" {method}" if row["defense"] != "none" else "")


def _key(row: Any) -> tuple:
    rho = row["rho"] if row["rho"] == row["rho"] else None  # an average has none
    return (*(row[name] for name in (*paper.MEANINGS, "figure")), rho)


def _place(row: Any) -> tuple:
    rho = row["rho"] if row["defense"] == "pam" and row["rho"] == row["rho"] else None
    return (*(row[name] for name in paper.MEANINGS), rho)


def _gated(rows: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, set[tuple]]:
    """Return those of our gated rows that a table shows, and its cells that rest on them.

    An average rests on the rows of all of its attacks.
    """
    average = theirs["attack"] == paper.AVERAGE
    shown = {_place(row): row for row in theirs[~average].to_dict("records")}
    found = [_place(row) for row in rows.to_dict("records")]
    parts = {_over(shown[place]) for place in found if place in shown}
    means = {_place(row) for row in theirs[average].to_dict("records") if _over(row) in parts}
    return rows.loc[[place in shown for place in found]], {*found, *means}


def _over(row: Any) -> tuple:
    """Return what an average and its attacks have in common."""
    return tuple(row[name] for name in (*SETTING, "defense"))


def _by_cell(beside: pd.DataFrame) -> dict[tuple, tuple[float, float]]:
    """Return our mean and spread by the paper's cell."""
    return {_key(row): (row["ours"], row["spread"]) for row in beside.to_dict("records")}


def _ours(
    cell: pd.Series,
    held: Held,
    found: dict[tuple, tuple[float, float]],
    marks: dict[str, str],
    gated: set[tuple],
) -> str:
    """Return our number of a cell with its spread, or a dash whose mark says why there is none.

    A number has a sign where a row behind it fails a check.
    """
    if (key := _key(cell)) in found:
        ours, spread = found[key]
        sign = checks.SIGN if _place(cell) in gated else ""
        return number_text(ours) + (f"±{spread:.1f}" if spread == spread else "") + sign
    why = _reason(cell, held)
    return f"-{marks.setdefault(why, MARKS[len(marks) % len(MARKS)])}"


def number_text(value: float) -> str:
    """Return a rate with one decimal; 100 needs none."""
    return "100" if value >= 99.95 else f"{value:.1f}"


def _reason(cell: pd.Series, held: Held) -> str:
    """Say why a cell of the paper has no number of ours."""
    if cell["attack"] == paper.AVERAGE:
        return "an average needs all of its attacks"
    if cell["paper"] != cell["paper"]:
        return "a dash in the paper's table, too"
    here = held.get(tuple(cell[name] for name in paper.MEANINGS))
    if here is None:
        return NOT_RUN
    if cell["defense"] == "pam":
        rho = here["rho"].astype(float)
        if not (rho == cell["rho"]).any():
            known = ", ".join(f"{r:g}" for r in sorted(rho.dropna().unique()))
            return f"PAM at rho {known}, the paper's is {cell['rho']:g}"
        here = here[rho == cell["rho"]]
    undone = here.loc[here["status"] != "done", "status"]
    if len(undone) == len(here):
        return str(undone.iloc[0])
    level = here["level"] if "level" in here else pd.Series("", here.index)
    if not (level == PAPER).any():
        scale = here["scale"].dropna() if "scale" in here else pd.Series(dtype=object)
        return f"at another scale: {scale.iloc[0] if len(scale) else 'not recorded'}"
    return "not measured"


def joined(tables: Sequence[Printed], kind: str) -> str:
    """Return several tables as one "text", "markdown" or "csv"."""
    if kind == "csv":
        return "\n".join(table.frame().to_csv(index=False) for table in tables)
    return "\n\n".join(table.text() if kind == "text" else table.markdown() for table in tables)
