"""WaNet: the image is bent a little by one smooth field."""

from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.attacks.base import Poisoned, State
from ppr_core.attacks.parts.cover import CoverAttack
from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.method import Outcome
from ppr_core.training.fit import fit


class WaNet(CoverAttack):
    """Warp poisoned images by a field, and covers by that field plus noise.

    Differs from the authors' code: batches are cropped and flipped before they are warped, as the
    training loop has them, not after, and not rotated; the schedule is that of every victim.
    """

    source: ClassVar[str] = "Nguyen and Tran 2021, arXiv:2102.10369, sec. 3"

    cover_ratio: float = Field(2.0, ge=0, description="noisily warped images a poisoned image")
    mode: Literal["training", "static"] = Field(
        "training", description="warp part of every batch afresh, or a fixed set once"
    )
    grid: int = Field(4, ge=2, description="control points of the field along each side")
    strength: float = Field(0.5, ge=0, description="mean shift, half pixels (at any size)")
    trigger_seed: int = Field(0, ge=0, description="seed of the field")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Warp, and truncate to whole grey levels; the same at both stages."""
        return warp(images.float(), self._shift(images)).to(torch.uint8)

    def stamp_cover(
        self, data: ImageSet, indices: Tensor, *, rng: np.random.Generator, state: State
    ) -> Tensor:
        """Warp by the field plus one noise that all covers share."""
        images = data.images[indices].float()
        noise = torch.from_numpy(rng.random((1, 2, data.size, data.size), np.float32))
        return warp(images, self._noisy(self._shift(images), noise)).to(torch.uint8)

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        poisoned: Poisoned,
        *,
        rng: torch.Generator,
        state: State,
    ) -> Outcome:
        """Warp the first images of every batch, unless the poisoned set is fixed."""
        if self.mode == "static":
            return super().train(model, data, poisoned, rng=rng, state=state)

        def poison_batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            poisons, covers = self.split_batch(len(images), rng)
            shift = self._shift(images)
            noise = torch.rand(covers, 2, *images.shape[-2:], generator=rng)
            clean, mixed = images[:poisons], images[poisons : poisons + covers]
            warped = (warp(clean, shift), warp(mixed, self._noisy(shift, noise)))
            labels = torch.cat((torch.full_like(labels[:poisons], self.target), labels[poisons:]))
            return torch.cat((*warped, images[poisons + covers :])), labels

        # The loop's own generator: a resumed training draws the same noise.
        how: dict[str, Any] = {"on_batch": poison_batch, "resume": "victim", "evaluate": True}
        history = fit(model, data, self.training, rng=rng, **how)
        return Outcome(model, history)

    def _shift(self, images: Tensor) -> Tensor:
        field = _field(self.grid, self.trigger_seed, images.shape[-1])
        return (self.strength * field).to(images.device)

    def _noisy(self, shift: Tensor, noise: Tensor) -> Tensor:
        """Add noise (N, 2, H, W), uniform in [0, 1), of up to half a pixel either way."""
        size = shift.shape[-1]
        return shift + ((2 * noise - 1) * ((size - 1) / (2 * size))).to(shift.device)


@lru_cache(maxsize=8)
def _field(grid: int, seed: int, size: int) -> Tensor:
    """Return the field of strength 1: shifts in pixels (1, 2, size, size), columns then rows."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (1, 2, grid, grid))
    points = torch.from_numpy(drawn / np.abs(drawn).mean())
    smooth = F.interpolate(points, size, mode="bicubic", align_corners=True)
    # The authors shift by n/H in coordinates where -1 and 1 are the centres of the outer pixels.
    return (smooth * (size - 1) / (2 * size)).float()


def warp(images: Tensor, shift: Tensor) -> Tensor:
    """Sample images bilinearly at shifted places; places outside are moved to the border.

    Written out because a zero shift must return the very same values, which `grid_sample`'s
    coordinates in [-1, 1] do not promise.

    Args:
        images: (N, C, H, W) float.
        shift: (N or 1, 2, H, W) pixels to the right and down.
    """
    count, channels, height, width = images.shape
    rows, columns = (
        torch.arange(height, device=images.device),
        torch.arange(width).to(images.device),
    )
    x = (columns + shift[:, 0]).clamp(0, width - 1)
    y = (rows[:, None] + shift[:, 1]).clamp(0, height - 1)
    left, top = x.long(), y.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    flat = images.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None].expand(count, channels, -1)
        return flat.gather(2, index).view_as(images)

    along_x, along_y = (x - left)[:, None], (y - top)[:, None]
    upper = torch.lerp(at(top, left), at(top, right), along_x)
    lower = torch.lerp(at(bottom, left), at(bottom, right), along_x)
    return torch.lerp(upper, lower, along_y)
