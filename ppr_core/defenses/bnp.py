"""BNP: prune the channels whose batch-norm statistics do not fit clean images."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet, to_float
from ppr_core.defenses.parts.outliers import OutlierPruning
from ppr_core.metrics import evaluating
from ppr_core.models.base import comparable
from ppr_core.models.hooks import watching


class Bnp(OutlierPruning):
    """Prune where running statistics, learnt with poisons, are far from those of a clean batch.

    Differs from the authors' code: the clean batch's statistics are compared, which theirs
    overwrites by a batch of the poisoned training set before it reads them; each layer's epsilon
    is added to both variances.
    """

    source: ClassVar[str] = (
        "Zheng et al. 2022, NeurIPS, Pre-activation Distributions Expose Backdoor Neurons"
    )
    needs: ClassVar[tuple[str, ...]] = ("batch norm with statistics",)

    batch_size: int = Field(256, ge=2, description="clean images looked at")
    kl_exact: bool = Field(
        False, description="Gaussian divergence; off: as in the code, without 1/2 on the logarithm"
    )

    def scores(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return each channel's divergence, from one batch in eval mode."""
        chosen = torch.randperm(len(data), generator=rng)[: self.batch_size]
        found: dict[str, Tensor] = {}

        layers = dict(comparable(model))

        def look(name: str, maps: Tensor, _: Tensor) -> None:
            layer = layers[name]
            var, mean = torch.var_mean(maps.transpose(0, 1).flatten(1), 1)
            running = layer.get_buffer("running_mean"), layer.get_buffer("running_var") + layer.eps
            found[name] = divergence(mean, var + layer.eps, *running, exact=self.kl_exact)

        with torch.no_grad(), evaluating(model), watching(layers, look):
            model(to_float(data.subset(chosen).images))
        return found


def divergence(mean: Tensor, var: Tensor, mean2: Tensor, var2: Tensor, *, exact: bool) -> Tensor:
    """Return how far the Gaussian (mean, var) is from (mean2, var2), elementwise.

    Args:
        mean: of the first.
        var: of the first.
        mean2: of the second.
        var2: of the second.
        exact: with the factor 1/2 on the logarithm.
    """
    spread = (0.5 if exact else 1.0) * (var2 / var).log()
    return spread + (var + (mean - mean2).square()) / (2 * var2) - 0.5
