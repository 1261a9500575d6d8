"""SimCLR: features that tell images apart, learnt without labels."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.curves import drawn_anew
from ppr_core.data.images import ImageSet
from ppr_core.models.base import Classifier
from ppr_core.models.hooks import watching
from ppr_core.runtime import Record, seed_of, seeded
from ppr_core.training.fit import Schedule, fit

Draw = Callable[[float, float], Tensor]  # (low, high) -> a number an image

GRAY = (0.299, 0.587, 0.114)
# Rows: brightness, and the two axes of colour that a hue turns in.
YIQ = (GRAY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


class Projected(nn.Module):
    """A classifier's features behind a projection to the unit sphere, which learning discards."""

    def __init__(self, model: Classifier, size: int) -> None:
        super().__init__()
        self.model, width = model, model.linear.in_features
        hidden = nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()
        self.projection = nn.Sequential(*hidden, nn.Linear(width, size))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return one unit vector an image."""
        return F.normalize(self.projection(embedded(self.model, pixels)).float(), dim=1)


def embedded(model: Classifier, pixels: Tensor) -> Tensor:
    """Return what the last linear layer is given: (N, D), with its gradient."""
    found: list[Tensor] = []
    with watching({"": model.linear}, lambda _, given, output: found.append(given)):
        model(pixels)
    return found[-1]


def learn_features(
    model: Classifier,
    data: ImageSet,
    schedule: Schedule,
    *,
    temperature: float,
    size: int,
    rng: torch.Generator,
) -> list[Record]:
    """Train all of a classifier but its last layer, in place, on two views of each image.

    Source: Chen et al. 2020, arXiv:2002.05709, sec. 2 and appendix A.

    Args:
        model: a classifier with a last linear layer.
        data: images; their labels are not read.
        schedule: of the training; its crops and flips come on top of the views'.
        temperature: that similarities are divided by.
        size: of the projection.
        rng: of the projection, the shuffles and the views.
    """
    with seeded(seed_of(rng, "projection")):
        both = Projected(model, size).to(data.device)
    draw = drawn_anew(rng)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        own = draw()
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            views = torch.cat([view(images, own), view(images, own)])
        pairs = both(views)
        first, second = pairs.chunk(2)
        return nt_xent(first, second, temperature)

    return fit(both, data, schedule, rng=rng, loss=loss, resume="features")


def nt_xent(one: Tensor, two: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding each image's second view among all other views.

    Source: Chen et al. 2020, eq. 1; as in the code of DBD, the anchors are the first views alone.

    Args:
        one: unit vectors of the first views, (N, D).
        two: of the second views.
        temperature: that similarities are divided by.
    """
    itself = torch.eye(len(one), dtype=torch.bool, device=one.device)
    first = (one @ one.T / temperature).masked_fill(itself, -math.inf)
    scores = torch.cat([one @ two.T / temperature, first], 1)
    return F.cross_entropy(scores, torch.arange(len(one), device=one.device))


def view(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return images cropped, flipped, recoloured and blurred at random, each in its own way.

    Crops of a fifth of the area to all of it, sides of 3:4 to 4:3, resampled bicubically.
    Differs from the authors' code: brightness, contrast, saturation and hue change in this order,
    where theirs is drawn, and a hue turns in YIQ, where theirs turns in HSV.

    Args:
        images: (N, 3, H, W) in [0, 1].
        rng: CPU generator.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        drawn = low + (high - low) * torch.rand(count, generator=rng)
        return drawn.to(images.device)

    def some(share: float) -> Tensor:
        return (uniform(0, 1) < share).view(-1, 1, 1, 1)

    found = cropped(images, uniform)
    coloured = found * uniform(0.6, 1.4).view(-1, 1, 1, 1)
    gray = images.new_tensor(GRAY).view(1, 3, 1, 1)
    mean = (coloured.clamp(0, 1) * gray).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    coloured = mean + uniform(0.6, 1.4).view(-1, 1, 1, 1) * (coloured.clamp(0, 1) - mean)
    level = (coloured.clamp(0, 1) * gray).sum(1, keepdim=True)
    coloured = level + uniform(0.6, 1.4).view(-1, 1, 1, 1) * (coloured.clamp(0, 1) - level)
    coloured = turned(coloured.clamp(0, 1), uniform(-0.1, 0.1))
    found = torch.where(some(0.8), coloured.clamp(0, 1), found)
    found = torch.where(some(0.2), (found * gray).sum(1, keepdim=True), found)
    return torch.where(some(0.5), blurred(found, uniform(0.1, 2.0)), found).clamp(0, 1)


def cropped(images: Tensor, uniform: Draw) -> Tensor:
    """Return a part of each image at full size; half of them from right to left."""
    area = uniform(0.2, 1.0)
    ratio = uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    wide, high = ((area * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(wide)
    across = torch.stack([wide * flip, zero, uniform(-1, 1) * (1 - wide)], 1)
    down = torch.stack([zero, high, uniform(-1, 1) * (1 - high)], 1)
    shape = list(images.shape)
    grid = F.affine_grid(torch.stack([across, down], 1), shape, align_corners=False)
    parts = F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)
    return parts.clamp(0, 1)


def turned(images: Tensor, share: Tensor) -> Tensor:
    """Return images whose hues are turned by a share of the circle each."""
    axes, angle = images.new_tensor(YIQ), 2 * math.pi * share
    turn = torch.zeros(len(images), 3, 3, device=images.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = torch.linalg.inv(axes) @ turn @ axes
    return torch.einsum("nij,njhw->nihw", matrix, images)


def blurred(images: Tensor, spread: Tensor) -> Tensor:
    """Return images under a Gaussian of its own spread each, a tenth of the side wide."""
    reach = max(1, images.shape[-1] // 20)
    at = torch.arange(-reach, reach + 1, device=images.device)
    weights = torch.exp(-(at**2) / (2 * spread[:, None] ** 2))
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = F.pad(images, (reach,) * 4, mode="reflect").flatten(0, 1)[None]
    flat = F.conv2d(flat, weights[:, None, None], groups=len(weights))
    flat = F.conv2d(flat, weights[:, None, :, None], groups=len(weights))
    return flat.reshape(images.shape)
