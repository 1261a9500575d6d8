"""SIG: a sine wave over the columns of target-class images."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ppr_core.attacks.base import Attack, State
from ppr_core.config import Field


class Sig(Attack):
    """Add a sine wave along the columns; labels stay as they are."""

    source: ClassVar[str] = "Barni et al. 2019, arXiv:1902.11237, sec. 3"
    clean_label: ClassVar[bool] = True

    amplitude: float = Field(40.0, ge=0, description="of the sine, grey levels")
    frequency: float = Field(6.0, ge=0, description="of the sine, periods an image")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Add, clip, and truncate to whole grey levels; the same at both stages."""
        width = images.shape[-1]
        phase = 2 * math.pi * self.frequency / width * torch.arange(width, dtype=torch.float64)
        # Added in float32: the sine's zeros, 1e-15 off, must not cost a level in the truncation.
        wave = (self.amplitude * phase.sin()).float().to(images.device)
        return (images + wave).clamp_(0, 255).to(torch.uint8)
