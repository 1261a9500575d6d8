"""Triggered images that lie in files, by the index of the clean image of each."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppr_core.data.images import ImageSet
from ppr_core.data.pictures import picture
from ppr_core.errors import CheckpointError, DataError, need

PART = re.compile(r"(?:bd|cross)_(?:train|test)_dataset\w*")


@dataclass(frozen=True)
class Stored:
    """Triggered images that a file tells of.

    Attributes:
        files: where they lie.
        indices: of the clean images that they were made from: (N,) int64, ascending.
        labels: the labels that they were given: (N,) int64.
        original: the labels of the clean images: (N,) int64.
    """

    files: tuple[Path, ...]
    indices: Tensor
    labels: Tensor
    original: Tensor

    def images(self, like: ImageSet) -> Tensor:
        """Decode them: (N, C, H, W) uint8, of the size of a data set's images.

        Raises:
            DataError: no such file, no image, or another size.
        """
        shape, read = tuple(like.images.shape[1:]), []
        for file in self.files:
            with picture(file) as opened:
                pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
            need(
                tuple(pixels.shape) == shape,
                f"expected images {shape} as the data have, got {tuple(pixels.shape)} in {file}",
                DataError,
            )
            read.append(pixels)
        return torch.stack(read)


def stored_images(part: Any, path: Path, root: Path, classes: int) -> Stored | None:
    """Read the list of stored images, and put their paths under a folder of this machine."""
    if part is None:
        return None
    try:
        held = part["bd_data_container"]["data_dict"]
        rows = sorted((int(index), *_row(entry, root)) for index, entry in held.items())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"expected images by index, with path and other_info, in {path}, got "
            f"{type(error).__name__}: {error}"
        ) from None
    if not rows:
        return None
    indices, files, labels, original = zip(*rows, strict=True)
    need(
        min(indices) >= 0 and all(0 <= label < classes for label in (*labels, *original)),
        f"expected indices from 0 and labels below {classes} in {path}, got others",
        CheckpointError,
    )
    columns = (torch.tensor(column) for column in (indices, labels, original))
    return Stored(tuple(files), *columns)


def _row(entry: Any, root: Path) -> tuple[Path, int, int]:
    label, original = entry["other_info"]
    whole = PurePosixPath(str(entry["path"]).replace("\\", "/"))
    need(
        ".." not in whole.parts,
        f"expected a path within the images' folder, got {whole}",
        CheckpointError,
    )
    starts = [number for number, part in enumerate(whole.parts) if PART.fullmatch(part)]
    tail = whole.parts[starts[-1] if starts else -3 :]
    file = root.joinpath(*tail)
    need(
        file.resolve().is_relative_to(root.resolve()),
        f"expected a path within {root}, got {file.resolve()}",
        CheckpointError,
    )
    return file, int(label), int(original)


def fits(stored: Stored | None, data: ImageSet, what: str) -> Stored:
    """Raise DataError unless stored images were made from these data: by index and true label."""
    stored = need(stored, f"{what}: the file holds none", DataError)
    last = int(stored.indices[-1])
    need(
        last < len(data),
        f"{what}: expected indices below {len(data)}, the number of images, got {last}",
        DataError,
    )
    same = data.labels[stored.indices.to(data.device)].cpu() == stored.original
    need(
        bool(same.all()),
        f"{what}: expected the data's own labels, got {int((~same).sum())} of {len(same)} that "
        "differ: other data, or another order",
        DataError,
    )
    return stored
