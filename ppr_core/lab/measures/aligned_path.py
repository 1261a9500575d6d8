"""LMC after permutation alignment: the line to a purified model whose channels are reordered."""

from typing import ClassVar

from ppr_core.alignment import aligned
from ppr_core.data.images import to_float
from ppr_core.lab.graph import Stage
from ppr_core.lab.measures.base import Column
from ppr_core.lab.measures.path import Path
from ppr_core.models.base import Network
from ppr_core.weights import State


class AlignedPath(Path):
    """Evaluate models on the line to the order of a purified model's channels nearest the start.

    It says how much of a barrier is a matter of order: models from another basin have such lines,
    too.
    """

    source: ClassVar[str] = "Ainsworth et al. 2023, arXiv:2209.04836, sec. 3.2"
    like: ClassVar[str] = "path"
    across: ClassVar[bool] = True
    about: ClassVar[dict[str, str]] = {"start": "backdoored, aligned"}
    columns: ClassVar[tuple[Column, ...]] = (
        Column("aligned_barrier", "backdoor_barrier", "aligned barrier", "points", "higher"),
        Column("aligned_clean_barrier", "clean_barrier", "aligned clean", "points", "lower", False),
        Column("aligned_distance", "distance", "aligned distance", "L2", shown=False),
    )

    def way(self, model: Network, start: State, end: State, stage: Stage) -> dict[str, State]:
        """Return the start, and the end in its nearest order."""
        pixels = to_float(stage.setting.images.test.images[:2])
        return {"start": start, "end": aligned(model, start, end, pixels)}
