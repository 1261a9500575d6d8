import pytest
import torch

from ppr_core.attacks import Blended
from ppr_core.attacks.blended import blend, noise_image
from ppr_core.errors import ConfigError
from tests.conftest import tiny_set


def all_pairs():
    """Every pair of grey levels: images 0..255 down, picture 0..255 across."""
    levels = torch.arange(256, dtype=torch.uint8)
    return torch.meshgrid(levels, levels, indexing="ij")


@pytest.mark.parametrize("tenths", [1, 2])
def test_truncation_is_the_exact_floor_for_all_65536_pairs(tenths):
    image, picture = all_pairs()
    out = blend(image[None, None], picture[None, None], tenths / 10)
    expected = ((10 - tenths) * image.int() + tenths * picture.int()) // 10
    assert torch.equal(out[0, 0].int(), expected)


def test_pixels_by_hand():
    image = torch.tensor([[0, 100], [200, 255]], dtype=torch.uint8).expand(1, 3, 2, 2)
    noise = noise_image(64.0, 0, 2).int()
    train = Blended().stamp(image, stage="train", state={})
    test = Blended().stamp(image, stage="test", state={})
    assert torch.equal(train.int(), (9 * image.int() + noise) // 10)
    assert torch.equal(test.int(), (8 * image.int() + 2 * noise) // 10)


def test_test_change_is_twice_the_train_change():
    images = tiny_set(size=32).images.int()
    train, test = (
        Blended().stamp(images.byte(), stage=stage, state={}).int() for stage in ("train", "test")
    )
    assert ((test - images) - 2 * (train - images)).abs().max() <= 1


def test_noise_is_gaussian_seeded_and_drawn_at_the_size():
    noise = noise_image(64.0, 0, 224).double()
    assert noise.shape == (1, 3, 224, 224)
    assert noise.mean() == pytest.approx(127.5, abs=0.6)
    assert noise.std() == pytest.approx(61.4, abs=0.4)  # 64 before clipping
    noise_image.cache_clear()
    assert torch.equal(noise_image(64.0, 0, 224).double(), noise)
    assert not torch.equal(noise_image(64.0, 1, 224).double(), noise)
    neighbours = noise[..., 1:] - noise[..., :-1]
    assert neighbours.std() > 80  # 61.4 * sqrt(2): no smoothing


def test_ratio_zero_changes_nothing():
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    assert torch.equal(Blended(train_ratio=0.0).stamp(white, stage="train", state={}), white)


def test_ratio_above_one_is_refused():
    with pytest.raises(ConfigError, match=r"train_ratio.*less than or equal to 1, got 1\.5"):
        Blended(train_ratio=1.5)
