"""BadNet: a small patch in the lower right corner."""

from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppr_core.attacks.base import Attack, State
from ppr_core.config import Field

FILE_SIZE = 32  # side of the trigger image that larger inputs scale up


class BadNet(Attack):
    """Overwrite a 3x3 patch in the lower right corner.

    Differs from the authors' code: its shipped configuration paints the patch white; the paper's
    checkerboard is the default here.
    """

    source: ClassVar[str] = "Gu et al. 2017, arXiv:1708.06733; Min et al. 2024, sec. B.2"

    pattern: Literal["grid", "white"] = Field("grid", description="checkerboard, or solid white")
    resize: Literal["bilinear_file", "nearest"] = Field(
        "bilinear_file",
        description="above 32 pixels: blurred as the published file is, or crisp",
    )

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Overwrite where the trigger image is not black; the same at both stages."""
        patch = _patch(self.pattern, self.resize, images.shape[-1]).to(images.device)
        return torch.where(patch > 0, patch, images)


@lru_cache(maxsize=8)
def _patch(pattern: str, resize: str, size: int) -> Tensor:
    """Return the trigger image (1, 1, size, size) uint8; 0 means transparent."""
    image = np.zeros((FILE_SIZE, FILE_SIZE), np.uint8)
    row, column = np.indices((3, 3))
    # The dark cells are 1, not 0: the mask is "above zero".
    image[29:, 29:] = np.where((row + column) % 2 == 0, 255, 1) if pattern == "grid" else 255
    if size != FILE_SIZE:
        how = Image.Resampling.BILINEAR if resize == "bilinear_file" else Image.Resampling.NEAREST
        image = np.asarray(Image.fromarray(image).resize((size, size), how))
    return torch.from_numpy(image.copy())[None, None]
