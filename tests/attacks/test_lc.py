import pytest
import torch
from torch import nn

from ppr_core.attacks.lc import LabelConsistent
from ppr_core.attacks.parts.adversarial import craft, pgd
from ppr_core.data.images import ImageSet
from ppr_core.errors import ConfigError, DataError
from tests.conftest import shrink, tiny_model, tiny_set

SMALL = {"name": "resnet18", "width": 4, "blocks": 1}
SIGNS = [[1, -1, -1], [-1, 1, -1], [1, -1, 1]]


def attack(**changes):
    return shrink(LabelConsistent(surrogate=SMALL, poison_rate=0.125, **changes))


def ready(seed=0, **changes):
    data, method = tiny_set(count=48, size=32), attack(**changes)
    return data, method, method.prepare(data, rng=torch.Generator().manual_seed(seed))


def test_corners_on_mid_grey_by_hand():
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    out = LabelConsistent().stamp(grey, stage="test", state={})
    assert out.unique().tolist() == [0, 128, 255]
    plane = out[0, 0].int()
    assert (out[0] == out[0, 0]).all()  # the same in every channel
    assert (plane == 255).sum() == 16
    assert (plane == 0).sum() == 20
    left = torch.tensor(SIGNS) * 128 + 128  # 256 is clipped to 255
    for rows in (slice(0, 3), slice(29, 32)):
        assert torch.equal(plane[rows, :3], left.clamp_max(255))
        assert torch.equal(plane[rows, 29:], left.clamp_max(255).flip(1))


def test_corners_are_symmetric_left_to_right_only():
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    out = LabelConsistent().stamp(grey, stage="test", state={})
    assert torch.equal(out, out.flip(3))
    assert not torch.equal(out, out.flip(2))


@pytest.mark.parametrize(("size", "side"), [(64, 6), (224, 21)])
def test_larger_images_get_crisp_corners(size, side):
    grey = torch.full((1, 3, size, size), 128, dtype=torch.uint8)
    small = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    out = LabelConsistent().stamp(grey, stage="test", state={})
    expected = LabelConsistent().stamp(small, stage="test", state={})
    zoom = size // 32
    assert torch.equal(out, expected.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3))
    assert (out[0, 0] != 128).sum() == 4 * side**2


def test_amplitude_weakens_training_and_truncates():
    image = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    method = LabelConsistent(amplitude=0.25)  # 63.75 levels
    train = method.stamp(image, stage="train", state={})
    assert train.unique().tolist() == [36, 100, 163]
    assert method.stamp(image, stage="test", state={}).unique().tolist() == [0, 100, 255]


def test_test_images_differ_in_the_corners_only_and_stay_untouched():
    data, method, state = ready()
    before = data.images.clone()
    out = method.stamp(data.images, stage="test", state=state)
    assert torch.equal(data.images, before)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    for rows in (slice(0, 3), slice(29, 32)):
        inside[rows, :3] = inside[rows, 29:] = True
    assert torch.equal(out[..., ~inside], before[..., ~inside])
    assert set(out[..., inside].unique().tolist()) == {0, 255}


def test_poison_keeps_labels_and_stays_within_eps():
    data, method, state = ready()
    poisoned = method.poison(data, seed=0, state=state)
    assert len(poisoned.indices) == 6
    assert (poisoned.original == 0).all()
    assert torch.equal(poisoned.data.labels, data.labels)
    rest = torch.ones(48, dtype=torch.bool)
    rest[poisoned.indices] = False
    assert torch.equal(poisoned.data.images[rest], data.images[rest])
    change = poisoned.data.images[poisoned.indices].int() - data.images[poisoned.indices].int()
    inner = change[..., 3:29, :]
    assert inner.max() <= 8
    assert inner.min() >= -9
    assert inner.abs().max() >= 2  # two steps of 1.5 levels


def test_state_follows_the_dataset_indices():
    data, method, state = ready()
    assert torch.equal(state["indices"], (data.labels == 0).nonzero().flatten())
    picked = state["indices"][torch.tensor([5, 2])]
    stamped = method.stamp_train(data, picked, state=state)
    expected = method.stamp(state["crafted"][[5, 2]], stage="train", state=state)
    assert torch.equal(stamped, expected)


