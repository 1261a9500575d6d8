"""QRA on the clean model itself: an ablation, and no control of anything."""

from typing import ClassVar

from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import CLEAN, Cell
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.measures.query import Query, score_columns


class QuerySelf(Query):
    """Train the generator on the clean model; the retuned copy that it imitates has no backdoor."""

    like: ClassVar[str] = "query"
    row: ClassVar[str] = "qra, on the clean model"
    columns: ClassVar[tuple[Column, ...]] = score_columns("qs_", "self", "")[:2]

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether a cell is the clean model's."""
        return Measure.takes(self, chains, cell) and cell.defense == CLEAN
