"""The embedded data: fixed to the byte, balanced, and what their names say."""

import hashlib
import math

import numpy as np
import pytest
import torch

from ppr_core.data.shapes import CHUNK, CLASSES, Shapes
from ppr_core.errors import ConfigError


def images(**settings):
    return Shapes(test=10, **settings).load(None).train.images


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train": 30, "test": 20}, "594d12eac138350d"),
        ({"train": 30, "test": 20, "size": 9, "seed": 5, "difficulty": 1.7}, "7c653e4d17822b7b"),
    ],
)
def test_the_bytes_are_the_same_on_every_machine(settings, expected):
    split = Shapes(**settings).load(None)
    pixels = b"".join(part.images.numpy().tobytes() for part in split)
    assert hashlib.sha256(pixels).hexdigest()[:16] == expected


def test_every_class_is_equally_frequent():
    split = Shapes(train=200, test=50).load(None)
    assert split.train.classes == split.test.classes == tuple(CLASSES)
    assert split.train.labels.bincount().tolist() == [20] * 10
    assert split.test.labels.bincount().tolist() == [5] * 10
    assert split.train.images.shape == (200, 3, 32, 32)


def test_seeds_and_parts_differ_and_repeat():
    split, other = (Shapes(train=40, test=40, seed=seed).load(None) for seed in (0, 1))
    assert torch.equal(split.train.images, images(train=40))
    assert not torch.equal(split.train.images, split.test.images)
    assert not torch.equal(split.train.images, other.train.images)
    assert len(torch.unique(split.train.images.flatten(1), dim=0)) == 40


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    larger = images(train=CHUNK + 30)
    assert torch.equal(images(train=CHUNK + 7), larger[: CHUNK + 7])
    assert not torch.equal(larger[:30], larger[CHUNK:])


@pytest.mark.parametrize("size", [8, 33, 64])
def test_any_size(size):
    assert images(train=10, size=size).shape == (10, 3, size, size)


def test_without_difficulty_an_image_is_two_flat_colours_and_an_edge():
    for image in images(train=20, difficulty=0.0):
        _, counts = torch.unique(image.flatten(1), dim=1, return_counts=True)
        assert counts.sort(descending=True).values[:2].sum() > 0.75 * 32 * 32


def test_difficulty_adds_noise():
    def roughness(pixels):
        return (pixels[..., 1:].float() - pixels[..., :-1].float()).abs().mean()

    easy, usual, hard = (roughness(images(train=100, difficulty=d)) for d in (0.0, 1.0, 2.0))
    assert easy < usual < hard


CENTRE = {"disc", "square", "triangle", "star", "plus", "half_disc"}


@pytest.mark.parametrize("name", CLASSES)
def test_the_middle_of_a_shape_is_filled_or_hollow(name):
    here, far = np.zeros(1, np.float32), np.full(1, 1.5, np.float32)
    assert (CLASSES[name](here, here)[0] > 0) == (name in CENTRE)
    assert CLASSES[name](far, far)[0] < 0


@pytest.mark.parametrize(
    ("name", "fold"), [("disc", 7), ("triangle", 3), ("square", 4), ("plus", 4), ("star", 5)]
)
def test_shapes_have_the_symmetry_of_their_names(name, fold):
    u, v = np.random.default_rng(0).uniform(-1, 1, (2, 500))
    angle = 2 * math.pi / fold
    turned = CLASSES[name](
        math.cos(angle) * u - math.sin(angle) * v, math.sin(angle) * u + math.cos(angle) * v
    )
    np.testing.assert_allclose(CLASSES[name](u, v), turned, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"size": 7}, {"train": 0}, {"difficulty": 3.0}, {"seed": -1}, {"colour": "red"}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="Shapes"):
        Shapes(**settings)
