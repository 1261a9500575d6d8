"""NPD: neural polarizer defense, one more layer that filters the backdoor's features."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.training.fit import Loss, Schedule, fit

WARM_UP = Schedule(epochs=5, lr=1e-4, momentum=0.0, crop=0, flip=False)
TUNING = Schedule(epochs=50, lr=0.01, weight_decay=5e-4, crop=0, flip=False)


class Npd(Defense):
    """Put a linear layer and batch norm into the last block; train them against perturbations.

    Nothing else is trained. The result has one layer more than the model handed in: `extend` adds
    it, as the identity, to any other model, to load weights into or to draw a path from.

    Differs from the authors' code: the search for perturbations also ends before its first step,
    where the share of fooled images is reached already, and it goes on from the clipped image.
    """

    version: ClassVar[int] = 2
    source: ClassVar[str] = "Zhu et al. 2023, arXiv:2306.16697"
    needs: ClassVar[tuple[str, ...]] = ("backbone",)
    asks: ClassVar[str] = "blocks in it whose first convolution is called conv1"

    radius: float = Field(3.0, ge=0, description="of a perturbation, L2, pixels in [0, 1]")
    step_size: float = Field(0.1, ge=0, description="of each of its sign steps")
    search_steps: int = Field(2, ge=0, description="sign steps towards the runner-up class")
    enough: float = Field(0.6, ge=0, le=1, description="share of fooled images that ends a search")
    robust: float = Field(0.4, ge=0, description="weight of keeping the answer when perturbed")
    other: float = Field(0.4, ge=0, description="weight of avoiding the best wrong class then")
    target: float = Field(0.4, ge=0, description="weight of avoiding the perturbation's target")
    warm_up: Schedule = Field(WARM_UP, description="of the new layer, on clean images")
    schedule: Schedule = Field(TUNING, description="of the new layer, on both")

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise ConfigError for a model without the place that the layer goes to."""
        super().check(model, data)
        need(
            last_block(model) is not None,
            "Npd filters what enters the last block: expected a backbone with blocks whose first "
            "convolution is called conv1, got one without; choose another defense for it",
        )

    def extend(self, model: nn.Module) -> nn.Module:
        """Add the layer, as the identity, in front of the last block's first convolution."""
        block = last_block(model)
        block.conv1 = Polarizer(block.conv1).train(block.training)
        return model

    def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Add the layer; warm it up, its batch norm in train mode; train it in eval mode."""
        model.requires_grad_(False)
        layer = last_block(self.extend(model)).conv1
        layer.filter.requires_grad_(True)
        layer.norm.requires_grad_(True)

        def clean(images: Tensor, labels: Tensor) -> Tensor:
            layer.norm.train()  # which `fit` puts into eval mode, with all the rest
            return F.cross_entropy(model(images), labels)

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        hooks: dict[str, Any] = {"parameters": trained, "train_mode": False}
        fit(model, data, self.warm_up, rng=fork(rng, "warm_up"), loss=clean, **hooks)
        hooks |= {"loss": self.loss(model), "resume": "tune"}
        return Outcome(model, fit(model, data, self.schedule, rng=fork(rng, "tune"), **hooks))

    def loss(self, model: nn.Module) -> Loss:
        """Return the loss on a batch and on its perturbed images."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            logits = model(images).float()
            target = best_other(logits, labels)
            moved = model(self.perturb(model, images, target)).float()
            value = F.cross_entropy(logits, labels)
            value = value + self.robust * F.cross_entropy(moved, logits.argmax(1))
            value = value + self.other * avoid(moved, best_other(moved, labels)).mean()
            return value + self.target * avoid(moved, target).mean()

        return loss

    def perturb(self, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        """Return images moved towards a class each, within the ball and the range of pixels."""
        found = images
        for _ in range(self.search_steps):
            found = found.detach().requires_grad_()
            logits = model(found).float()
            if (logits.argmax(1) == target).float().mean() >= self.enough:
                break
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, target), found)
            delta = found.detach() - self.step_size * slope.sign() - images
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            found = images + delta * (self.radius / length.clamp_min(1e-12)).clamp(max=1)
            found = found.clamp(0, 1)
        return found.detach()


class Polarizer(nn.Module):
    """A linear layer and batch norm in front of a convolution; at first the identity."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        width, device = layer.in_channels, layer.weight.device
        self.filter = nn.Conv2d(width, width, 1, bias=False, device=device)
        self.norm = nn.BatchNorm2d(width, device=device)
        self.layer = layer
        with torch.no_grad():
            nn.init.dirac_(self.filter.weight)
            self.norm.get_buffer("running_var").fill_(1 - self.norm.eps)

    def forward(self, maps: Tensor) -> Tensor:
        """Filter, then do what the layer did."""
        return self.layer(self.norm(self.filter(maps)))


def last_block(model: nn.Module) -> Any:
    """Return the last part of the backbone that has a convolution called conv1; None: no part."""
    kinds = nn.Conv2d | Polarizer
    parts = model.get_submodule("backbone").modules()
    found = [part for part in parts if isinstance(getattr(part, "conv1", None), kinds)]
    return found[-1] if found else None


def avoid(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log(1.0001 - p) (N,) of the labels' probabilities p; bounded where p is 1."""
    p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return -(1.0001 - p).log()


def best_other(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the best class (N,) besides the labels."""
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)
