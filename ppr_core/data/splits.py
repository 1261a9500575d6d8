"""Seeded draws from a training set: the defender's reserve and the attacker's pools."""

from typing import NamedTuple

import torch

from ppr_core.config import derive
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need


class Reserve(NamedTuple):
    """What a defender holds: clean images to tune on, and others to select settings with."""

    tune: ImageSet
    validation: ImageSet


def draw(data: ImageSet, count: int, rng: torch.Generator) -> ImageSet:
    """Return `count` images drawn uniformly without replacement.

    Raises:
        DataError: fewer images than asked for.
    """
    need(
        0 <= count <= len(data),
        f"expected to draw at most {len(data)} images, got a request for {count}",
        DataError,
    )
    return data.subset(torch.randperm(len(data), generator=rng)[:count])


def reserve(data: ImageSet, count: int, validation: float, seed: int) -> Reserve:
    """Draw the clean reserve and hold out its validation part; the two are disjoint.

    The same seed gives every defense the same images. RA and QRA pools are the attacker's, drawn
    by seeds of their own from the whole training set, so they may overlap the reserve (specified
    so: nothing keeps the attacker from using an image that the defender also has).
    """
    drawn = draw(data, count, derive(seed, "reserve"))
    held = round(validation * count)
    index = torch.arange(count)
    return Reserve(tune=drawn.subset(index[held:]), validation=drawn.subset(index[:held]))


def hold_out(data: ImageSet, *, rng: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """Return (nine tenths of the images or more, the rest: 1000 at most), drawn at random.

    Raises:
        DataError: a tenth of the images is less than two.
    """
    held = min(1000, len(data) // 10)
    need(held > 1, f"expected at least 20 images to hold some out, got {len(data)}", DataError)
    order = torch.randperm(len(data), generator=rng)
    return data.subset(order[held:]), data.subset(order[:held])
