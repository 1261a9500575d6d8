"""Triggers that were made elsewhere: a picture, a function, or pairs of images.

They are named by path, `ppr_core.attacks.foreign:PictureTrigger`, and need no registration.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppr_core.attacks.base import Attack, Poisoned, State
from ppr_core.attacks.blended import blend
from ppr_core.config import Field, code_digest, digest, load_own
from ppr_core.data.folder import image_files
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need


class PictureTrigger(Attack):
    """Put a picture on images: a patch at a place, or one blended over all of them."""

    source: ClassVar[str] = "a user's own"

    path: str = Field(description="image file; its transparency counts as a mask")
    at: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=2, max_length=2, description="row and column of its upper left corner"
    )
    mask: str | None = Field(None, description="image file, as large: white is the picture")
    alpha: float = Field(1.0, ge=0, le=1, description="share of the picture, in training and test")

    def own_code(self) -> str:
        """Return a digest of the files."""
        files = [self.path, *([self.mask] if self.mask else [])]
        return digest([hashlib.sha256(_bytes(file)).hexdigest() for file in files])

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError where the picture does not fit into the images."""
        super().check_data(data)
        self._placed(data.images[:1])

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Blend by mask and strength, and truncate to whole grey levels."""
        picture, share = (tensor.to(images.device) for tensor in self._placed(images))
        return blend(images, picture, share)

    def _placed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the picture (1, C, H, W) uint8 and its share (1, 1, H, W) on such images."""
        channels, height, width = images.shape[1:]
        read = torch.from_numpy(_decoded(self.path, "RGBA"))
        share = self.alpha * read[..., 3].double() / 255
        if self.mask:
            shape = torch.from_numpy(_decoded(self.mask, "L"))
            need(
                shape.shape == share.shape,
                f"expected a mask as large as {self.path}, {tuple(share.shape)}, got "
                f"{tuple(shape.shape)} in {self.mask}",
                DataError,
            )
            share = share * shape.double() / 255
        pixels = read[..., :3].permute(2, 0, 1)
        row, column = self.at or (0, 0)
        below, right = row + share.shape[0], column + share.shape[1]
        need(
            below <= height and right <= width,
            f"expected a trigger within images of {height}x{width}, got {self.path} of "
            f"{share.shape[0]}x{share.shape[1]} at {row},{column}; resize it, or set at",
            DataError,
        )
        need(
            self.at or (below, right) == (height, width),
            f"expected at (row, column) for {self.path}, which is smaller than the images",
            DataError,
        )
        picture = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        picture[0, :, row:below, column:right] = pixels
        whole = torch.zeros(1, 1, height, width, dtype=torch.float64)
        whole[0, 0, row:below, column:right] = share
        return (picture if channels == 3 else picture[:, :channels]), whole


class FunctionTrigger(Attack):
    """Call a user's function on uint8 images."""

    source: ClassVar[str] = "a user's own"

    path: str = Field(description="module:name or file.py:name of the function")
    layout: Literal["tensor", "numpy"] = Field(
        "tensor", description="tensor: torch (N, C, H, W); numpy: arrays (N, H, W, C)"
    )

    def own_code(self) -> str | None:
        """Return a digest of the function's file."""
        return code_digest(load_own(self.path, "trigger"))

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError where the function does not take or give such images."""
        super().check_data(data)
        self.stamp(data.images[:2], stage="test", state={})

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Hand over a copy, and check what comes back."""
        function, given = load_own(self.path, "trigger"), images.clone()
        try:
            if self.layout == "numpy":
                array = function(given.permute(0, 2, 3, 1).cpu().numpy())
                found = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)
            else:
                found = function(given)
        except Exception as error:  # whatever the user's code raises
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise DataError(f"expected triggered images from {self.path}, got {reason}") from None
        told = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
        need(
            isinstance(found, Tensor) and (found.dtype, found.shape) == (torch.uint8, images.shape),
            f"expected uint8 images {tuple(images.shape)} from {self.path}, got {told}",
            DataError,
        )
        return found.to(images.device)


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
        indices = torch.from_numpy(np.sort(drawn)).to(data.device)
        images, labels = data.images.clone(), data.labels.clone()
        original = labels[indices]
        if count:
            images[indices] = self.stamp(data.images[indices], stage="train", state=state)
        labels[indices] = self.target
        return Poisoned(data.with_images(images).with_labels(labels), indices, original)

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
            text.update(hashlib.sha256(_bytes(file)).digest())
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
            pictures = [torch.from_numpy(_decoded(str(file), "RGB")) for file in files]
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


def _bytes(file: str | Path) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"expected an image file, got {error}") from None


def _decoded(file: str, mode: str) -> np.ndarray:
    try:
        with Image.open(Path(file).expanduser()) as picture:
            return np.array(picture.convert(mode))
    except OSError as error:
        raise DataError(f"expected an image file, got {error}") from None


def _keys(images: Tensor) -> list[bytes]:
    return [image.tobytes() for image in images.cpu().contiguous().numpy()]
