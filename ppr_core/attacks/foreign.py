"""Triggers that were made elsewhere: a picture, or a function.

They are named by path, `ppr_core.attacks.foreign:PictureTrigger`, and need no registration.
"""

import hashlib
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import Attack, State
from ppr_core.attacks.blended import blend
from ppr_core.attacks.parts.pictures import decoded, file_bytes
from ppr_core.config import Field, code_digest, digest, load_own
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need


class PictureTrigger(Attack):
    """Put a picture on images: a patch at a place, or one blended over all of them."""

    source: ClassVar[str] = "a user's own"

    path: str = Field(description="image file; its transparency counts as a mask")
    at: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=2, max_length=2, description="row and column of its upper left corner"
    )
    mask: str | None = Field(None, description="image file, as large: white is the picture")
    alpha: float = Field(1.0, ge=0, le=1, description="share of the picture, in training and test")

    def own_code(self) -> str:
        """Return a digest of the files."""
        files = [self.path, *([self.mask] if self.mask else [])]
        return digest([hashlib.sha256(file_bytes(file)).hexdigest() for file in files])

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError where the picture does not fit into the images."""
        super().check_data(data)
        self._placed(data.images[:1])

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Blend by mask and strength, and truncate to whole grey levels."""
        picture, share = (tensor.to(images.device) for tensor in self._placed(images))
        return blend(images, picture, share)

    def _placed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the picture (1, C, H, W) uint8 and its share (1, 1, H, W) on such images."""
        channels, height, width = images.shape[1:]
        read = torch.from_numpy(decoded(self.path, "RGBA"))
        share = self.alpha * read[..., 3].double() / 255
        if self.mask:
            shape = torch.from_numpy(decoded(self.mask, "L"))
            need(
                shape.shape == share.shape,
                f"expected a mask as large as {self.path}, {tuple(share.shape)}, got "
                f"{tuple(shape.shape)} in {self.mask}",
                DataError,
            )
            share = share * shape.double() / 255
        pixels = read[..., :3].permute(2, 0, 1)
        row, column = self.at or (0, 0)
        below, right = row + share.shape[0], column + share.shape[1]
        need(
            below <= height and right <= width,
            f"expected a trigger within images of {height}x{width}, got {self.path} of "
            f"{share.shape[0]}x{share.shape[1]} at {row},{column}; resize it, or set at",
            DataError,
        )
        need(
            self.at or (below, right) == (height, width),
            f"expected at (row, column) for {self.path}, which is smaller than the images",
            DataError,
        )
        picture = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        picture[0, :, row:below, column:right] = pixels
        whole = torch.zeros(1, 1, height, width, dtype=torch.float64)
        whole[0, 0, row:below, column:right] = share
        return (picture if channels == 3 else picture[:, :channels]), whole


class FunctionTrigger(Attack):
    """Call a user's function on uint8 images."""

    source: ClassVar[str] = "a user's own"

    path: str = Field(description="module:name or file.py:name of the function")
    layout: Literal["tensor", "numpy"] = Field(
        "tensor", description="tensor: torch (N, C, H, W); numpy: arrays (N, H, W, C)"
    )

    def own_code(self) -> str | None:
        """Return a digest of the function's file."""
        return code_digest(load_own(self.path, "trigger"))

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError where the function does not take or give such images."""
        super().check_data(data)
        self.stamp(data.images[:2], stage="test", state={})

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Hand over a copy, and check what comes back."""
        function, given = load_own(self.path, "trigger"), images.clone()
        try:
            if self.layout == "numpy":
                array = function(given.permute(0, 2, 3, 1).cpu().numpy())
                found = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)
            else:
                found = function(given)
        except Exception as error:  # whatever the user's code raises
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise DataError(f"expected triggered images from {self.path}, got {reason}") from None
        told = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
        need(
            isinstance(found, Tensor) and (found.dtype, found.shape) == (torch.uint8, images.shape),
            f"expected uint8 images {tuple(images.shape)} from {self.path}, got {told}",
            DataError,
        )
        return found.to(images.device)
