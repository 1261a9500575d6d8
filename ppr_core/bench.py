"""BackdoorBench's results in a study: their weights by path, their stored images as a trigger."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppr_core.attacks.base import Poisoned, State
from ppr_core.attacks.parts.pictures import file_bytes
from ppr_core.attacks.parts.stored import fits
from ppr_core.attacks.replayed import Replayed
from ppr_core.checkpoints import is_result, read_head
from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need
from ppr_core.weights import State as Weights
from ppr_core.weights import matched, tensors


def weights_of(path: Path, model: nn.Module) -> Weights:
    """Read the weights of a model made elsewhere, those of BackdoorBench's results included.

    Args:
        path: safetensors, a state_dict that torch saved, or a result file.
        model: of the architecture; left as it is.

    Raises:
        CheckpointError: unreadable, a pickle that would run code, other names or other shapes.
    """
    return matched(tensors_of(path), model, path)


def tensors_of(path: Path) -> Weights:
    """Read such weights under the names that their file gives them."""
    return read_head(path).tensors if is_result(path) else tensors(path)


class BenchTrigger(Replayed):
    """Replay the triggered images that an `attack_result.pt` tells of: training and test images.

    Its poisons are those that the victim was trained on, whatever the poison rate says.
    """

    path: str = Field(description="the result file")
    images: str | None = Field(None, description="folder of its images, if not the file's own")

    def preparation(self) -> dict[str, Any]:
        """Return what the stored images depend on: the files' content."""
        return {"stored": self.own_code()}

    def own_code(self) -> str:
        """Return a digest of the file and of its images."""
        file = Path(self.path)
        need(file.is_file(), f"expected a result file, got {file} (no such file)", DataError)
        return _content(self.path, self.images, file.stat().st_mtime_ns)

    def prepare(
        self, data: ImageSet, *, rng: torch.Generator, test: ImageSet | None = None
    ) -> dict[str, Tensor]:
        """Read the images, and find the clean ones that they were made from.

        Raises:
            DataError: no test images, several target labels, or images of other data.
        """
        head = read_head(Path(self.path))
        clean: list[Tensor] = []
        triggered: list[Tensor] = []
        found: dict[str, Tensor] = {}
        for name, own in (("test", test), ("train", data)):
            part = head.stored(name, self.images)
            if part is None and name == "train":  # what some attacks do not leave behind
                continue
            images = need(own, f"expected {name} images, to find the stored ones' twins, got none")
            stored = fits(part, images, f"{self.path}: triggered {name} images")
            targets = stored.labels.unique().tolist()
            need(
                targets == [self.target],
                f"expected the target label {self.target} in {self.path}, got {targets[:5]}",
                DataError,
            )
            clean.append(images.images[stored.indices.to(images.device)].cpu())
            triggered.append(stored.images(images))
            found[f"{name}_indices"] = stored.indices
        return {"clean": torch.cat(clean), "triggered": torch.cat(triggered), **found}

    def poison(self, data: ImageSet, *, seed: int, state: State) -> Poisoned:
        """Return the training set as the attacker left it."""
        need(
            "train_indices" in state,
            f"expected poisoned training images in {self.path}, got none: RA and QRA draw from "
            "them; give the trigger itself (--trigger)",
            DataError,
        )
        return self.poison_at(data, state["train_indices"], state=state)


@lru_cache(maxsize=4)
def _content(path: str, images: str | None, time: int) -> str:
    """Digest a result file with its images; asked for with every key of a stage."""
    head, text = read_head(Path(path)), hashlib.sha256(file_bytes(path))
    for name in ("train", "test"):
        stored = head.stored(name, images)
        for file in stored.files if stored else ():
            text.update(hashlib.sha256(file_bytes(file)).digest())
    return text.hexdigest()
