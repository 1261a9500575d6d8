"""RNP: reconstructive neuron pruning."""

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.parts.forgetting import forget
from ppr_core.defenses.parts.masks import MaskPruning, Masks
from ppr_core.method import fork
from ppr_core.training.fit import Schedule, fit

FORGET = Schedule(epochs=20, lr=0.01, weight_decay=5e-4)


class Rnp(MaskPruning):
    """Unlearn the clean task, mask channels to recover it, prune those that recovery masks.

    Differs from the authors' code: they clip gradients before they exist, which does nothing; to
    clip them after the backward pass is an option here.
    """

    source: ClassVar[str] = "Li et al. 2023, arXiv:2305.14876"

    forgetting: Schedule = Field(FORGET, description="ascent on the clean loss, at the most")
    forgotten: float = Field(
        20.0, ge=0, le=100, description="accuracy in an epoch's batches that ends it, percent"
    )
    decay_epoch: int = Field(10, ge=1, description="its epoch after which the rate is a tenth")
    clip: float = Field(0.0, ge=0, description="bound of its gradient's norm; 0: none")
    alpha: float = Field(0.2, ge=0, description="weight of the recovery's loss")
    schedule: Schedule = Field(Schedule(epochs=20, lr=0.2), description="recovery, of the masks")
    tau_grid: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [round(0.05 * i, 2) for i in range(19)], min_length=1, description="thresholds tried"
    )

    def learn(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Masks:
        """Learn masks in [0, 1] that give the unlearned model its clean task back."""
        forget(
            model,
            data,
            self.forgetting,
            floor=self.forgotten,
            judged="training",
            rng=fork(rng, "forget"),
            decay_epoch=self.decay_epoch,
            clip=self.clip,
        )
        masks = Masks(model)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return self.alpha * F.cross_entropy(model(images), labels)

        how: dict[str, Any] = {"loss": loss, "after_step": masks.clamp}
        draws = fork(rng, "recover")
        with masks.on(model):
            fit(model, data, self.schedule, rng=draws, parameters=[masks.values], **how)
        return masks
