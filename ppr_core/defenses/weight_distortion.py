"""Weight distortion: add noise to all weights, then tune them on clean images."""

from typing import ClassVar

import torch
from torch import nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.method import Outcome, fork
from ppr_core.training.fit import Schedule, fit

# As many steps as 100 epochs of 50,000 images take.
UNLEARNING = Schedule(steps=39_100, optimizer="adam", lr=1e-5)


class WeightDistortion(Defense):
    """Add noise of one spread to every parameter, then tune on clean images.

    Differs from the paper: it unlearns examples, of which some are left out of a full training
    set; here the clean reserve stands for what is retained, and is tuned on for as many steps.
    """

    source: ClassVar[str] = "Siddiqui et al. 2025, arXiv:2505.22310, and its released code"

    spread: float = Field(0.02, ge=0, description="standard deviation of the noise")
    schedule: Schedule = Field(UNLEARNING, description="tuning after the noise")

    def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Distort, then tune."""
        self.distort(model, fork(rng, "noise"))
        history = fit(model, data, self.schedule, rng=fork(rng, "tune"), resume="tune")
        return Outcome(model, history)

    @torch.no_grad()
    def distort(self, model: nn.Module, rng: torch.Generator) -> None:
        """Add the noise: to batch norm's weights, too, and to no statistics."""
        for weight in model.parameters():
            # Drawn on the CPU, so that one seed gives the same noise on every device.
            weight.add_(self.spread * torch.randn(weight.shape, generator=rng).to(weight))
