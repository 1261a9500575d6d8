import numpy as np
import pytest
import torch
from PIL import Image

from ppr_core.attacks import ATTACKS
from ppr_core.attacks.foreign import FunctionTrigger, PictureTrigger
from ppr_core.config import from_registry
from ppr_core.errors import ConfigError, DataError
from tests.conftest import tiny_set


def picture(path, array, mode=None):
    Image.fromarray(np.asarray(array, np.uint8), mode).save(path)
    return str(path)


@pytest.fixture
def images():
    return torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)


def stamp(attack, images, state=None):
    return attack.stamp(images, stage="test", state=state or {})


def test_a_patch_goes_where_it_is_told(tmp_path, images):
    path = picture(tmp_path / "patch.png", np.full((2, 3, 3), 200))
    before = images.clone()
    found = stamp(PictureTrigger(path=path, at=[5, 4]), images)
    expected = images.clone()
    expected[:, :, 5:7, 4:7] = 200
    assert torch.equal(found, expected)
    assert torch.equal(images, before)


def test_mask_transparency_and_strength_by_hand(tmp_path, images):
    noise = picture(tmp_path / "noise.png", np.full((8, 8, 3), 200))
    assert stamp(PictureTrigger(path=noise, alpha=0.2), images).unique().tolist() == [120]
    half = np.zeros((8, 8))
    half[:4] = 255
    mask = picture(tmp_path / "mask.png", half)
    found = stamp(PictureTrigger(path=noise, mask=mask, alpha=0.5), images)
    assert found[:, :, :4].unique().tolist() == [150]
    assert found[:, :, 4:].unique().tolist() == [100]
    clear = np.full((8, 8, 4), 200)
    clear[..., 3] = 0
    found = stamp(PictureTrigger(path=picture(tmp_path / "clear.png", clear)), images)
    assert torch.equal(found, images)


def test_it_poisons_like_any_other_attack(tmp_path):
    path = picture(tmp_path / "patch.png", np.full((2, 2, 3), 255))
    spec = {"name": "ppr_core.attacks.foreign:PictureTrigger", "path": path, "at": [14, 14]}
    attack = from_registry(ATTACKS, {**spec, "poison_rate": 0.25, "target": 2}, "attack")
    data = tiny_set(16)
    poisoned = attack.poison(data, seed=0, state={})
    assert len(poisoned.indices) == 4
    assert (poisoned.data.images[poisoned.indices][..., 14:, 14:] == 255).all()
    assert (poisoned.data.labels[poisoned.indices] == 2).all()
    one = attack.own_code()
    picture(tmp_path / "patch.png", np.full((2, 2, 3), 254))
    assert attack.own_code() != one


@pytest.mark.parametrize(
    ("size", "given", "message"),
    [
        ((9, 8), {}, "expected a trigger within images of 8x8, got .* of 9x8 at 0,0"),
        ((2, 2), {"at": [7, 0]}, "expected a trigger within images of 8x8, got .* at 7,0"),
        ((2, 2), {}, r"expected at \(row, column\)"),
        ((8, 8), {"mask": "mask.png"}, r"expected a mask as large as .* \(8, 8\), got \(4, 4\)"),
        ((8, 8), {"mask": "none.png"}, "expected an image, got"),
        ((8, 8), {"mask": "text.png"}, "expected an image, got"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(tmp_path, monkeypatch, size, given, message):
    monkeypatch.chdir(tmp_path)
    picture("p.png", np.zeros((*size, 3)))
    picture("mask.png", np.zeros((4, 4)))
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=message) as caught:
        PictureTrigger(path="p.png", **given).check_data(tiny_set(8, size=8))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="at.0: expected greater than or equal to 0"):
        PictureTrigger(path="p.png", at=[-1, 0])


FUNCTIONS = """
def bright(images):
    images[..., :2, :2] = 255
    return images

def arrays(images):
    images[:, :2, :2, :] = 255
    return images

def floats(images):
    return images / 255

def smaller(images):
    return images[..., :4]

def broken(images):
    raise KeyError("no\\nsuch key")

def nothing(images):
    pass
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "Triggers.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return "Triggers.py"


@pytest.mark.parametrize(("name", "layout"), [("bright", "tensor"), ("arrays", "numpy")])
def test_a_function_stamps_a_copy(functions, images, name, layout):
    attack = FunctionTrigger(path=f"{functions}:{name}", layout=layout)
    before, expected = images.clone(), images.clone()
    expected[..., :2, :2] = 255
    assert torch.equal(stamp(attack, images), expected)
    assert torch.equal(images, before)
    assert len(attack.own_code()) == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("floats", "expected uint8 images .* got torch.float32"),
        ("smaller", r"expected uint8 images \(2, 3, 8, 8\) .* got torch.uint8 \(2, 3, 8, 4\)"),
        ("broken", "got KeyError"),
        ("nothing", "got <class 'NoneType'>"),
    ],
)
def test_a_function_that_gives_something_else_is_refused(functions, name, message):
    with pytest.raises(DataError, match=message) as caught:
        FunctionTrigger(path=f"{functions}:{name}").check_data(tiny_set(8, size=8))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no attribute 'other'"):
        FunctionTrigger(path=f"{functions}:other").check_data(tiny_set(8, size=8))
