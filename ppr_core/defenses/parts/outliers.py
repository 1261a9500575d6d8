"""Prune the channels whose score stands out in their layer; shared by CLP and BNP."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.parts.selection import Choosing
from ppr_core.method import Outcome, fork
from ppr_core.models.base import batch_norms


class OutlierPruning(Choosing):
    """Silence batch-norm channels that score far above their layer's mean. Subclasses score."""

    chosen: ClassVar[str] = "u"
    rising: ClassVar[bool] = True

    u: float = Field(3.0, ge=0, description="limit: standard deviations above the layer's mean")
    u_grid: list[Annotated[float, Field(ge=0)]] = Field(
        [], description="choose u from these, by validation; empty: use u"
    )

    def scores(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return one score a channel, by the name of the batch-norm layer."""
        raise NotImplementedError(f"{type(self).__name__}.scores")

    def run(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        rng: torch.Generator,
        validation: ImageSet | None = None,
    ) -> Outcome:
        """Prune, at one limit or at the smallest of a grid that keeps the accuracy."""
        found = self.scores(model, data, rng=fork(rng, "scores"))
        pruned, chosen = self.choose(model, validation, lambda u: silence(model, found, u))
        counts = {"pruned": pruned, "channels": sum(map(len, found.values()))}
        info = {"u": self.u} | chosen | counts
        return Outcome(model, [], info, {f"score.{name}": score for name, score in found.items()})


@torch.no_grad()
def silence(model: nn.Module, scores: Mapping[str, Tensor], u: float) -> int:
    """Zero gamma and beta where a score is above mean + u * deviation; return how many channels.

    Statistics stay as they are. A smaller u prunes the same channels and more.

    Args:
        model: changed in place.
        scores: one tensor a batch-norm layer, by the layer's name.
        u: in (unbiased) standard deviations of the layer's scores.
    """
    count, layers = 0, dict(batch_norms(model))
    for name, score in scores.items():
        layer = layers[name]
        outliers = score > score.mean() + u * score.std()
        layer.weight[outliers] = 0
        layer.bias[outliers] = 0
        count += int(outliers.sum())
    return count
