"""FTrojan: two coefficients of the colour channels' cosine transform are raised."""

from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import Attack, State
from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need

WINDOW = 32  # side of the transform's blocks, pixels
BANDS = (15, 31)  # the diagonal coefficients that are raised: a middle and a high frequency


class FTrojan(Attack):
    """Raise two DCT coefficients of Cr and Cb in every 32x32 block.

    The transform is linear, so this adds one fixed pattern to the two channels.

    Differs from the authors' code: values beyond 0 and 255 are clipped; there they wrap around.
    """

    source: ClassVar[str] = "Wang et al. 2022, arXiv:2111.10991, sec. 4"

    magnitude: float = Field(30.0, ge=0, description="added to each coefficient, grey levels")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Add the pattern in YCrCb, truncate, and convert back; the same at both stages."""
        _check_size(images.shape[-1])
        pattern = (self.magnitude * _waves(images.shape[-1])).to(images.device)
        luma, red, blue = to_ycrcb(images)
        red, blue = ((part + pattern).clamp_(0, 255).int() for part in (red, blue))
        return to_rgb(luma, red, blue)

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError also where the blocks do not tile the images."""
        super().check_data(data)
        _check_size(data.size)


def _check_size(size: int) -> None:
    need(
        size % WINDOW == 0,
        f"FTrojan works on blocks of {WINDOW}x{WINDOW}: expected images of a multiple of {WINDOW} "
        f"pixels, got {size}; resize the data set",
        DataError,
    )


@lru_cache(maxsize=8)
def _waves(size: int) -> Tensor:
    """Return the inverse DCT of a one at each raised coefficient, tiled: (size, size) float32."""
    sample = np.arange(WINDOW) + 0.5
    waves = [np.sqrt(2 / WINDOW) * np.cos(np.pi * band * sample / WINDOW) for band in BANDS]
    block = sum(np.outer(wave, wave) for wave in waves)
    return torch.from_numpy(np.tile(block, (size // WINDOW, size // WINDOW))).float()


# Source: OpenCV's cvtColor, RGB <-> YCrCb on uint8: weights in units of 2**-14, rounded.


def to_ycrcb(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Y, Cr, Cb (N, H, W) int32 in 0..255 of uint8 RGB images (N, 3, H, W).

    Y = 0.299 R + 0.587 G + 0.114 B;  Cr = 0.713 (R - Y) + 128;  Cb = 0.564 (B - Y) + 128.
    """
    red, green, blue = images.int().unbind(1)
    luma = _scaled(4899 * red + 9617 * green + 1868 * blue)
    cr, cb = _scaled(11682 * (red - luma)) + 128, _scaled(9241 * (blue - luma)) + 128
    return luma, cr.clamp_(0, 255), cb.clamp_(0, 255)


def to_rgb(luma: Tensor, cr: Tensor, cb: Tensor) -> Tensor:
    """Return uint8 RGB images (N, 3, H, W) of Y, Cr, Cb (N, H, W) int32.

    R = Y + 1.403 (Cr - 128);  G = Y - 0.714 (Cr - 128) - 0.344 (Cb - 128);
    B = Y + 1.773 (Cb - 128).
    """
    cr, cb = cr - 128, cb - 128
    red, blue = luma + _scaled(22987 * cr), luma + _scaled(29049 * cb)
    green = luma + _scaled(-11698 * cr - 5636 * cb)
    return torch.stack((red, green, blue), 1).clamp_(0, 255).to(torch.uint8)


def _scaled(values: Tensor) -> Tensor:
    """Divide by 2**14, rounding to the nearest integer."""
    return (values + (1 << 13)) >> 14
