"""MixMatch: learn from some labels, and from what the network itself says of other images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.data.images import Augment, ImageSet


def mix_loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    views: tuple[Tensor, Tensor],
    order: Tensor,
    mixing: float,
    *,
    classes: int,
    sharpening: float,
    weight: float,
) -> Tensor:
    """Return MixMatch's loss of one batch with labels and one without.

    Source: Berthelot et al. 2019, arXiv:1905.02249, sec. 3: guessed labels are the mean over two
    views, sharpened; all images are mixed with others of the batch; cross-entropy where labels are
    given, squared error where they are guessed. Batches are interleaved, so that batch norm sees
    both kinds in each.

    Args:
        model: in train mode.
        images: with labels, augmented: (N, C, H, W).
        labels: as given.
        views: two augmented views of N images without labels.
        order: a permutation of 3 N: the partner of each image.
        mixing: share of an image's own pixels and label, 0.5 to 1.
        classes: how many there are.
        sharpening: temperature of the guessed labels.
        weight: of the squared error.
    """
    with torch.no_grad():
        said = torch.stack([model(view).float().softmax(1) for view in views]).mean(0)
        guessed = said ** (1 / sharpening)
        guessed = guessed / guessed.sum(1, keepdim=True)
    count = len(images)
    pixels = torch.cat([images, *views])
    wanted = torch.cat([F.one_hot(labels, classes).float(), guessed, guessed])
    pixels = mixing * pixels + (1 - mixing) * pixels[order]
    wanted = mixing * wanted + (1 - mixing) * wanted[order]
    parts = interleaved(list(pixels.split(count)))
    logits = torch.cat(interleaved([model(part).float() for part in parts]))
    given = -(wanted[:count] * logits[:count].log_softmax(1)).sum(1).mean()
    return given + weight * F.mse_loss(logits[count:].softmax(1), wanted[count:])


def interleaved(parts: list[Tensor]) -> list[Tensor]:
    """Return parts of equal length in which slice i of part i and of the first change places.

    Done twice, it changes nothing.
    """
    edges = [len(parts[0]) * i // len(parts) for i in range(len(parts) + 1)]
    found = [part.clone() for part in parts]
    for i in range(1, len(parts)):
        own = slice(edges[i], edges[i + 1])
        found[0][own], found[i][own] = parts[i][own], parts[0][own]
    return found


class Unlabelled:
    """Draws what a step of MixMatch needs beside its batch with labels.

    Args:
        data: images without labels.
        crop: zero padding of the random crops, pixels a side.
        flip: whether half of the images are flipped.
        draw: gives the generator of a step.
    """

    def __init__(
        self, data: ImageSet, *, crop: int, flip: bool, draw: Callable[[], torch.Generator]
    ) -> None:
        self.augment, self.count = Augment(data, crop=crop, flip=flip), len(data)
        self.device, self.draw = data.device, draw

    def __call__(self, count: int, beta: float) -> tuple[tuple[Tensor, Tensor], Tensor, float]:
        """Return two views of images, an order of all three batches, and a share of mixing."""
        rng = self.draw()
        chosen = torch.randint(self.count, (count,), generator=rng).to(self.device)
        one, two = (self.augment(chosen, self.augment.draw(count, rng)) for _ in range(2))
        order = torch.randperm(3 * count, generator=rng).to(self.device)
        seed = int(torch.randint(2**31, (), generator=rng))
        share = float(np.random.RandomState(seed).beta(beta, beta))
        return (one, two), order, max(share, 1 - share)
