"""Open image files that a user names: the known formats alone, of a sane size."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ppr_core.errors import DataError, need

# Pillow knows more, some of which start programs (EPS) or read other files.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
LARGEST = 50_000_000  # pixels of one image


@contextmanager
def picture(file: str | Path) -> Iterator[Image.Image]:
    """Open an image file.

    Raises:
        DataError: none of the formats, too many pixels, or damaged; no such file, or none with
            content of its own (a folder, a pipe, a loop of links).
    """
    try:
        need(stat.S_ISREG(os.stat(file).st_mode), "a file of another kind", DataError)
        with Image.open(file, formats=FORMATS) as opened:
            pixels = opened.width * opened.height
            need(pixels <= LARGEST, f"{pixels:,} pixels (at most {LARGEST:,})", DataError)
            yield opened
    except Exception as error:  # Pillow's decoders raise of every kind
        raise DataError(
            f"{file}: expected an image, got {error}; replace the file or take it away"
        ) from None
