"""Data sets by name, each read or drawn once and then kept as one tensor file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppr_core.config import digest, from_registry
from ppr_core.data import cache
from ppr_core.data.base import Dataset, Split
from ppr_core.data.cifar import Cifar10, Cifar100
from ppr_core.data.folder import Folder
from ppr_core.data.shapes import Shapes
from ppr_core.data.tiny_imagenet import TinyImageNet

__all__ = ["DATASETS", "Dataset", "Split", "load"]

DATASETS: dict[str, type[Dataset]] = {
    "shapes": Shapes,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "tiny_imagenet": TinyImageNet,
    "folder": Folder,
}


def load(spec: str | Mapping[str, Any], root: str | Path | None = None) -> Split:
    """Return the training and test images of a data set, on the CPU.

    Args:
        spec: "name" or {"name": ..., settings}; `module:Class` and `file.py:Class` are your own.
        root: the data folder; the environment variable PPR_DATA, then data/, if not given.

    Raises:
        ConfigError: unknown name, unknown setting, wrong type, or out of range.
        DataError: the source is missing or damaged.
    """
    dataset = from_registry(DATASETS, spec, "dataset")
    root = data_folder(root)
    name = (spec if isinstance(spec, str) else spec["name"]).rpartition(":")[2]
    key = [dataset.version, dataset.model_dump(mode="json"), dataset.fingerprint(root)]
    own = dataset.own_code()
    key += [own] if own else []
    path = root / "cache" / f"{name}-{digest(key)[:16]}.safetensors"
    split = cache.read(path)
    if split is None:
        split = dataset.load(root)
        cache.write(path, split)
    return split


def data_folder(root: str | Path | None = None) -> Path:
    """Return where data lies: the argument, else PPR_DATA, else data/ where one stands."""
    return Path(root or os.environ.get("PPR_DATA") or "data").expanduser().absolute()
