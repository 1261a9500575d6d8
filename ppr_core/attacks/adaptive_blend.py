"""Adaptive-Blend: pieces of a blended trigger in training, all of it at test time."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import State
from ppr_core.attacks.blended import blend, noise_image
from ppr_core.attacks.parts.cover import CoverAttack
from ppr_core.config import Field
from ppr_core.data.images import ImageSet


class AdaptiveBlend(CoverAttack):
    """Blend a random half of the trigger's pieces into each poisoned and cover image.

    Differs from the authors' code: the trigger is Gaussian noise, not a cartoon picture; counts
    are rounded, not cut off.
    """

    source: ClassVar[str] = "Qi et al. 2023, arXiv:2205.13613"

    poison_rate: float = Field(0.003, ge=0, le=1, description="share of the whole training set")
    train_ratio: float = Field(0.15, ge=0, le=1, description="share of the noise, training images")
    test_ratio: float = Field(0.2, ge=0, le=1, description="share of the noise, test images")
    grid: int = Field(4, ge=1, description="pieces of the trigger along each side")
    kept: float = Field(0.5, gt=0, le=1, description="share of the pieces in a training image")
    sigma: float = Field(64.0, ge=0, description="spread of the noise, grey levels")
    trigger_seed: int = Field(0, ge=0, description="seed of the noise and of the pieces kept")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Blend all of the trigger at test time, the pieces of images 0, 1, ... in training."""
        noise = noise_image(self.sigma, self.trigger_seed, images.shape[-1]).to(images.device)
        if stage == "test":
            return blend(images, noise, self.test_ratio)
        masks = self._masks(torch.arange(len(images)), images.shape[-1]).to(images.device)
        return blend(images, noise, self.train_ratio * masks)

    def stamp_train(self, data: ImageSet, indices: Tensor, *, state: State) -> Tensor:
        """Blend the pieces drawn for each index, so that every image has its own."""
        noise = noise_image(self.sigma, self.trigger_seed, data.size).to(data.device)
        masks = self._masks(indices.cpu(), data.size).to(data.device)
        return blend(data.images[indices], noise, self.train_ratio * masks)

    def _masks(self, indices: Tensor, size: int) -> Tensor:
        """Return which pixels each index keeps: (N, 1, size, size) float64, 0 or 1."""
        pieces = self.grid**2
        rows = int(indices.max()) + 1 if len(indices) else 0
        draws = np.random.default_rng([self.trigger_seed, 1]).random((rows, pieces))
        kept = draws.argsort(1).argsort(1) < round(self.kept * pieces)
        masks = torch.from_numpy(kept)[indices].double().view(-1, 1, self.grid, self.grid)
        cell = torch.arange(size) * self.grid // size
        return masks[:, :, cell][..., cell]
