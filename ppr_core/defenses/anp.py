"""ANP: adversarial neuron pruning."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.parts.masks import MaskPruning, Masks
from ppr_core.method import fork
from ppr_core.training.fit import Gradient, Schedule, fit


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
        start = torch.empty((2, len(masks.values)), device=masks.values.device)
        noise = fork(rng, "noise")

        def clamp_and_refill() -> None:
            masks.clamp()
            fill_noise(start, self.eps, noise)  # for the next step: drawn on the host, between two

        fill_noise(start, self.eps, noise)
        with masks.on(model):
            fit(
                model,
                data,
                self.schedule,
                rng=fork(rng, "batches"),
                gradient=self._gradient(masks, start),
                after_step=clamp_and_refill,
                parameters=[masks.values],
                capturable=True,
                writes=[start, noise],
                resume="masks",
            )
        return masks

    def _gradient(self, masks: Masks, start: Tensor) -> Gradient:
        """Return a step of three passes: the noise's ascent, and the loss with and without it.

        It reads the noise to start from in `start`, and draws none: so it can be recorded.
        """

        def gradient(loss: Callable[[], Tensor]) -> Tensor:
            masks.noise = disturb(masks, loss, start, self.eps, self.ascent_steps)
            disturbed = (1 - self.alpha) * loss()
            disturbed.backward()
            masks.noise = None
            plain = self.alpha * loss()
            plain.backward()
            return (disturbed + plain).detach()

        return gradient


def fill_noise(start: Tensor, eps: float, rng: torch.Generator) -> None:
    """Fill `start` (2, channels) with noise from U(-eps, eps), drawn on the CPU."""
    noise = eps * (2 * torch.rand(start.shape, generator=rng) - 1)
    start.copy_(noise, non_blocking=True)  # CUDA takes its own copy of pageable memory at once


def disturb(
    masks: Masks, loss: Callable[[], Tensor], start: Tensor, eps: float, steps: int
) -> Tensor:
    """Return the noise that starts as `start` (2, channels) and is moved to raise the loss.

    It is not projected back, so with one step it reaches twice eps.
    """
    noise = start.detach()  # the same memory: a recorded step finds each new draw there
    for _ in range(steps):
        masks.noise = noise.requires_grad_()
        (slope,) = torch.autograd.grad(loss(), noise)
        noise = noise.detach() + eps / steps * slope.sign()
    return noise
