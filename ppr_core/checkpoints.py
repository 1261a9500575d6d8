"""BackdoorBench's result files: weights, architecture, and stored triggered images.

Source: the files' description by their authors' code, SCLBD/BackdoorBench at f02e353.
Differs from the authors' code: nothing in a file is executed, and weights are matched by name, not
by their position.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from ppr_core.attacks.base import Poisoned, Trigger
from ppr_core.attacks.parts.stored import Stored, fits, stored_images
from ppr_core.attacks.replayed import Replayed
from ppr_core.config import from_registry
from ppr_core.data.images import ImageSet
from ppr_core.errors import CheckpointError, DataError, need
from ppr_core.models import MODELS
from ppr_core.models.base import Architecture
from ppr_core.weights import UNREADABLE, State, matched, need_plain, runs, unread

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
        (getattr(multiarray, name), f"{module}.{name}")
        for name in ("scalar", "_reconstruct")
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    ),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.int64)),
    type(np.dtype(np.float64)),
]


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
        stored = fits(self.train, data, f"{self.path}: poisoned training images")
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
        stored = fits(self.test, test, f"{self.path}: triggered test images")
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
    head = read_head(path)
    made = from_registry(MODELS, architecture or head.spec(), "model")
    state = matched(head.tensors, made.skeleton(head.num_classes), path)
    parts = {name: head.stored(name, images) for name in ("train", "test")}
    return Bench(path, made, head.num_classes, state, head.dataset, **parts)


@dataclass(frozen=True)
class Head:
    """What a result file says, before an architecture is chosen.

    Attributes:
        path: the file.
        name: of the architecture, theirs.
        num_classes: of the model.
        dataset: its name there; empty where the file does not say.
        tensors: weights under their names.
        content: all of the file.
    """

    path: Path
    name: str
    num_classes: int
    dataset: str
    tensors: State = field(repr=False)
    content: Mapping[str, Any] = field(repr=False)

    def spec(self) -> dict[str, Any]:
        """Return our architecture of that name, with the normalisation of their data set."""
        return _spec(self.path, self.name, self.dataset)

    def stored(self, name: str, images: str | Path | None = None) -> Stored | None:
        """Return the triggered images of a part, "train" or "test"; None where there are none.

        Args:
            name: of the part.
            images: their folder, in place of the one that the file lies in.
        """
        root = Path(images) if images else self.path.parent
        return stored_images(self.content.get(f"bd_{name}"), self.path, root, self.num_classes)


def read_head(path: Path) -> Head:
    """Read a result file without executing its code.

    Raises:
        CheckpointError: unreadable, unsafe, or no such result.
    """
    content = _loaded(path)
    name, classes, weights = (content.get(key) for key in ("model_name", "num_classes", "model"))
    if not (isinstance(name, str) and isinstance(weights, Mapping)):
        raise CheckpointError(
            f"expected model_name and model in {path}, as BackdoorBench's results have, got "
            f"{sorted(map(str, content))[:8]}"
        )
    if not isinstance(classes, int) or classes < 2:
        raise CheckpointError(f"expected two or more num_classes in {path}, got {classes!r}")
    dataset = content.get("clean_data", "")
    dataset = dataset if isinstance(dataset, str) else ""
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    need_plain(tensors, path)
    rest = [key for key in tensors if not key.startswith("backbone.")]
    if rest and all(key.startswith("linear.") for key in rest):  # as their DBD cuts it
        tensors = {key.removeprefix("backbone."): value for key, value in tensors.items()}
    return Head(path, name, classes, dataset, tensors, content)


def is_result(path: Path) -> bool:
    """Say whether a file is a result of BackdoorBench; one that cannot be read is none."""
    if path.suffix == ".safetensors":
        return False
    try:
        content = _loaded(path)
    except CheckpointError:
        return False
    return {"model_name", "num_classes", "model"} <= set(content)


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
    named = runs(error)
    if named.startswith("PIL."):
        return (
            f"it holds pictures ({named}) in place of files; save the attack with a folder for "
            "its images (save_folder_path)"
        )
    why = unread(error)
    return why if named else f"expected a file that torch saved, got {type(error).__name__}: {why}"


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
