"""What every data set shares: its settings, and the balanced draw of the images kept."""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ppr_core.config import Field, Settings, derive
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need


class Split(NamedTuple):
    """The two parts of a data set, on the CPU, with the same classes."""

    train: ImageSet
    test: ImageSet


class Dataset(Settings):
    """A data set and its settings; subclasses write `load`."""

    version: ClassVar[int] = 1  # raise it when the images change: cached files are then remade

    train: int | None = Field(
        None, ge=1, description="training images kept, balanced over the classes; null: all"
    )
    test: int | None = Field(
        None, ge=1, description="test images kept, balanced over the classes; null: all"
    )

    def load(self, root: Path) -> Split:
        """Read or draw the images.

        Args:
            root: the data folder; what a data set downloads or looks for lies in it.

        Raises:
            DataError: the source is missing, damaged, or cannot serve these settings.
        """
        raise NotImplementedError(f"{type(self).__name__}.load")

    def fingerprint(self, root: Path) -> Any:
        """Return what the images depend on besides the settings: JSON that is cheap to get.

        Raises:
            DataError: the source is missing.
        """
        return None


def balanced(labels: Tensor, count: int | None, what: str) -> Tensor:
    """Choose `count` images, as evenly over the classes as they allow, under a fixed seed of 0.

    A smaller choice is part of every larger one.

    Args:
        labels: (N,) int64.
        count: number of images; None chooses all.
        what: which images, for the message, such as "training images".

    Returns:
        Their indices: int64 (count,), ascending.

    Raises:
        DataError: fewer images than asked for.
    """
    total = len(labels)
    if count is None:
        return torch.arange(total)
    need(count <= total, f"expected at most {total} {what} (all there are), got {count}", DataError)
    order = torch.randperm(total, generator=derive(0, "data", "balanced"))
    order = order[labels[order].argsort(stable=True)]  # class by class, each in random order
    sizes = labels.bincount()
    rank = torch.arange(total) - (sizes.cumsum(0) - sizes)[labels[order]]
    return order[rank.argsort(stable=True)[:count]].sort().values
