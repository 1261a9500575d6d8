"""QRA by the paper's eq. 2, with EP as the surrogate."""

from typing import Any, ClassVar

from ppr_core.lab.measures.base import Column
from ppr_core.lab.measures.query import Query, score_columns


class QueryEp(Query):
    """Train the generator by eq. 2: EP's model must go on answering truly."""

    like: ClassVar[str] = "query"
    fixed: ClassVar[dict[str, Any]] = {"form": "paper", "surrogate": "ep"}
    row: ClassVar[str] = "qra, eq. 2"
    columns: ClassVar[tuple[Column, ...]] = score_columns("qe_", "eq. 2", "eq. 2 unseen")
