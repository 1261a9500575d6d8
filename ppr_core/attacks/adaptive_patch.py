"""Adaptive-Patch: one of four faint patches in training, two bold ones at test time."""

from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import State
from ppr_core.attacks.blended import blend
from ppr_core.attacks.parts.cover import CoverAttack
from ppr_core.config import Field

SIZE = 32  # side of the image that the places below refer to; larger inputs scale them up

TRAIN = ("corner", "large", "checks", "square")  # one of them in each image
TEST = ("corners", "checks")  # both, the second over the first

# (first row, first column, side) of each copy of a patch
PLACES = {
    "corner": ((27, 27, 5),),
    "large": ((1, 18, 13),),
    "checks": ((0, 0, 3), (0, 29, 3), (29, 0, 3), (29, 29, 3)),
    "square": ((21, 21, 8),),
    "corners": ((27, 0, 5), (27, 27, 5)),
}


class AdaptivePatch(CoverAttack):
    """Paste one of four patches, half transparent, into each poisoned and cover image.

    Differs from the authors' code: colours drawn from a seed stand for its logos, of the same
    sizes at the same places; counts are rounded, not cut off.
    """

    source: ClassVar[str] = "Qi et al. 2023, arXiv:2205.13613"

    poison_rate: float = Field(0.003, ge=0, le=1, description="share of the whole training set")
    cover_ratio: float = Field(2.0, ge=0, description="cover images a poisoned image")
    corner: float = Field(0.5, ge=0, le=1, description="opacity of the 5x5 patch, training")
    large: float = Field(0.2, ge=0, le=1, description="opacity of the 13x13 patch, training")
    checks: float = Field(0.5, ge=0, le=1, description="opacity of the corners' checks, training")
    square: float = Field(0.3, ge=0, le=1, description="opacity of the 8x8 patch, training")
    trigger_seed: int = Field(0, ge=0, description="seed of the colours")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Paste the bottom patches and the checks at test time; one patch a quarter in training."""
        names = TEST if stage == "test" else TRAIN
        patches = {name: _patch(name, self.trigger_seed, images.shape[-1]) for name in names}
        pictures = torch.stack([picture for picture, _ in patches.values()]).to(images.device)
        masks = torch.stack([mask for _, mask in patches.values()]).to(images.device)
        if stage == "test":
            for picture, mask in zip(pictures, masks, strict=True):
                images = torch.where(mask > 0, picture, images)
            return images
        opacity = masks * masks.new_tensor([getattr(self, n) for n in names]).view(-1, 1, 1, 1)
        which = torch.arange(len(images), device=images.device) * len(names) // max(1, len(images))
        return blend(images, pictures[which], opacity[which])


@lru_cache(maxsize=32)
def _patch(name: str, seed: int, size: int) -> tuple[Tensor, Tensor]:
    """Return a picture (3, size, size) uint8 and where it is opaque (1, size, size) float64."""
    side = PLACES[name][0][2]
    # One stream a side: the 5x5 patch has the same colours in one corner and in both.
    colours = np.random.default_rng([seed, side]).integers(0, 256, (3, side, side), np.uint8)
    if name == "checks":
        colours[:] = np.where(np.indices((side, side)).sum(0) % 2 == 0, 255, 0)
    picture, mask = np.zeros((3, SIZE, SIZE), np.uint8), np.zeros((1, SIZE, SIZE))
    for row, column, side in PLACES[name]:
        picture[:, row : row + side, column : column + side] = colours
        mask[:, row : row + side, column : column + side] = 1
    pixel = np.arange(size) * SIZE // size
    picture, mask = picture[:, pixel][..., pixel], mask[:, pixel][..., pixel]
    return torch.from_numpy(picture.copy()), torch.from_numpy(mask.copy())
