"""LMC: the line from the backdoored to a purified model."""

from typing import Any, ClassVar

from ppr_core import connectivity
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import CLEAN, Cell, Setting, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.models.base import Network
from ppr_core.weights import State, snapshot

ANEW = "recalibrate"


class Path(Measure, connectivity.Line):
    """Evaluate models on the line between two, once for every way to have the statistics."""

    of_variants: ClassVar[bool] = True
    across: ClassVar[bool] = False
    curve: ClassVar[str] = "paths"
    about: ClassVar[dict[str, str]] = {"start": "backdoored"}
    columns: ClassVar[tuple[Column, ...]] = (
        Column("barrier", "backdoor_barrier", "barrier", "points", "higher"),
        Column("clean_barrier", "clean_barrier", "clean barrier", "points", "lower", shown=False),
        Column("t_star", "t_star", "t*", "", "lower", shown=False),
        Column("distance", "distance", "distance", "L2", shown=False),
        Column("path_distance", "path_distance", "path distance", "L2", "higher", shown=False),
        # With statistics taken anew at every point, where that is measured beside the first way.
        Column("rc_barrier", f"{ANEW}_backdoor_barrier", "barrier, rc", "points", "higher", False),
        Column("rc_t_star", f"{ANEW}_t_star", "t*, rc", "", "lower", False),
        Column("rc_path_distance", f"{ANEW}_path_distance", "path, rc", "L2", "higher", False),
    )

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether a cell has a purified model, in the basin of the backdoored one."""
        return super().takes(chains, cell) and cell.defense != CLEAN

    def given(self, setting: Setting) -> dict[str, Any]:
        """Return the shares of the clean images, on which statistics are taken anew."""
        return setting.shares

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the two ends."""
        return (chains.backdoored(cell), chains.purified(cell))

    def way(self, model: Network, start: State, end: State, stage: Stage) -> dict[str, State]:
        """Return the weights that the path goes by: its start, its end, and what bends it."""
        return {"start": start, "end": end}

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Return the errors along the path, and its barriers and distances."""
        start, end = lab.ends(*stage.parents)
        way: dict[str, Any] = self.way(end, snapshot(start), snapshot(end), stage)
        rows: list[dict[str, Any]] = []
        metrics: dict[str, float] = {}
        for index, batch_norm in enumerate(self.batch_norm):
            path = connectivity.path(
                end,
                **way,
                test=stage.setting.images.test,
                stamped=lab.stamped_test(stage),
                points=self.points,
                batch_norm=batch_norm,
                tune=stage.setting.held(stage.cell.seed).tune,
            )
            rows += path.rows()
            prefix = f"{batch_norm}_" if index else ""
            found = path.summary(self.asleep).items()
            metrics |= {prefix + name: value for name, value in found if value == value}
        return Result(info={"rows": rows}, metrics=metrics)
