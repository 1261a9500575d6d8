"""The defender's and the attacker's draws: by seed, without replacement, disjoint where due."""

import pytest
import torch

from ppr_core.data.images import ImageSet
from ppr_core.data.splits import draw, hold_out, reserve
from ppr_core.errors import DataError


def numbered(count):
    """Image i holds the value i: which images were drawn can be read from them."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return ImageSet(images.clone(), torch.arange(count) % 2, ("a", "b"))


def which(data):
    return data.images[:, 0, 0, 0].tolist()


def test_a_draw_takes_each_image_once_at_most(rng):
    drawn = which(draw(numbered(100), 60, rng))
    assert len(set(drawn)) == 60
    assert which(draw(numbered(100), 0, rng)) == []
    assert sorted(which(draw(numbered(100), 100, rng))) == list(range(100))


@pytest.mark.parametrize("count", [-1, 101])
def test_a_draw_beyond_the_data_is_refused(count, rng):
    with pytest.raises(DataError, match=f"at most 100 images, got a request for {count}"):
        draw(numbered(100), count, rng)


def test_tuning_and_validation_parts_are_disjoint():
    tune, validation = reserve(numbered(200), 50, 0.2, seed=0)
    assert (len(tune), len(validation)) == (40, 10)
    assert len(set(which(tune)) | set(which(validation))) == 50


def test_a_reserve_without_validation_is_all_for_tuning():
    tune, validation = reserve(numbered(200), 50, 0.0, seed=0)
    assert (len(tune), len(validation)) == (50, 0)


def test_a_reserve_is_fixed_by_its_seed():
    first, again, other = (reserve(numbered(200), 50, 0.2, seed) for seed in (3, 3, 4))
    assert which(first.tune) == which(again.tune)
    assert which(first.validation) == which(again.validation)
    assert which(first.tune) != which(other.tune)


def test_a_reserve_beyond_the_data_is_refused():
    with pytest.raises(DataError, match="at most 20 images, got a request for 50"):
        reserve(numbered(20), 50, 0.2, seed=0)


def test_held_out_images_are_a_tenth_and_disjoint(rng):
    rest, held = hold_out(numbered(200), rng=rng)
    assert len(held) == 20
    assert sorted(which(rest) + which(held)) == list(range(200))


def test_too_few_images_to_hold_some_out(rng):
    with pytest.raises(DataError, match="at least 20 images"):
        hold_out(numbered(19), rng=rng)
