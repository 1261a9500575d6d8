"""LMC: the line from a purified model to the EP model."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ppr_core.errors import need
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import Cell, Stage
from ppr_core.lab.measures.base import Column
from ppr_core.lab.measures.path import Path


class Connection(Path):
    """Evaluate models on the line from a purified model to the one of EP."""

    like: ClassVar[str] = "path"
    about: ClassVar[dict[str, str]] = {"start": "purified"}
    columns: ClassVar[tuple[Column, ...]] = ()

    @classmethod
    def check_study(cls, chains: Chains, values: Mapping[str, Any]) -> None:
        """Raise ConfigError for a study without EP."""
        need(chains.exact, "expected the defense 'ep' for the measure 'connection', got none")

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether a cell has a purified model other than EP's."""
        return super().takes(chains, cell) and cell.defense != chains.exact

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the two ends."""
        return (chains.purified(cell), chains.purified(cell.but(defense=chains.exact)))
