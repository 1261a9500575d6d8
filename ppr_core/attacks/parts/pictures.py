"""Read picture files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppr_core.data.pictures import picture
from ppr_core.errors import DataError


def file_bytes(file: str | Path) -> bytes:
    """Return a file's content, or raise DataError."""
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"expected an image file, got {error}") from None


def decoded(file: str | Path, mode: str) -> NDArray[np.uint8]:
    """Return a picture's levels in a mode of PIL's, (H, W) or (H, W, C), or raise DataError."""
    with picture(Path(file).expanduser()) as opened:
        return np.array(opened.convert(mode))
