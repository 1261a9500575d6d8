"""QRA by the paper's eq. 1, without a surrogate."""

from typing import Any, ClassVar

from ppr_core.lab.measures.base import Column
from ppr_core.lab.measures.query import Query, score_columns


class QueryAlone(Query):
    """Train the generator by eq. 1 alone: nothing keeps it from fooling any model."""

    like: ClassVar[str] = "query"
    fixed: ClassVar[dict[str, Any]] = {"form": "paper", "alpha": 0.0}
    row: ClassVar[str] = "qra, no surrogate"
    columns: ClassVar[tuple[Column, ...]] = score_columns("q1_", "eq. 1", "eq. 1 unseen")
