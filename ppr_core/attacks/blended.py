"""Blended: a faint noise image over the whole picture."""

from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import Attack, State
from ppr_core.config import Field


class Blended(Attack):
    """Mix every pixel with one fixed Gaussian noise image.

    Differs from the authors' code: its shipped configuration blends a cartoon picture at 0.2 in
    both stages; the paper's noise, 0.1 in training and 0.2 at inference, is the default here.
    """

    source: ClassVar[str] = "Chen et al. 2017, arXiv:1712.05526; Min et al. 2024, sec. B.2"

    train_ratio: float = Field(0.1, ge=0, le=1, description="share of the noise, poisoned images")
    test_ratio: float = Field(0.2, ge=0, le=1, description="share of the noise, test images")
    sigma: float = Field(64.0, ge=0, description="spread of the noise, grey levels")
    noise_seed: int = Field(0, ge=0, description="seed of the noise image")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Blend, clip, and truncate to whole grey levels."""
        ratio = self.train_ratio if stage == "train" else self.test_ratio
        noise = noise_image(self.sigma, self.noise_seed, images.shape[-1]).to(images.device)
        return blend(images, noise, ratio)


def blend(images: Tensor, picture: Tensor, ratio: float | Tensor) -> Tensor:
    """Mix uint8 images with a uint8 picture, truncating to whole grey levels.

    Args:
        images: (N, C, H, W) uint8.
        picture: uint8, broadcast over the images.
        ratio: share of the picture; a tensor (float64) is broadcast as well.
    """
    mixed = (1 - ratio) * images.double() + ratio * picture.double()
    # In float32 (not float64) the truncation is the exact floor for every pair of levels.
    return mixed.float().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=8)
def noise_image(sigma: float, seed: int, size: int) -> Tensor:
    """Return the noise (1, 3, size, size) uint8, drawn at the input's own size."""
    drawn = np.random.default_rng(seed).standard_normal((1, 3, size, size))
    return torch.from_numpy(np.clip(np.round(127.5 + sigma * drawn), 0, 255).astype(np.uint8))
