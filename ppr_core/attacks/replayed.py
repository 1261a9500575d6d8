"""Triggers that are known by their images alone: pairs of clean and triggered ones."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ppr_core.attacks.base import Attack, Poisoned, State
from ppr_core.attacks.parts.pictures import decoded, file_bytes
from ppr_core.config import Field
from ppr_core.data.folder import image_files
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need


class Replayed(Attack):
    """Replay stored triggered images: it knows the images that they were made from, no others.

    What it cannot serve are methods that stamp new images, such as EP, which crops them first.
    """

    source: ClassVar[str] = "a user's own"

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Return the stored image of each; they are looked up by their pixels.

        Raises:
            DataError: an image that none is stored of.
        """
        places = self._places(images, state)
        missing = int((places < 0).sum())
        need(
            not missing,
            f"expected images whose triggered version is stored, got {missing} of {len(images)} "
            "without one: stored images cannot show the trigger on others",
            DataError,
        )
        return state["triggered"].to(images.device)[places.to(images.device)]

    def stampable(self, data: ImageSet, *, state: State) -> ImageSet:
        """Return the images whose triggered version is stored."""
        return data.subset(self._places(data.images, state) >= 0)

    def poison(self, data: ImageSet, *, seed: int, state: State) -> Poisoned:
        """Return the training set with as many stored images as the rate asks for."""
        places = self._places(data.images, state)
        known = (places >= 0).nonzero().squeeze(1)
        if self.clean_label:
            known = known[data.labels[known.to(data.device)].cpu() == self.target]
        count = round(self.poison_rate * len(data))
        need(
            count <= len(known),
            f"expected {count} stored poisons (poison_rate {self.poison_rate} of {len(data)} "
            f"training images), got {len(known)}; lower poison_rate",
            DataError,
        )
        drawn = np.random.RandomState(seed % 2**32).choice(known.numpy(), count, replace=False)
        return self.poison_at(data, torch.from_numpy(np.sort(drawn)), state=state)

    def _places(self, images: Tensor, state: State) -> Tensor:
        """Return where each image's stored version stands; -1: nowhere."""
        need(
            {"clean", "triggered"} <= set(state) and len(state["clean"]) == len(state["triggered"]),
            "expected pairs of clean and triggered images, got none",
            DataError,
        )
        by_pixels = {key: place for place, key in enumerate(_keys(state["clean"]))}
        return torch.tensor([by_pixels.get(key, -1) for key in _keys(images)])


class PairTrigger(Replayed):
    """Replay pairs of image files: two folders whose files have the same names."""

    clean: str = Field(description="folder of clean images")
    triggered: str = Field(description="folder of their triggered versions")

    def preparation(self) -> dict[str, Any]:
        """Return what the pairs depend on: the files' content."""
        return {"pairs": self.own_code()}

    def own_code(self) -> str:
        """Return a digest of the files."""
        text = hashlib.sha256()
        for file in (*self._names(self.clean), *self._names(self.triggered)):
            text.update(hashlib.sha256(file_bytes(file)).digest())
        return text.hexdigest()

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Read both folders.

        Raises:
            DataError: no pairs, a file without its other, or another size than the data have.
        """
        clean, marked = (self._names(folder) for folder in (self.clean, self.triggered))
        odd = sorted({file.stem for file in clean} ^ {file.stem for file in marked})
        need(
            clean and not odd,
            f"expected pairs of one name in {self.clean} and {self.triggered}, got "
            f"{f'{odd[:3]} in only one of them' if odd else 'no images'}",
            DataError,
        )
        read = {}
        for name, files in (("clean", clean), ("triggered", marked)):
            pictures = [torch.from_numpy(decoded(file, "RGB")) for file in files]
            shapes = {tuple(picture.permute(2, 0, 1).shape) for picture in pictures}
            need(
                shapes == {tuple(data.images.shape[1:])},
                f"expected images {tuple(data.images.shape[1:])} as the data have, got "
                f"{sorted(shapes)[:3]} in the folder of {name} ones",
                DataError,
            )
            read[name] = torch.stack(pictures).permute(0, 3, 1, 2).contiguous()
        return read

    def _names(self, folder: str) -> list[Path]:
        place = Path(folder).expanduser()
        need(place.is_dir(), f"expected a folder of images, got {place} (none)", DataError)
        return sorted((Path(file) for file in image_files(place)), key=lambda file: file.stem)


def _keys(images: Tensor) -> list[bytes]:
    return [image.tobytes() for image in images.cpu().contiguous().numpy()]
