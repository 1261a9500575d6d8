"""Controls at equal budget: what random noise, or a plain adversarial attack, reaches by itself.

The universal control is `triggers.Universal` on `perturbation.aimed` clean images.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.attacks.parts.adversarial import pgd
from ppr_core.config import Field, Settings
from ppr_core.reactivation.perturbation import EPS, Perturb, along
from ppr_core.reactivation.triggers import Universal


def sign_noise(rng: torch.Generator) -> Perturb:
    """Return noise that moves every pixel by the whole budget, up or down at random.

    An image meets the same noise at every budget.

    Args:
        rng: CPU generator, drawn from as the images come.
    """

    def direction(images: Tensor) -> Tensor:
        return (2.0 * torch.randint(0, 2, images.shape, generator=rng) - 1).to(images.device)

    return along(direction)


class TargetedPgd(Settings):
    """Perturb each image by itself towards the target, by gradients of the model attacked."""

    source: ClassVar[str] = "Madry et al. 2018, arXiv:1706.06083, sec. 2.1, aimed at one label"

    iterations: int = Field(20, ge=1, description="gradient steps")
    step: float = Field(0.1, gt=0, description="change of a pixel in one of them, share of eps")

    def on(self, model: nn.Module, target: int) -> Perturb:
        """Return the attack on a model; all budgets are attacked in one batch."""

        def perturb(images: Tensor, budgets: Tensor) -> Tensor:
            shape = (len(budgets), *images.shape)
            eps = budgets.repeat_interleave(len(images)).view(-1, 1, 1, 1)
            repeated = images.expand(shape).flatten(0, 1)
            labels = torch.full((len(repeated),), target, device=images.device)
            count, step = self.iterations, -self.step * eps
            found = pgd(model, repeated, labels, eps=eps, step=step, iterations=count)
            return found.view(shape)

        return perturb


class Controls(Settings):
    """The three controls of QRA at its own budgets: none of them knows the retuned model."""

    source: ClassVar[str] = "this project: separates reactivation from an adversarial attack"

    images: int = Field(500, ge=1, description="test images attacked, of each kind")
    universal: Universal = Field(Universal(eps=EPS), description="one perturbation for all images")
    pgd: TargetedPgd = Field(TargetedPgd(), description="one for each image, by its gradients")
