"""The models that the battery sets others beside: clean ones, and EP's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from ppr_core.reactivation.cells import Bench, Cell, Setting


@dataclass
class Control:
    """A model to set others beside, clean or EP's, and the cells that are known of it so far.

    Attributes:
        model: left untouched.
        cells: its grid, for a clean model; run where it is empty.
        compute: returns its cells of an arm's settings, each of one epoch count; it may keep them
            for the next model examined. By default they are run.
    """

    model: nn.Module
    cells: list[Cell] = field(default_factory=list)
    compute: Callable[[str, Sequence[Setting]], list[Cell]] | None = None

    def take(self, bench: Bench, arm: str, settings: Sequence[Setting]) -> list[Cell]:
        """Return its cells of some settings, computed where they are not known yet."""
        known = {cell.setting: cell for cell in self.cells}
        missing = [setting for setting in settings if setting not in known]
        if missing:
            new = (
                self.compute(arm, missing) if self.compute else run(bench, self.model, arm, missing)
            )
            self.cells += new
            known |= {cell.setting: cell for cell in new}
        return [known[setting] for setting in settings]


def run(bench: Bench, model: nn.Module, arm: str, settings: Sequence[Setting]) -> list[Cell]:
    """Return a model's cells of some settings."""
    return [bench.run(model, arm, setting, [setting.epochs])[0] for setting in settings]
