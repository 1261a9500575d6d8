"""LF: a smooth pattern without high frequencies, added to the whole picture."""

from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import Attack, State
from ppr_core.config import Field


class LowFrequency(Attack):
    """Add one fixed, smooth, non-negative pattern (LF-random).

    Differs from the paper: the pattern is low-passed noise, not optimised against a clean model.
    """

    source: ClassVar[str] = "Zeng et al. 2021, arXiv:2104.03413, sec. 4"

    amplitude: float = Field(0.2, ge=0, le=1, description="largest addition, share of [0, 1]")
    cutoff: float = Field(4.0, ge=1, description="highest frequency, periods an image")
    trigger_seed: int = Field(0, ge=0, description="seed of the pattern")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Add and clip; the same at both stages."""
        pattern = smooth_pattern(self.cutoff, self.trigger_seed, images.shape[-1])
        levels = (255 * self.amplitude * pattern).round().to(images.device, torch.int16)
        return (images + levels).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=8)
def smooth_pattern(cutoff: float, seed: int, size: int) -> Tensor:
    """Return a sum of random waves below `cutoff`, (1, 3, size, size) float64 in [0, 1].

    One seed gives one pattern, sampled at any size.
    """
    periods = np.arange(int(cutoff) + 1)
    angle = 2 * np.pi * np.outer(periods, np.arange(size) / size)
    waves = np.concatenate((np.cos(angle), np.sin(angle)))
    weights = np.random.default_rng(seed).standard_normal((3, len(waves), len(waves)))
    weights[:, np.hypot(*np.meshgrid(*[np.tile(periods, 2)] * 2)) > cutoff] = 0
    field = waves.T @ weights @ waves
    low, high = field.min(), field.max()
    return torch.from_numpy((field - low) / (high - low))[None]
