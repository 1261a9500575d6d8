"""TrojanNN: a picture that drives two neurons of a clean model to the top."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppr_core.attacks.base import State
from ppr_core.attacks.parts.surrogate import SurrogateAttack, added
from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.errors import need
from ppr_core.models.needs import need_all
from ppr_core.runtime import autocast

RADIUS, GREY = 0.125, 0.7  # of the disc: share of the image's side, and its pixels at first


class TrojanNN(SurrogateAttack):
    """Add a small picture that is drawn so that it excites the best connected neurons.

    The neurons are those of the layer before the last with the largest absolute weights in the
    clean surrogate's trained head.

    Differs from the paper: the classifier is trained from scratch on poisoned images, as in
    BackdoorBench, not retrained on images inverted from it.

    Differs from the authors' code: BackdoorBench loads the clean weights into a head of 1000
    classes, so that its neurons are those of a random head; here, as in the paper, of the trained
    one. The picture begins as a grey disc in the lower right corner, not a logo; the model sees it
    normalised like any image; sums above 255 are clipped and do not wrap around.
    """

    source: ClassVar[str] = "Liu et al. 2018, NDSS, sec. IV"
    trains_stamp: ClassVar[bool] = True

    neurons: int = Field(2, ge=1, description="neurons that the picture excites")
    aim: float = Field(100.0, ge=0, description="activation that they are driven to")
    step: float = Field(0.1, ge=0, le=1, description="change of a pixel in one iteration")
    reach: float = Field(0.3, ge=0, le=1, description="largest change of a pixel of the picture")
    iterations: int = Field(1000, ge=0, description="signed gradient steps")

    def preparation(self) -> dict[str, Any]:
        """Return what shapes the picture."""
        return self.shaping("neurons", "aim", "step", "reach", "iterations")

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Train the clean surrogate, pick its neurons, and draw the picture for them."""
        model: Any = self.clean_surrogate(data, rng)
        need_all(model, ("linear",), type(self).__name__)
        picked = best_connected(model.linear.weight, self.neurons)
        start = disc(data.size).to(data.device)
        trigger = self.drawn(model, start, picked)
        excited = activations(model, trigger[None])[0, picked].detach().float().mean()
        return {"trigger": trigger, "neurons": picked, "report.activation": excited.cpu()}

    def drawn(self, model: Any, start: Tensor, picked: Tensor) -> Tensor:
        """Return the picture (C, H, W) that excites some neurons of a model in eval mode."""
        trigger = start
        low, high = (start - self.reach).clamp_min(0), (start + self.reach).clamp_max(1)
        for _ in range(self.iterations):
            trigger = trigger.detach().requires_grad_()
            with torch.enable_grad():
                found = activations(model, trigger[None])[0, picked]
                loss = (found.float() - self.aim).square().sum()
            (gradient,) = torch.autograd.grad(loss, trigger)
            moved = (trigger.detach() - self.step * gradient.sign()).clamp(low, high)
            trigger = torch.where(start > 0, moved, start)
        return trigger.detach()

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Add the picture; the same at both stages."""
        need("trigger" in state, "expected TrojanNN's prepared state, got none; call prepare first")
        return added(images, state["trigger"])


def best_connected(weight: Tensor, count: int) -> Tensor:
    """Return the inputs of a linear layer (classes, D) with the largest sums of absolute weights.

    The largest comes first.
    """
    return weight.detach().abs().sum(0).topk(min(count, weight.shape[1])).indices


def activations(model: Any, pixels: Tensor) -> Tensor:
    """Return what the last layer of a model sees: (N, D)."""
    seen: list[Tensor] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])

    hook = model.linear.register_forward_pre_hook(note)
    try:
        with autocast(pixels.device):
            model(pixels)
    finally:
        hook.remove()
    return seen[0]


def disc(size: int) -> Tensor:
    """Return the picture at first: (3, size, size), a grey disc near the lower right corner."""
    radius = RADIUS * size
    place = torch.arange(size) + 0.5 - (size - 1.5 * radius)
    inside = place[:, None].square() + place.square() <= radius**2
    return GREY * inside.float().expand(3, -1, -1)
