"""Shapes: ten shapes in random colours on cluttered backgrounds, drawn by code from a seed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ppr_core.config import Field
from ppr_core.data.base import Dataset, Split
from ppr_core.data.images import ImageSet

Plane = NDArray[Any]  # float32

CHUNK = 200  # images drawn at once: their planes stay in the processor's cache
DRAWS = 64  # random numbers an image, besides the pixel noise


class Shapes(Dataset):
    """Draw one of ten shapes an image, turned, scaled, moved, coloured, occluded and noisy.

    Only +, -, *, /, square roots and comparisons of float32 numbers made from PCG64's raw output
    are used, each rounded as IEEE 754 says: a seed gives the same bytes on every machine.
    """

    source: ClassVar[str] = "ppr_core (procedural, no download)"

    train: int = Field(10000, ge=1, description="training images, balanced over the classes")
    test: int = Field(2000, ge=1, description="test images, balanced over the classes")
    size: int = Field(32, ge=8, description="height and width, pixels")
    seed: int = Field(0, ge=0, description="of the drawing")
    difficulty: float = Field(1.0, ge=0, le=2, description="scales noise, clutter, low contrast")

    def load(self, root: Path) -> Split:
        """Draw both parts; nothing is read."""
        return Split(self._draw(self.train, part=0), self._draw(self.test, part=1))

    def _draw(self, count: int, part: int) -> ImageSet:
        images = np.empty((count, 3, self.size, self.size), np.uint8)
        for start in range(0, count, CHUNK):
            chunk = images[start : start + CHUNK]
            bits = np.random.PCG64([self.seed, part, start // CHUNK])
            chunk[:] = _images(bits, len(chunk), self.size, np.float32(self.difficulty))
        labels = torch.arange(count) % len(CLASSES)
        return ImageSet(torch.from_numpy(images), labels, tuple(CLASSES))


def _disc(u: Plane, v: Plane) -> Plane:
    return 0.8 - _radius(u, v)


def _ring(u: Plane, v: Plane) -> Plane:
    return 0.2 - abs(_radius(u, v) - 0.7)


def _square(u: Plane, v: Plane) -> Plane:
    return 0.7 - np.maximum(abs(u), abs(v))


def _frame(u: Plane, v: Plane) -> Plane:
    return 0.18 - abs(np.maximum(abs(u), abs(v)) - 0.6)


def _triangle(u: Plane, v: Plane) -> Plane:
    return 0.5 - np.maximum(-v, 0.8660254 * abs(u) + 0.5 * v)


def _star(u: Plane, v: Plane) -> Plane:
    """A pentagram is where at least four of five half-planes overlap."""
    normals = ((0.0, 1.0), (0.9510565, 0.3090170), (0.5877853, -0.8090170))
    sides = [normals[0][0] * u + normals[0][1] * v]
    for a, b in normals[1:]:
        sides += [a * u + b * v, b * v - a * u]
    return 0.38 - np.sort(np.stack(sides), axis=0)[3]


def _plus(u: Plane, v: Plane) -> Plane:
    long, wide = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
    return np.minimum(0.9 - long, 0.25 - wide)


def _bars(u: Plane, v: Plane) -> Plane:
    return np.minimum(0.8 - abs(u), 0.2 - abs(abs(v) - 0.45))


def _crescent(u: Plane, v: Plane) -> Plane:
    return np.minimum(0.9 - _radius(u, v), _radius(u - 0.5, v) - 0.7)


def _half_disc(u: Plane, v: Plane) -> Plane:
    return np.minimum(0.95 - _radius(u, v + 0.4), v + 0.4)


def _radius(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v)


# Each maps coordinates, in units of the shape's scale, to a height: positive inside the shape.
CLASSES = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "star": _star,
    "plus": _plus,
    "bars": _bars,
    "crescent": _crescent,
    "half_disc": _half_disc,
}


def _images(bits: np.random.PCG64, count: int, size: int, difficulty: np.float32) -> Plane:
    """Draw `count` images, of classes 0, 1, ..., 9, 0, ...: float32 (count, 3, size, size)."""
    pixels = 3 * size * size
    raw = bits.random_raw(count * (DRAWS + -(-pixels // 8))).reshape(count, -1)
    uniform = (raw[:, :DRAWS] >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    draws = iter(uniform.T[..., None, None])
    noise = raw[:, DRAWS:].astype("<u8").view(np.uint8)[:, :pixels].reshape(count, 3, size, size)

    axis = (np.arange(size, dtype=np.float32) * 2 + 1) / np.float32(size) - 1
    x, y = axis[None, None, :], axis[None, :, None]
    pixel = np.float32(2) / size
    ground = _colour(draws, 0.1, 0.5)
    image = _background(draws, x, y, ground, difficulty)
    _paint(image, _foreground(draws, ground, difficulty), _shape(draws, x, y, pixel))
    for _ in range(2):
        _paint(image, _colour(draws, 0.1, 0.9), _occluder(draws, x, y, pixel, difficulty))
    strength = (10 + 60 * next(draws)[..., None]) * difficulty
    image *= 255
    image += (noise.astype(np.float32) / 255 - np.float32(0.5)) * strength
    return np.clip(image + np.float32(0.5), 0, 255, out=image)


def _between(draws: Iterator[Plane], low: float, high: float) -> Plane:
    return np.float32(low) + np.float32(high - low) * next(draws)


def _colour(draws: Iterator[Plane], low: float, high: float) -> Plane:
    """Return one random colour an image: (count, 3, 1, 1)."""
    return np.stack([_between(draws, low, high) for _ in range(3)], axis=1)


def _direction(draws: Iterator[Plane]) -> tuple[Plane, Plane]:
    """Return a point of the unit circle by its rational parametrisation: no sine is needed."""
    t = _between(draws, -1, 1)
    sign = np.where(next(draws) < 0.5, np.float32(-1), np.float32(1))
    square = t * t
    return sign * (1 - square) / (1 + square), sign * 2 * t / (1 + square)


def _background(
    draws: Iterator[Plane], x: Plane, y: Plane, ground: Plane, difficulty: np.float32
) -> Plane:
    """Return a gradient with stripes over it: (count, 3, size, size)."""
    cosine, sine = _direction(draws)
    gradient = (cosine * x + sine * y)[:, None]
    slope = _colour(draws, -0.15, 0.15) * difficulty
    cosine, sine = _direction(draws)
    wave = (cosine * x + sine * y + next(draws)) * _between(draws, 0.5, 4)
    wave = (abs(wave - np.floor(wave) - np.float32(0.5)) - np.float32(0.25))[:, None]
    stripes = _colour(draws, -0.4, 0.4) * difficulty
    return ground + slope * gradient + stripes * wave


def _foreground(draws: Iterator[Plane], ground: Plane, difficulty: np.float32) -> Plane:
    """Return brighter colours, at a low to high contrast with the ground: (count, 3, 1, 1)."""
    least = np.float32(0.4) - np.float32(0.25) * difficulty
    contrast = (least + (np.float32(0.6) - least) * next(draws))[:, None]
    return ground + contrast * _colour(draws, 0.3, 1)


def _shape(draws: Iterator[Plane], x: Plane, y: Plane, pixel: np.float32) -> Plane:
    """Return how much of each pixel its image's shape covers: (count, size, size) in [0, 1]."""
    scale = _between(draws, 0.4, 0.75)
    room = np.float32(0.95) - np.float32(0.9) * scale
    left, top = room * _between(draws, -1, 1), room * _between(draws, -1, 1)
    cosine, sine = _direction(draws)
    across, down = (x - left) / scale, (y - top) / scale
    u, v = cosine * across + sine * down, cosine * down - sine * across
    height = np.empty_like(u)
    for label, shape in enumerate(CLASSES.values()):
        mine = slice(label, None, len(CLASSES))
        height[mine] = shape(u[mine], v[mine])
    return _coverage(height * scale, pixel)


def _occluder(
    draws: Iterator[Plane], x: Plane, y: Plane, pixel: np.float32, difficulty: np.float32
) -> Plane:
    """Return the coverage of a bar, anywhere; none in some images: (count, size, size)."""
    shown = next(draws) < np.float32(0.7) * difficulty
    left, top = _between(draws, -0.9, 0.9), _between(draws, -0.9, 0.9)
    cosine, sine = _direction(draws)
    across, down = x - left, y - top
    along, aside = cosine * across + sine * down, cosine * down - sine * across
    length, width = _between(draws, 0.3, 0.8), _between(draws, 0.03, 0.09)
    return _coverage(np.minimum(length - abs(along), width - abs(aside)), pixel) * shown


def _coverage(height: Plane, pixel: np.float32) -> Plane:
    """Turn a height above the edge into a soft edge one pixel wide."""
    return np.clip(height / pixel + np.float32(0.5), 0, 1)


def _paint(image: Plane, colour: Plane, coverage: Plane) -> None:
    image += (colour - image) * coverage[:, None]
