"""Images resident on one device as uint8, and reproducible augmented batches of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppr_core.errors import DataError, need


@dataclass(frozen=True)
class ImageSet:
    """Labelled images on one device.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64 in [0, len(classes)).
        classes: class names, in label order.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        shape, labels = tuple(self.images.shape), self.labels
        need(
            len(shape) == 4 and self.images.dtype == torch.uint8,
            f"expected uint8 images of shape (N, C, H, W), got {self.images.dtype} {shape}",
            DataError,
        )
        need(
            labels.shape == shape[:1] and labels.dtype == torch.int64,
            f"expected {shape[0]} int64 labels, got {labels.dtype} {tuple(labels.shape)}",
            DataError,
        )

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def num_classes(self) -> int:
        """Number of classes, present in this set or not."""
        return len(self.classes)

    @property
    def size(self) -> int:
        """Height of the (square) images, pixels."""
        return self.images.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where images and labels live."""
        return self.images.device

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same set on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return the images at `indices` (int64 or bool), in that order."""
        indices = indices.to(self.device)
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def spread(self, count: int) -> "ImageSet":
        """Return `count` images spread evenly over the set (its order may be by class)."""
        return self.subset(torch.linspace(0, len(self) - 1, min(count, len(self))).long())

    def with_images(self, images: Tensor) -> "ImageSet":
        """Return the same labels with other images."""
        return replace(self, images=images)

    def with_labels(self, labels: Tensor) -> "ImageSet":
        """Return the same images with other labels."""
        return replace(self, labels=labels)

    def __add__(self, other: "ImageSet") -> "ImageSet":
        images = torch.cat([self.images, other.images.to(self.device)])
        return replace(self, images=images, labels=torch.cat([self.labels, other.labels]))


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 (N, C, H, W) into float32 pixels in [0, 1], channels last in memory."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def to_uint8(images: Tensor) -> Tensor:
    """Turn pixels in [0, 1] into uint8 by truncation, the rule for every trigger."""
    return (images.clamp(0, 1) * 255).to(torch.uint8)


class Augment:
    """Random crop with zero padding and horizontal flip, drawn for a whole epoch at once.

    The draws come from a CPU generator, so one seed gives the same crops on every device.
    """

    def __init__(self, data: ImageSet, *, crop: int, flip: bool) -> None:
        self.crop, self.flip, self.size = crop, flip, data.size
        # Channels last, so that one gathered pixel is one contiguous read.
        images = data.images.permute(0, 2, 3, 1)
        self.images = torch.nn.functional.pad(images, (0, 0, crop, crop, crop, crop)).contiguous()
        self.range = torch.arange(self.size, device=data.device)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Return one (row, column, flip) triple an image: int64 (count, 3) on the device."""
        shift = torch.randint(0, 2 * self.crop + 1, (count, 2), generator=rng)
        flips = torch.randint(0, 2, (count, 1), generator=rng) * int(self.flip)
        return torch.cat([shift, flips], 1).to(self.images.device)

    def __call__(self, indices: Tensor, draws: Tensor) -> Tensor:
        """Return the augmented images at `indices`: float32 (B, C, H, W) in [0, 1]."""
        return to_float(self.pick(indices, draws))

    def pick(self, indices: Tensor, draws: Tensor) -> Tensor:
        """Return the augmented images at `indices`: uint8 (B, C, H, W)."""
        rows = draws[:, 0:1] + self.range
        columns = torch.where(draws[:, 2:3] == 1, self.range.flip(0), self.range) + draws[:, 1:2]
        picked = self.images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2)


def picks(
    data: ImageSet, size: int, *, rng: torch.Generator, augment: Augment | None
) -> Iterator[tuple[Tensor, ...]]:
    """Yield what `look_up` turns into the shuffled batches of one epoch: indices, and their draws.

    All of an epoch is drawn before its first batch, and sent to the device at once. The last batch
    may be smaller than `size`, and `fit` may stop before it.
    """
    count = len(data)
    order = torch.randperm(count, generator=rng).to(data.device)
    columns = (order,) if augment is None else (order, augment.draw(count, rng))
    for start in range(0, count, size):
        yield tuple(column[start : start + size] for column in columns)


def look_up(data: ImageSet, augment: Augment | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the map from a pick to (float32 images in [0, 1], int64 labels): device work only."""

    def pictures(chosen: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor]:
        images = augment(chosen, *draws) if augment else to_float(data.images[chosen])
        return images, data.labels[chosen]

    return pictures


def augmented(data: ImageSet, *, crop: int, flip: bool, rng: torch.Generator) -> ImageSet:
    """Return the set with crop and flip drawn once, for a tuning that reuses them every epoch."""
    augment = Augment(data, crop=crop, flip=flip)
    everything = torch.arange(len(data), device=data.device)
    return data.with_images(augment.pick(everything, augment.draw(len(data), rng)))
