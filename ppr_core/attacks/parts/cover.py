"""Attacks with cover images: triggered too, yet under their true label."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import Attack, Poisoned, State
from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need


class CoverAttack(Attack):
    """Poison as every attack, and stamp other images that keep their labels.

    Covers teach the model to answer to the exact trigger alone. Subclasses write `stamp`, and
    `stamp_cover` where a cover is stamped in another way than a poisoned image.
    """

    cover_ratio: float = Field(1.0, ge=0, description="cover images a poisoned image")

    def stamp_cover(
        self, data: ImageSet, indices: Tensor, *, rng: np.random.Generator, state: State
    ) -> Tensor:
        """Return the cover version of the training images at `indices`."""
        return self.stamp_train(data, indices, state=state)

    def poison(self, data: ImageSet, *, seed: int, state: State) -> Poisoned:
        """Return the poisoned training set, covers included; they are disjoint from the poisons."""
        poisoned = super().poison(data, seed=seed, state=state)
        free = np.setdiff1d(np.arange(len(data)), poisoned.indices.cpu().numpy())
        rng = np.random.default_rng(seed)
        drawn = rng.choice(free, self._covers(len(poisoned.indices)), replace=False)
        covers = torch.from_numpy(np.sort(drawn)).to(data.device)
        if len(covers):  # in place: these images are a copy already
            poisoned.data.images[covers] = self.stamp_cover(data, covers, rng=rng, state=state)
        return replace(poisoned, covers=covers)

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError also where the images do not suffice for the covers."""
        super().check_data(data)
        poisons = round(self.poison_rate * len(data))
        total = poisons + self._covers(poisons)
        need(
            total <= len(data),
            f"expected at most {len(data)} poisoned and cover images, got {total}; lower "
            f"poison_rate ({self.poison_rate}) or cover_ratio ({self.cover_ratio})",
            DataError,
        )

    def split_batch(self, size: int, rng: torch.Generator) -> tuple[int, int]:
        """Return how many images of a training batch to poison, and how many to make covers.

        Differs from the authors' code: a fractional count is met on average, not cut off.
        """
        poisons = int(self.poison_rate * size + torch.rand((), generator=rng).item())
        return poisons, min(self._covers(poisons), size - poisons)

    def _covers(self, poisons: int) -> int:
        return round(self.cover_ratio * poisons)
