"""Every defense on the never-poisoned model: rows of the attack "none"."""

from typing import ClassVar

from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import NO_ATTACK, NO_DEFENSE, Cell
from ppr_core.lab.measures.base import Measure


class CleanModel(Measure):
    """Defend the never-poisoned model, too; there is no trigger for an oracle to know."""

    source: ClassVar[str] = "this project: what a defense costs where there is nothing to purify"

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Return False: the rows themselves are what it adds."""
        return False

    @classmethod
    def further_cells(cls, chains: Chains, seed: int) -> list[Cell]:
        """Return a row for the never-poisoned model, and one a defense."""
        cells = [Cell(NO_ATTACK, label, seed, variant) for label, variant in chains.defenses]
        honest = [cell for cell in cells if not chains.oracle(cell)]
        return [Cell(NO_ATTACK, NO_DEFENSE, seed), *honest]
