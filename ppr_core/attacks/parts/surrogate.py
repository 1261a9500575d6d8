"""Attacks whose trigger is made on a clean model of their own."""

from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from ppr_core.attacks.base import Attack
from ppr_core.config import Field, from_registry
from ppr_core.data.images import ImageSet
from ppr_core.method import fork
from ppr_core.models import MODELS, Network, build
from ppr_core.runtime import seed_of
from ppr_core.training.fit import Schedule, fit

# Our choice: a fifth of a victim's epochs, for a model that only has to be accurate.
SURROGATE = Schedule(epochs=20, lr=0.1, weight_decay=5e-4, decay="cosine", decay_by="step")


class SurrogateAttack(Attack):
    """Make the trigger on a clean surrogate of the victim, which is trained by the study.

    Differs from the authors' code, of each of these attacks: the surrogate's schedule.
    """

    surrogate: dict[str, Any] = Field(
        {"name": "resnet18"}, description="model that the trigger is made on"
    )
    surrogate_schedule: Schedule = Field(SURROGATE, description="of the surrogate's training")

    @model_validator(mode="after")
    def _check_surrogate(self) -> Self:
        from_registry(MODELS, self.surrogate, "model")
        return self

    def shaping(self, *names: str) -> dict[str, Any]:
        """Return some settings, with the surrogate's and the target."""
        shared = {"surrogate", "surrogate_schedule", "target"}
        return self.model_dump(mode="json", include=shared | set(names))

    def new_surrogate(self, data: ImageSet, rng: torch.Generator) -> Network:
        """Return the surrogate, untrained."""
        fresh = build(self.surrogate, data.num_classes, seed=seed_of(rng, "init"))
        return fresh.to(data.device)

    def clean_surrogate(self, data: ImageSet, rng: torch.Generator) -> Network:
        """Return the surrogate, trained on clean images, in eval mode."""
        model = self.new_surrogate(data, rng)
        fit(model, data, self.surrogate_schedule, rng=fork(rng, "surrogate"), resume="surrogate")
        return model


def added(images: Tensor, trigger: Tensor) -> Tensor:
    """Add a trigger to uint8 images, clip, and truncate to whole grey levels.

    Args:
        images: (N, C, H, W) uint8.
        trigger: (C, h, w), pixels in [-1, 1]; one of another size is scaled by its nearest pixels.
    """
    levels = 255 * trigger.to(images.device)[None]
    if levels.shape[-1] != images.shape[-1]:
        levels = F.interpolate(levels, images.shape[-1], mode="nearest-exact")
    return (images + levels).clamp_(0, 255).to(torch.uint8)
