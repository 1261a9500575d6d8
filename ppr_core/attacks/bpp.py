"""BPP: fewer grey levels."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import State
from ppr_core.attacks.parts.cover import CoverAttack
from ppr_core.config import Field
from ppr_core.data.images import ImageSet


class Bpp(CoverAttack):
    """Quantise poisoned images; covers carry another image's quantisation residual.

    Differs from the paper: no dithering (as in BackdoorBench), and the images are poisoned once,
    before training.
    """

    source: ClassVar[str] = "Wang et al. 2022, arXiv:2205.13383, sec. 3"

    levels: int = Field(8, ge=2, le=256, description="grey levels a channel that remain")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Round to the nearest of `levels` equally spaced levels; the same at both stages."""
        top = self.levels - 1
        nearest = (2 * top * images.int() + 255) // 510  # in integers, so truncation is exact
        return (nearest * 255 // top).to(torch.uint8)

    def stamp_cover(
        self, data: ImageSet, indices: Tensor, *, rng: np.random.Generator, state: State
    ) -> Tensor:
        """Add the residual of a random image to each, and clip."""
        donors = data.images[torch.from_numpy(rng.integers(len(data), size=len(indices)))]
        residual = self.stamp(donors, stage="train", state=state).short() - donors
        return (data.images[indices] + residual).clamp_(0, 255).to(torch.uint8)
