"""The explorer: sliders for rho, epsilon and t over what a store holds; the ipywidgets panels."""

import os
from collections.abc import Mapping
from html import escape
from typing import Any

from IPython.display import HTML, Image, display

from ppr_core.explorer import pages
from ppr_core.explorer.battery import BatteryPanel
from ppr_core.explorer.choice import Choice
from ppr_core.explorer.holdings import holdings, nothing_held
from ppr_core.explorer.panels import EpsilonPanel, Panel, PathPanel
from ppr_core.explorer.rho import RhoPanel
from ppr_core.lab.desk import Lab
from ppr_core.lab.section import Section, resolve
from ppr_core.lab.store import Store

__all__ = ["Explorer"]


class Explorer:
    """What the explorer's notebook calls: a choice of models, and a panel a slider.

    It computes nothing by itself. Executed in batch, nobody can move a slider: then every panel
    shows a figure and a table in its place, and the notebook's run keeps them.

    Args:
        title: the notebook's name.
        names: the notebook's `globals()`, as for `Section`.

    Raises:
        ConfigError: an unknown or unusable setting.
    """

    def __init__(self, title: str, names: Mapping[str, Any]) -> None:
        self.study = resolve(names)
        self.section = None if live() else Section(title, names)
        self.store = self.section.store if self.section else Store()
        self.lab = Lab(self.store)
        held = holdings(self.store, self.study)
        self.choice = Choice(held) if held else None

    def choose(self) -> None:
        """Say what is chosen at first; or what to run, where the store holds nothing to choose."""
        if self.choice is None:
            display(HTML(pages.note(nothing_held(self.store, self.study))))
            return
        held, cell = self.choice.study, self.choice.cell
        name = f"{held.plan.study.name}: {cell.attack}, {held.name(cell)}, seed {cell.seed}"
        display(HTML(f"{pages.STYLE}<p>It opens with <b>{escape(name)}</b>.</p>"))

    def rho(self) -> None:
        """Show PAM over rho, and compute further values."""
        if self.choice:
            self._show(RhoPanel(self.choice, self.lab, self.study), "0_rho")

    def epsilon(self) -> None:
        """Show QRA at any pixel budget."""
        if self.choice:
            self._show(EpsilonPanel(self.choice, self.lab), "0_epsilon")

    def path(self) -> None:
        """Show the model at any point of the path from backdoored to purified."""
        if self.choice:
            self._show(PathPanel(self.choice, self.lab), "0_t")

    def battery(self) -> None:
        """Show what few poisons at several learning rates wake, where a study has the battery."""
        if self.choice:
            self._show(BatteryPanel(self.choice, self.lab), "0_battery")

    def close(self) -> None:
        """Finish the notebook's run, in batch."""
        if self.section:
            self.section.close()

    def _show(self, panel: Panel, name: str) -> None:
        if self.section is None:
            display(panel.box)
            return
        display(HTML(panel.text.value + panel.detail.value))
        if panel.figure is not None:
            self.section.figure(panel.figure, name)  # kept, as is the table
            self.section.table(panel.table, name)
            for picture in panel.shown:  # a figure that pyplot does not know has no picture
                display(Image(data=picture))


def live() -> bool:
    """Say whether somebody can move a slider: a Jupyter server or Voila has started this kernel."""
    voila = os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
    return (voila or "JPY_SESSION_NAME" in os.environ) and not os.environ.get("PPR_RUN")
