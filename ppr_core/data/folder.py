"""Any tree of image files: train/<class>/*, and test/<class>/* or val/<class>/*."""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ppr_core.config import Field
from ppr_core.data.base import Dataset, Split, balanced
from ppr_core.data.images import ImageSet
from ppr_core.data.pictures import picture
from ppr_core.errors import DataError, need

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("test", "val")
BLOCK = 64  # files that a thread decodes at a time


class Listing(NamedTuple):
    """Image files with labels, and the names of the classes."""

    files: list[str]
    labels: Tensor
    classes: tuple[str, ...]


class Folder(Dataset):
    """Decode the images under train/<class>/ and test/<class>/ (or val/<class>/).

    Classes are numbered in the alphabetical order of their folders' names.
    """

    source: ClassVar[str] = "any image tree (torchvision's ImageFolder layout)"

    path: str | None = Field(
        None, description="folder that holds train/ and test/, within the data folder if relative"
    )
    size: int | None = Field(
        None, ge=8, description="resize to this height and width, pixels; null: as they are"
    )

    def load(self, root: Path) -> Split:
        """Decode both parts."""
        train, test = self.listings(self._base(root))
        train = _keep(train, self.train, "training images")
        test = _keep(test, self.test, "test images")
        return Split(_decode(train, self.size), _decode(test, self.size))

    def fingerprint(self, root: Path) -> str:
        """Return a digest of the files' names, sizes and times."""
        base = self._base(root)
        text = hashlib.sha256()
        for listing in self.listings(base):
            for file in listing.files:
                try:
                    seen = os.stat(file)
                except OSError as error:
                    raise DataError(f"expected an image file, got {error}") from None
                name = file.removeprefix(str(base))
                text.update(
                    f"{name}\0{seen.st_size}\0{seen.st_mtime_ns}\n".encode(errors="surrogateescape")
                )
        return text.hexdigest()

    def _base(self, root: Path) -> Path:
        return root / Path(self.path or "").expanduser()

    def listings(self, base: Path) -> tuple[Listing, Listing]:
        """List the training and the test images of a tree.

        Raises:
            DataError: a folder is missing or empty, or the two hold different classes.
        """
        train = list_classes(base / "train")
        held = [base / name for name in TEST_FOLDERS if (base / name).is_dir()]
        need(held, f"expected a folder test or val in {base}, got neither", DataError)
        test = list_classes(held[0])
        odd = sorted(set(train.classes) ^ set(test.classes))
        need(
            not odd,
            f"expected the same classes in {base / 'train'} and {held[0]}, got {odd[:3]} in only "
            "one of them",
            DataError,
        )
        return train, test


def read_images(folder: Path, size: int | None = None) -> tuple[ImageSet, bool]:
    """Decode a folder of clean images: one folder a class, or images alone.

    Where it holds test/ or val/, these images are taken.

    Args:
        folder: of the images.
        size: resize to this side, pixels; none: as they are.

    Returns:
        The images, and whether their labels are known; where not, they are all 0.

    Raises:
        DataError: no images, or ones that cannot be decoded or differ in size.
    """
    need(folder.is_dir(), f"expected a folder of images, got {folder} (none)", DataError)
    held = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    folder = held[0] if held else folder
    if any(entry.is_dir() and entry.name[0] != "." for entry in os.scandir(folder)):
        return _decode(list_classes(folder), size), True
    files = image_files(folder)
    unknown = Listing(files, torch.zeros(len(files), dtype=torch.int64), ("unknown",))
    return _decode(unknown, size), False


def list_classes(folder: Path) -> Listing:
    """List the image files of each class folder, in the order of their names.

    Raises:
        DataError: no such folder, fewer than two classes, or a class without images.
    """
    need(
        folder.is_dir(),
        f"expected a folder {folder} with one folder a class, got none; set path (relative to "
        "the data folder), or PPR_DATA",
        DataError,
    )
    classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    need(
        len(classes) >= 2,
        f"expected two or more class folders in {folder}, got {len(classes)} {classes}",
        DataError,
    )
    files, labels = [], []
    for label, name in enumerate(classes):
        found = image_files(folder / name)
        files += found
        labels += [label] * len(found)
    return Listing(files, torch.tensor(labels), tuple(classes))


def image_files(folder: Path) -> list[str]:
    """List the image files under a folder, by name.

    Raises:
        DataError: there is none.
    """
    paths = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    hidden = f"{os.sep}."  # such as copies that a notebook server or a file manager leaves
    found = sorted(path for path in paths if hidden not in path.removeprefix(str(folder)))
    images = [file for file in found if file.lower().endswith(SUFFIXES)]
    need(
        images,
        f"expected images in {folder}, got none among {len(found)} files (known: "
        f"{' '.join(SUFFIXES)})",
        DataError,
    )
    if len(images) < len(found):
        log.warning("%s: %d files are not images by name", folder, len(found) - len(images))
    return images


def _keep(listing: Listing, count: int | None, what: str) -> Listing:
    kept = balanced(listing.labels, count, what)
    files = [listing.files[index] for index in kept.tolist()]
    return Listing(files, listing.labels[kept], listing.classes)


def _decode(listing: Listing, size: int | None) -> ImageSet:
    """Decode the listed images into one tensor, as RGB, in threads.

    Raises:
        DataError: an image that cannot be decoded, or images of different sizes.
    """
    files = listing.files
    shape = _pixels(files[0], size).shape
    need(
        shape[0] == shape[1],
        f"{files[0]}: expected a square image, got {shape[1]}x{shape[0]} pixels; set size",
        DataError,
    )
    images = np.empty((len(files), 3, *shape[:2]), np.uint8)

    def work(start: int) -> int:
        block = files[start : start + BLOCK]
        for index, file in enumerate(block, start):
            pixels = _pixels(file, size)
            need(
                pixels.shape == shape,
                f"expected images of one size, got {shape[1]}x{shape[0]} pixels in {files[0]} and "
                f"{pixels.shape[1]}x{pixels.shape[0]} in {file}; set size to resize them",
                DataError,
            )
            images[index] = pixels.transpose(2, 0, 1)
        return len(block)

    bar = tqdm(desc="decoding", total=len(files), unit="image", disable=None)
    with ThreadPoolExecutor() as pool, bar:
        for done in pool.map(work, range(0, len(files), BLOCK)):
            bar.update(done)
    return ImageSet(torch.from_numpy(images), listing.labels, listing.classes)


def _pixels(file: str, size: int | None) -> NDArray[np.uint8]:
    """Decode one file: (H, W, 3)."""
    with picture(file) as opened:
        need(opened.mode[0] not in "IF", f"{opened.mode} pixels (not 8 bits)", DataError)
        image = opened.convert("RGB")
    if size and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)
