"""Tiny-ImageNet in its original layout."""

from pathlib import Path
from typing import ClassVar

import torch

from ppr_core.config import Field
from ppr_core.data.folder import Folder, Listing, image_files
from ppr_core.errors import DataError, need

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


class TinyImageNet(Folder):
    """Decode Tiny-ImageNet (64x64); its labelled validation images are the test images.

    Classes are those of wnids.txt, numbered in sorted order and named as in words.txt.
    """

    source: ClassVar[str] = "Le and Yang 2015, Tiny ImageNet Visual Recognition Challenge"

    path: str = Field(
        "tiny-imagenet-200",
        description="folder that holds wnids.txt, within the data folder if relative",
    )

    def listings(self, base: Path) -> tuple[Listing, Listing]:
        """List the training images by folder, and the validation images by their annotations.

        Raises:
            DataError: a file of the layout is missing, or an annotation names an unknown class.
        """
        need(
            (base / "wnids.txt").is_file(),
            f"expected Tiny-ImageNet in {base}, got no wnids.txt there; unpack {URL} into the "
            "data folder, or set path",
            DataError,
        )
        wnids = sorted(_lines(base / "wnids.txt"))
        need(len(wnids) >= 2, f"{base / 'wnids.txt'}: expected two or more classes", DataError)
        words = dict(line.split("\t", 1) for line in _lines(base / "words.txt") if "\t" in line)
        classes = tuple(words.get(wnid, wnid).split(",")[0] for wnid in wnids)
        number = {wnid: label for label, wnid in enumerate(wnids)}

        train = [image_files(base / "train" / wnid / "images") for wnid in wnids]
        labels = [label for label, files in enumerate(train) for _ in files]
        return (
            Listing([file for files in train for file in files], torch.tensor(labels), classes),
            _validation(base / "val", number, classes),
        )


def _validation(folder: Path, number: dict[str, int], classes: tuple[str, ...]) -> Listing:
    annotations = folder / "val_annotations.txt"
    files, labels = [], []
    for line in _lines(annotations):
        file, wnid, *_ = [*line.split("\t"), ""]
        need(
            wnid in number,
            f"{annotations}: expected a file and a class of wnids.txt, got {line!r}",
            DataError,
        )
        files.append(str(folder / "images" / file))
        labels.append(number[wnid])
    need(files, f"{annotations}: expected a line for each image, got none", DataError)
    return Listing(files, torch.tensor(labels), classes)


def _lines(path: Path) -> list[str]:
    need(path.is_file(), f"expected a file {path}, got none; unpack {URL} again", DataError)
    return [line for line in path.read_text().splitlines() if line.strip()]
