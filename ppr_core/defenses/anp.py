"""ANP: adversarial neuron pruning."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.masks import MaskPruning, Masks
from ppr_core.method import fork
from ppr_core.training import Gradient, Schedule, fit


class Anp(MaskPruning):
    """Prune the channels that are masked to keep the loss low while their weights are disturbed.

    Differs from the authors' code: its batches are drawn with replacement; here every image is
    seen once an epoch.
    """

    source: ClassVar[str] = "Wu and Wang 2021, arXiv:2110.14430, sec. 4; Min et al. 2024, sec. B.2"

    eps: float = Field(0.4, ge=0, description="bound of the random noise, share of the weight")
    ascent_steps: int = Field(1, ge=0, description="sign steps of eps / ascent_steps each")
    alpha: float = Field(0.2, ge=0, le=1, description="share of the undisturbed loss")
    schedule: Schedule = Field(
        Schedule(steps=2000, lr=0.01, batch_size=256), description="of the masks"
    )

    def learn(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Masks:
        """Learn masks in [0, 1] at fixed weights, the network normalising by batch statistics."""
        masks = Masks(model)
        with masks.on(model):
            fit(
                model,
                data,
                self.schedule,
                rng=fork(rng, "batches"),
                gradient=self._gradient(masks, fork(rng, "noise")),
                after_step=masks.clamp,
                parameters=[masks.values],
            )
        return masks

    def _gradient(self, masks: Masks, rng: torch.Generator) -> Gradient:
        """Return a step of three passes: the noise's ascent, and the loss with and without it."""

        def gradient(loss: Callable[[], Tensor]) -> Tensor:
            masks.noise = disturb(masks, loss, self.eps, self.ascent_steps, rng)
            disturbed = (1 - self.alpha) * loss()
            disturbed.backward()
            masks.noise = None
            plain = self.alpha * loss()
            plain.backward()
            return (disturbed + plain).detach()

        return gradient


def disturb(
    masks: Masks, loss: Callable[[], Tensor], eps: float, steps: int, rng: torch.Generator
) -> Tensor:
    """Return noise (2, channels), drawn from U(-eps, eps) and moved to raise the loss.

    It is not projected back, so with one step it reaches twice eps.
    """
    device = masks.values.device
    noise = (eps * (2 * torch.rand((2, len(masks.values)), generator=rng) - 1)).to(device)
    for _ in range(steps):
        masks.noise = noise.requires_grad_()
        (slope,) = torch.autograd.grad(loss(), noise)
        noise = noise.detach() + eps / steps * slope.sign()
    return noise
