"""The panel of RB-1: how few poisons, at which learning rate, wake a model; clean ones beside."""

from typing import Any

import ipywidgets as widgets
import pandas as pd

from ppr_core.explorer import pages, words
from ppr_core.explorer.choice import Choice
from ppr_core.explorer.holdings import BATTERY, not_measured
from ppr_core.explorer.panels import MARGIN, Panel, between, slider
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.reactivation.battery import Battery
from ppr_core.reactivation.cells import Cell as Point
from ppr_core.reactivation.cells import load
from ppr_core.reactivation.figures import by_place
from ppr_core.reporting import plots

NO_VERDICT = "no verdict"  # of the battery itself
LINES = {"own": "this model", "clean": "clean models"}


class BatteryPanel(Panel):
    """P-ASR by the number of poisons and by the learning rate, with the battery's verdict."""

    def __init__(self, choice: Choice, lab: Reader) -> None:
        self.rate = widgets.SelectionSlider(
            options=[1.0], description="learning rate", style={"description_width": "7rem"}
        )
        self.rate.add_class("ppr-rate")
        super().__init__("battery", slider("poisons", 50, 1, 5), choice, lab, self.rate)

    def load(self) -> None:
        """Read the cells of the chosen model and of the clean ones."""
        held, cell = self.choice.study, self.choice.cell
        self.found = held.battery(cell)
        if self.found is not None:
            method: Any = held.plan.measures[BATTERY][cell.attack]
            self.points = grid(method, *self.found)
            self.paper = method.retuning.poisoned
            self.title = f"{cell.attack}, {held.name(cell)}, seed {cell.seed}"
            self.pictures_of: dict[float, plots.Picture] = {}
            rates = sorted(self.points["rate"].unique())
            chosen = self.rate.value
            self.rate.options = [(f"× {rate:g}", rate) for rate in rates]
            self.rate.value = chosen if chosen in rates else 1.0
            self.slider.max = max(50.0, self.points["poisons"].max())
        self.move()

    def move(self) -> None:
        """Say what so many poisons do at this rate."""
        if self.found is None:
            self.nothing(not_measured(BATTERY, self.choice.study, self.choice.cell))
            return
        poisons, rate = self.slider.value, self.rate.value
        here = self.points[self.points["rate"] == rate]
        inside = here["poisons"].min() <= poisons <= here["poisons"].max()
        found = between(here, "poisons", poisons, LINES) if inside and len(here) else {}
        at_paper = between(self._at_paper(), "rate", rate, LINES)
        figures = self.found[0].info["figures"]
        said = f"{figures['verdict']['word']} ({figures['verdict']['reason']})"
        text = f"<p><b>{poisons:g} poisons, learning rate × {rate:g}</b>{self._read(here)}: "
        text += f"{pages.figures({LINES[name]: value for name, value in found.items()})}</p>"
        says = words.of_battery(poisons, rate, found.get("own"), found.get("clean"), said)
        gated = figures["verdict"]["word"] == NO_VERDICT
        text += pages.refused(says) if gated else self.verdict(self.choice.cell, says)
        text += pages.note(
            f"ASR reaches 50 % with {_count(figures['wake_count'])} poisons; the clean models need "
            f"{_count(figures['clean_wake_count'])}."
        )
        marks: list[plots.Mark | None] = [(poisons, found), (rate, at_paper)]
        self.show(text, "", self._picture(rate, here).png(marks))
        self.figure, self.table = self._picture(rate, here).figure, self.points

    def _read(self, here: pd.DataFrame) -> str:
        """Say which numbers of poisons were run at a rate, where the slider's is not among them."""
        counts = sorted(here["poisons"])
        if self.slider.value in counts:
            return ""
        return f" (run at this rate: {', '.join(f'{count:g}' for count in counts)} poisons)"

    def _at_paper(self) -> pd.DataFrame:
        return self.points[self.points["poisons"] == self.paper]

    def _picture(self, rate: float, here: pd.DataFrame) -> plots.Picture:
        if rate not in self.pictures_of:
            top, fast = self.slider.max, float(self.points["rate"].max())
            by_count = plots.Curves(
                f"{self.title}: learning rate × {rate:g}",
                "poisons",
                "poisoned samples",
                here,
                LINES,
                (-MARGIN * top, (1 + MARGIN) * top),
            )
            by_rate = plots.Curves(
                f"{self.paper} poisons",
                "rate",
                "learning rate, times the paper's",
                self._at_paper(),
                LINES,
                (-MARGIN * fast, (1 + MARGIN) * fast),
            )
            self.pictures_of[rate] = plots.Picture([by_count, by_rate])
        return self.pictures_of[rate]


def grid(method: Battery, own: Result, clean: list[Result]) -> pd.DataFrame:
    """Return P-ASR by poisons and learning rate, of a model and of clean ones: the plain tunings.

    Those with RA's own optimizer and epochs, draws pooled; without poisons, the nearest number of
    epochs that was run. Columns: poisons, rate (times the paper's), own, clean (percent).
    """
    mine = _plain(method, load(own.info["cells"]))
    others = [_plain(method, load(one.info["cells"])) for one in clean]
    rows = []
    for place, p_asr in mine.items():
        beside = [table[place] for table in others if place in table]
        mean = sum(beside) / len(beside) if beside else float("nan")
        rows.append({"poisons": place[0], "rate": place[1], "own": p_asr, "clean": mean})
    frame = pd.DataFrame(rows, columns=["poisons", "rate", "own", "clean"])
    return frame.sort_values(["rate", "poisons"], ignore_index=True)


def _plain(method: Battery, cells: list[Point]) -> dict[tuple[int, float], float]:
    """Return mean P-ASR by (poisons, rate)."""
    paper = method.paper.epochs
    relearnt = min(method.relearn_epochs, key=lambda epochs: abs(epochs - paper), default=paper)
    found = {}
    for p_asr, cell in by_place(cell for cell in cells if cell.p_asr is not None):
        setting = cell.setting
        epochs = paper if setting.poisons else relearnt
        usual = setting.replace(poisons=0, factor=1.0, epochs=0, draw=0)
        plain = usual == type(setting)(epochs=0) and cell.arm != "start"
        if plain and setting.epochs == epochs:
            found[setting.poisons, setting.factor] = p_asr
    return found


def _count(number: float | None) -> str:
    return "more than any number tried" if number is None else f"{number:.0f}"