def test_foreign_images_are_refused():
    data, method, state = ready()
    with pytest.raises(DataError, match="same training set and target"):
        method.stamp_train(data, torch.tensor([1]), state=state)
    with pytest.raises(DataError, match="same training set and target"):
        method.stamp_train(data, torch.tensor([47]), state=state)
    with pytest.raises(ConfigError, match="call prepare first"):
        method.stamp_train(data, torch.tensor([0]), state={})


def test_every_image_of_the_class_at_the_highest_rate():
    data, method, state = ready()
    poisoned = method.replace(poison_rate=0.25).poison(data, seed=0, state=state)
    assert torch.equal(poisoned.indices, state["indices"])


def test_too_high_a_rate_is_refused_before_any_work(rng):
    method = attack().replace(poison_rate=0.3)
    with pytest.raises(DataError, match=r"only the 12 images of class 0.*at most 0\.25"):
        method.prepare(tiny_set(), rng=rng)


def test_same_seed_same_state_and_reports():
    _, _, first = ready(seed=3)
    _, _, again = ready(seed=3)
    _, _, other = ready(seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["crafted"], other["crafted"])
    reports = {name for name in first if name.startswith("report.")}
    assert reports == {
        "report.surrogate_clean_accuracy",
        "report.surrogate_robust_accuracy",
        "report.surrogate_accuracy_on_crafted",
    }
    assert all(first[name].shape == () and 0 <= first[name] <= 100 for name in reports)


@pytest.mark.parametrize("adversary", ["pgd", "none"])
def test_other_adversaries_change_the_surrogate(adversary):
    _, _, default = ready()
    _, _, state = ready(adversary=adversary)
    assert not torch.equal(default["crafted"], state["crafted"])


def test_eps_zero_is_the_trigger_alone(rng):
    data, method = tiny_set(count=48, size=32), attack(eps=0.0)
    assert method.preparation() is None
    assert method.prepare(data, rng=rng) == {}
    poisoned = method.poison(data, seed=0, state={})
    expected = method.stamp(data.images[poisoned.indices], stage="train", state={})
    assert torch.equal(poisoned.data.images[poisoned.indices], expected)


def test_preparation_leaves_out_rate_and_victim():
    key = LabelConsistent().preparation()
    same = LabelConsistent(poison_rate=0.01, amplitude=0.5, training={"epochs": 1})
    assert same.preparation() == key
    assert LabelConsistent(eps=16 / 255).preparation() != key
    assert LabelConsistent(target=1).preparation() != key


def test_unknown_surrogate_is_refused_when_built():
    with pytest.raises(ConfigError, match="resnet18"):
        LabelConsistent(surrogate={"name": "resnet81"})


class Linear(nn.Module):
    """Two classes; the gradient of class 0's loss has the sign of the pixel's weight."""

    def forward(self, images):
        weights = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
        return torch.stack([torch.zeros(len(images)), (weights * images).sum((1, 2, 3))], 1)


def test_pgd_of_a_linear_model_by_hand():
    images = torch.tensor([0.5, 0.5, 0.98]).view(1, 3, 1, 1)
    label = torch.tensor([0])
    out = pgd(Linear(), images, label, eps=0.05, step=0.02, iterations=2)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.54, 0.46, 1.0]))
    out = pgd(Linear(), images, label, eps=0.05, step=0.02, iterations=9)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.55, 0.45, 1.0]))


def test_pgd_starts_at_random_only_where_asked():
    images = torch.full((2, 3, 4, 4), 0.5)
    labels = torch.tensor([0, 0])
    budget = {"eps": 0.1, "step": 0.0, "iterations": 1}
    assert torch.equal(pgd(Linear(), images, labels, **budget), images)
    start = pgd(Linear(), images, labels, **budget, rng=torch.Generator().manual_seed(0))
    assert (start - images).abs().max() <= 0.1 + 1e-6
    assert (start - images).std() > 0.03  # uniform on +-0.1: 0.058


def test_pgd_restores_modes_and_leaves_gradients_alone():
    model, data = tiny_model().train(), tiny_set(count=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pgd(model, data.images / 255, data.labels, eps=0.1, step=0.1, iterations=1)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_craft_truncates():
    data = ImageSet(torch.full((1, 3, 1, 1), 100, dtype=torch.uint8), torch.tensor([0]), ("a", "b"))
    crafted = craft(Linear(), data, eps=1.0, step=1.5 / 255, iterations=1)
    assert crafted.images.flatten().tolist() == [101, 98, 101]  # 101.5 and 98.5
