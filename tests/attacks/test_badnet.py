import pytest
import torch

from ppr_core.attacks import BadNet
from ppr_core.data.images import Augment
from ppr_core.errors import ConfigError
from ppr_core.training.fit import Schedule
from tests.conftest import batches, tiny_set

GRID = torch.tensor([[255, 1, 255], [1, 255, 1], [255, 1, 255]], dtype=torch.uint8)


def grey(size, value=100, count=1):
    return torch.full((count, 3, size, size), value, dtype=torch.uint8)


def stamp(images, **settings):
    return BadNet(**settings).stamp(images, stage="train", state={})


def test_checkerboard_pixels_at_32():
    out = stamp(grey(32))
    assert torch.equal(out[0, :, 29:, 29:], GRID.expand(3, 3, 3))
    out[..., 29:, 29:] = 100
    assert torch.equal(out, grey(32))


def test_white_square_at_32():
    out = stamp(grey(32), pattern="white")
    assert (out[..., 29:, 29:] == 255).all()
    assert (out != 100).sum() == 3 * 9


def test_stages_agree_and_twice_is_once():
    images = tiny_set(size=32).images
    attack = BadNet()
    out = attack.stamp(images, stage="test", state={})
    assert torch.equal(out, attack.stamp(images, stage="train", state={}))
    assert torch.equal(out, attack.stamp(out, stage="test", state={}))


def test_white_file_scaled_to_64_has_the_published_grey_border():
    out = stamp(grey(64, 0), pattern="white")[0, 0]
    assert (out > 0).sum() == 49
    assert (out[57:, 57:] > 0).all()
    assert out.unique().tolist() == [0, 16, 48, 64, 143, 191, 255]
    assert (out == 255).sum() == 25


@pytest.mark.parametrize(("pattern", "changed", "full"), [("white", 576, 324), ("grid", 570, 26)])
def test_file_scaled_to_224(pattern, changed, full):
    out = stamp(grey(224, 0), pattern=pattern)[0, 0]
    assert (out > 0).sum() == changed
    assert (out == 255).sum() == full
    assert (out[:200] == 0).all()
    assert (out[:, :200] == 0).all()


def test_nearest_scaling_keeps_crisp_cells():
    out = stamp(grey(224), resize="nearest")
    expected = GRID.repeat_interleave(7, 0).repeat_interleave(7, 1)
    assert torch.equal(out[0, 0, 203:, 203:], expected)
    assert (out != 100).sum() == 3 * 21 * 21


def test_crops_hide_the_patch_as_often_as_computed():
    """Of the 9x9 crops of a 32-pixel image padded by 4, 5x5 show all of the patch, 7x7 some."""
    data = tiny_set(count=1, size=32).with_images(stamp(grey(32, 0), pattern="white"))
    row, column = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    draws = torch.stack([row.flatten(), column.flatten(), torch.zeros(81).long()], 1)
    seen = Augment(data, crop=4, flip=False)(torch.zeros(81).long(), draws)[:, 0].sum((1, 2))
    assert (seen > 0).sum() == 49
    assert (seen == 9).sum() == 25


def test_trigger_comes_before_augmentation():
    data = tiny_set(size=32)
    poisoned = BadNet(poison_rate=1.0).poison(data, seed=0, state={}).data
    plain = Schedule(batch_size=48, crop=0, flip=False)
    images, labels = next(batches(poisoned, plain, rng=torch.Generator().manual_seed(0)))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    expected = stamp(data.images)[order].float() / 255
    torch.testing.assert_close(images, expected, rtol=0, atol=0)
    assert (labels == 0).all()


def test_unknown_pattern_is_refused():
    with pytest.raises(ConfigError, match="'grid' or 'white', got 'dots'"):
        BadNet(pattern="dots")
