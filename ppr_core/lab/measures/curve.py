"""Mode connectivity along a quadratic curve from the backdoored to a purified model."""

from typing import Any, ClassVar

from ppr_core.config import Field, derive
from ppr_core.curves import CURVE, fit_curve
from ppr_core.lab.graph import Stage
from ppr_core.lab.measures.base import Column
from ppr_core.lab.measures.path import ANEW, Path
from ppr_core.models.base import Network, clone
from ppr_core.training.fit import Schedule
from ppr_core.weights import State, snapshot


class Curve(Path):
    """Evaluate models on a curve that was trained on clean images, its ends given.

    Where the clean error stays low and the backdoor's rises on the way, a defender who trains such
    a curve finds models without it; statistics are taken anew at every point.
    """

    source: ClassVar[str] = "Garipov et al. 2018, arXiv:1802.10026; Zhao et al. 2020, 2005.00060"
    like: ClassVar[str] = "path"
    across: ClassVar[bool] = True
    fixed: ClassVar[dict[str, Any]] = {"batch_norm": [ANEW]}
    of_variants: ClassVar[bool] = False
    about: ClassVar[dict[str, str]] = {"start": "backdoored, curve"}
    columns: ClassVar[tuple[Column, ...]] = (
        Column("curve_barrier", "backdoor_barrier", "curve barrier", "points", "higher"),
        Column("curve_clean_barrier", "clean_barrier", "curve clean", "points", "lower", False),
    )

    schedule: Schedule = Field(CURVE, description="of the curve's middle")

    def way(self, model: Network, start: State, end: State, stage: Stage) -> dict[str, State]:
        """Return the ends, and the middle that was trained between them."""
        middle, seed = clone(model), stage.cell.seed
        data, rng = stage.setting.held(seed).tune, derive(seed, "curve")
        fit_curve(middle, start, end, data, self.schedule, rng=rng, resume="curve")
        return {"start": start, "end": end, "middle": snapshot(middle)}
