"""Batches and augmentation: exactly reproducible, and with the statistics that crops must have."""

import pytest
import torch

from ppr_core.data.images import Augment, ImageSet, augmented, to_float, to_uint8
from ppr_core.errors import DataError
from ppr_core.training.fit import Schedule
from tests.conftest import batches, tiny_set


def how(crop=0, flip=False):
    return Schedule(batch_size=16, crop=crop, flip=flip)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def epoch(data, schedule, seed=0):
    return list(batches(data, schedule, rng=seeded(seed)))


def numbered(count, size=8):
    """Image i is filled with the value i, so that every image can be recognised."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size)
    return ImageSet(images.clone(), torch.arange(count) % 2, ("a", "b"))


def test_an_epoch_holds_every_image_once_with_its_label():
    images, labels = (torch.cat(parts) for parts in zip(*epoch(numbered(50), how()), strict=True))
    values = (images[:, 0, 0, 0] * 255).round().long()
    assert sorted(values.tolist()) == list(range(50))
    assert values.tolist() != list(range(50))
    assert torch.equal(labels, values % 2)


def test_batches_are_float_pixels_in_the_unit_range():
    images, _ = epoch(tiny_set(), how(crop=2, flip=True))[0]
    assert images.dtype == torch.float32
    assert images.shape == (16, 3, 16, 16)
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize(("crop", "flip"), [(0, False), (4, False), (0, True), (4, True)])
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(crop, flip):
    drawn = how(crop=crop, flip=flip)
    first, again, other = (epoch(tiny_set(), drawn, seed) for seed in (0, 0, 1))
    for (images, labels), (images2, labels2) in zip(first, again, strict=True):
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)
    assert not torch.equal(first[0][0], other[0][0])


def test_a_prepared_augmentation_gives_the_same_batches():
    data, drawn = tiny_set(), how(crop=4, flip=True)
    prepared = Augment(data, crop=4, flip=True)
    reused = list(batches(data, drawn, rng=seeded(), augment=prepared))
    for (images, _), (images2, _) in zip(epoch(data, drawn), reused, strict=True):
        assert torch.equal(images, images2)


@pytest.mark.parametrize(("count", "sizes"), [(40, [16, 16, 8]), (32, [16, 16]), (5, [5])])
def test_batch_sizes(count, sizes):
    assert [len(labels) for _, labels in epoch(tiny_set(count), how())] == sizes


def test_a_crop_is_a_window_of_the_zero_padded_image():
    data = tiny_set(4, size=8)
    draws = torch.tensor([[0, 0, 0], [4, 4, 0], [8, 2, 0], [3, 5, 1]])
    got = Augment(data, crop=4, flip=True).pick(torch.arange(4), draws)
    padded = torch.nn.functional.pad(data.images, (4, 4, 4, 4))
    for index, (row, column, flip) in enumerate(draws.tolist()):
        window = padded[index, :, row : row + 8, column : column + 8]
        assert torch.equal(got[index], window.flip(-1) if flip else window)
    assert torch.equal(got[1], data.images[1])


def test_half_of_the_images_are_flipped():
    images = torch.zeros(4000, 1, 8, 8, dtype=torch.uint8)
    images[:, :, :, 0] = 255
    data = ImageSet(images, torch.zeros(4000, dtype=torch.int64), ("a",))
    everything = torch.arange(4000)
    flipping = Augment(data, crop=0, flip=True)
    flipped = flipping.pick(everything, flipping.draw(4000, seeded()))[:, 0, 0, -1] == 255
    assert flipped.double().mean().item() == pytest.approx(0.5, abs=0.03)
    plain = Augment(data, crop=0, flip=False)
    assert torch.equal(plain.pick(everything, plain.draw(4000, seeded())), images)


@pytest.mark.parametrize("flip", [False, True])
def test_how_often_a_crop_leaves_a_corner_patch_in_sight(flip):
    """Of 81 windows, 7 x 7 show a part of a 3x3 patch in the corner and 5 x 5 show all of it."""
    count = 20000
    images = torch.zeros(count, 1, 12, 12, dtype=torch.uint8)
    images[:, :, -3:, -3:] = 1
    data = ImageSet(images, torch.zeros(count, dtype=torch.int64), ("a",))
    augment = Augment(data, crop=4, flip=flip)
    seen = augment.pick(torch.arange(count), augment.draw(count, seeded())).sum((1, 2, 3))
    assert (seen > 0).double().mean().item() == pytest.approx(49 / 81, abs=0.015)  # 0.605
    assert (seen == 9).double().mean().item() == pytest.approx(25 / 81, abs=0.015)  # 0.309


def test_drawn_once_augmentation_is_reproducible_and_keeps_labels():
    data = tiny_set()
    once, again = (augmented(data, crop=4, flip=True, rng=seeded()) for _ in range(2))
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.labels, data.labels)
    assert not torch.equal(once.images, data.images)


def test_uint8_survives_the_way_to_float_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(images)), images)


def test_to_uint8_truncates_and_clips():
    pixels = torch.tensor([-1.0, 0.999 / 255, 1.999 / 255, 2.0])
    assert to_uint8(pixels).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2)),
    ],
)
def test_wrong_tensors_are_refused(images, labels):
    with pytest.raises(DataError, match="expected"):
        ImageSet(images, labels, ("a", "b"))


def test_subsets_and_sums_keep_images_with_their_labels():
    data = numbered(10)
    both = data.subset(torch.tensor([7, 2])) + data.subset(data.labels == 1)
    assert both.images[:, 0, 0, 0].tolist() == [7, 2, 1, 3, 5, 7, 9]
    assert both.labels.tolist() == [1, 0, 1, 1, 1, 1, 1]
    assert len(data) == 10
