"""BackdoorBench's result files: weights, architecture, and stored triggered images.

Source: the files' description by their authors' code, SCLBD/BackdoorBench at f02e353.
Differs from the authors' code: nothing in a file is executed, and weights are matched by name, not
by their position.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ppr_core.attacks.base import Poisoned, Trigger
from ppr_core.attacks.replayed import Replayed
from ppr_core.config import from_registry
from ppr_core.data.images import ImageSet
from ppr_core.errors import CheckpointError, DataError, need
from ppr_core.models import MODELS
from ppr_core.models.base import Architecture
from ppr_core.weights import UNREADABLE, State, matched

# Their names for architectures -> ours, with the settings that make them alike.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "preactresnet18": {"name": "preactresnet18"},
    "resnet18": {"name": "resnet18_pooled"},
    "vgg19_bn": {"name": "vgg19_bn"},
    "mobilenet_v3_large": {"name": "mobilenet_v3_large"},
    "convnext_tiny": {"name": "convnext_tiny", "pretrained": False},
    "vit_b_16": {"name": "vit_b_16", "pretrained": False},
}
# The normalisation that their code has for a data set: no file holds it.
STATS: dict[str, tuple[list[float], list[float]]] = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "tiny": ([0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]),
    "gtsrb": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
}
# What numpy's integers and arrays are made by, under the names of its first and second edition.
ALLOWED: list[Any] = [
    *(
        (getattr(np._core.multiarray, name), f"{module}.{name}")
        for name in ("scalar", "_reconstruct")
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    ),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.int64)),
    type(np.dtype(np.float64)),
]
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
            try:
                with Image.open(file) as picture:
                    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
            except OSError as error:
                raise DataError(f"expected a stored image, got {error}") from None
            need(
                tuple(pixels.shape) == shape,
                f"expected images {shape} as the data have, got {tuple(pixels.shape)} in {file}",
                DataError,
            )
            read.append(pixels)
        return torch.stack(read)


@dataclass(frozen=True)
class Bench:
    """What an `attack_result.pt` or a `defense_result.pt` holds.

    Attributes:
        path: the file.
        architecture: built from its name, and the normalisation of its data set.
        num_classes: of the model.
        state: weights under this project's names.
        dataset: its name there; empty where the file does not say.
        train: the poisoned training images; None where there are none.
        test: the triggered test images, none of the target class.
    """

    path: Path
    architecture: Architecture
    num_classes: int
    state: State = field(repr=False)
    dataset: str = ""
    train: Stored | None = None
    test: Stored | None = None

    def model(self) -> nn.Module:
        """Return the model, in eval mode."""
        model = self.architecture.build(self.num_classes, seed=0)
        model.load_state_dict(self.state)
        return model.eval()

    def poisoned(self, data: ImageSet) -> Poisoned:
        """Return the training set as the attacker left it.

        Raises:
            DataError: no training images are stored, or they were made from other data.
        """
        stored = _fits(self.train, data, f"{self.path}: poisoned training images")
        images, labels = data.images.clone(), data.labels.clone()
        indices = stored.indices.to(data.device)
        images[indices] = stored.images(data).to(data.device)
        labels[indices] = stored.labels.to(data.device)
        original = stored.original.to(data.device)
        return Poisoned(data.with_images(images).with_labels(labels), indices, original)

    def trigger(self, test: ImageSet) -> Trigger:
        """Return the trigger of the stored test images: it knows no others.

        Raises:
            DataError: none are stored, they have several target labels, or come from other data.
        """
        stored = _fits(self.test, test, f"{self.path}: triggered test images")
        targets = stored.labels.unique().tolist()
        need(
            len(targets) == 1,
            f"expected one target label in {self.path}, got {targets[:5]} (an all-to-all attack?)",
            DataError,
        )
        clean = test.images[stored.indices.to(test.device)]
        state = {"clean": clean, "triggered": stored.images(test).to(test.device)}
        return Trigger(Replayed(target=targets[0]), state)


def read_bench(
    path: str | Path,
    *,
    architecture: str | Mapping[str, Any] | None = None,
    images: str | Path | None = None,
) -> Bench:
    """Read BackdoorBench's `attack_result.pt` or `defense_result.pt` without executing its code.

    Args:
        path: the file.
        architecture: ours, with settings such as mean and std, in place of what the file names.
        images: folder of the stored images, in place of the one that the file lies in.

    Raises:
        CheckpointError: unreadable, unsafe, of an unknown architecture, or damaged weights.
        ConfigError: an unknown architecture, or a setting that it does not have.
    """
    path = Path(path)
    content = _loaded(path)
    name, classes, weights = (content.get(key) for key in ("model_name", "num_classes", "model"))
    need(
        isinstance(name, str) and isinstance(weights, Mapping),
        f"expected model_name and model in {path}, as BackdoorBench's results have, got "
        f"{sorted(map(str, content))[:8]}",
        CheckpointError,
    )
    need(
        isinstance(classes, int) and classes >= 2,
        f"expected two or more num_classes in {path}, got {classes!r}",
        CheckpointError,
    )
    dataset = content.get("clean_data", "")
    dataset = dataset if isinstance(dataset, str) else ""
    made = from_registry(MODELS, architecture or _spec(path, name, dataset), "model")
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    rest = [key for key in tensors if not str(key).startswith("backbone.")]
    if rest and all(str(key).startswith("linear.") for key in rest):  # as their DBD cuts it
        tensors = {str(key).removeprefix("backbone."): value for key, value in tensors.items()}
    state = matched(tensors, made.skeleton(classes), path)
    root = Path(images) if images else path.parent
    parts = {k: _stored(content.get(f"bd_{k}"), path, root, classes) for k in ("train", "test")}
    return Bench(path, made, classes, state, dataset, **parts)


def _loaded(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is refused: {_reason(error)}") from None
    need(
        isinstance(content, dict),
        f"expected a mapping in {path}, got {type(content).__name__}",
        CheckpointError,
    )
    return content


def _reason(error: BaseException) -> str:
    """Say in one line why a file was not loaded."""
    named = re.search(r"(?:GLOBAL|global) ([\w.]+\.[\w.]+)", str(error))
    if named and named[1].startswith("PIL."):
        return (
            f"it holds pictures ({named[1]}) in place of files; save the attack with a folder for "
            "its images (save_folder_path)"
        )
    if named and isinstance(error, pickle.UnpicklingError):
        return f"it would run {named[1]} when loaded; only tensors, numbers and text are taken"
    first = str(error).partition("\n")[0]
    return f"expected a file that torch saved, got {type(error).__name__}: {first}"


def _spec(path: Path, name: str, dataset: str) -> dict[str, Any]:
    known = ", ".join(ARCHITECTURES)
    need(
        name in ARCHITECTURES,
        f"expected one of the models {known} in {path}, got {name!r}; name an architecture",
        CheckpointError,
    )
    need(
        dataset in ("", *STATS),
        f"expected one of the data sets {', '.join(STATS)} in {path}, got {dataset!r}; name an "
        "architecture with mean and std",
        CheckpointError,
    )
    mean, std = STATS[dataset or "cifar10"]
    return {**ARCHITECTURES[name], "mean": mean, "std": std}


def _stored(part: Any, path: Path, root: Path, classes: int) -> Stored | None:
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


def _fits(stored: Stored | None, data: ImageSet, what: str) -> Stored:
    """Raise DataError unless stored images were made from these data: by index and true label."""
    need(stored is not None, f"{what}: the file holds none", DataError)
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
