import pytest
import torch
from torch import nn

from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import ConfigError, DataError
from ppr_core.metrics import attack_success_rate, clean_accuracy, triggered
from ppr_core.reactivation.controls import TargetedPgd, sign_noise
from ppr_core.reactivation.perturbation import (
    EPS,
    aimed,
    along,
    frozen,
    success_rates,
    sweep,
    transfer,
    within,
)
from ppr_core.weights import snapshot
from tests.conftest import tiny_model, tiny_set


class Bright(nn.Module):
    """Answers class 0 where the mean pixel is above a level, class 1 elsewhere."""

    def __init__(self, level):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(float(level)))

    def forward(self, images):
        above = images.flatten(1).mean(1) - self.level
        return torch.stack([above, -above], 1)


def grey(value=100, count=6):
    images = torch.full((count, 3, 4, 4), value, dtype=torch.uint8)
    return ImageSet(images, torch.ones(count, dtype=torch.int64), ("bright", "dark"))


up = along(lambda images: torch.ones_like(images))


def test_within_moves_by_eps_and_stays_a_picture():
    images = torch.tensor([0.0, 0.5, 0.99]).view(1, 1, 1, 3)
    moved = within(images, torch.tensor([-1.0, 1.0, 1.0]).view(1, 1, 1, 3), 0.1)
    assert torch.allclose(moved.flatten(), torch.tensor([0.0, 0.6, 1.0]))


def test_directions_in_half_precision_stay_within_the_budget():
    images = torch.full((1, 1, 8, 8), 0.5)
    direction = torch.rand(1, 1, 8, 8).mul(2).sub(1).bfloat16()
    direction[..., 0, 0] = 1
    change = within(images, direction, EPS) - images
    assert change.abs().max() <= EPS + 1e-6
    assert torch.equal(within(images, direction, 0.0), images)


def test_each_budget_is_judged_by_itself():
    # 100/255 is 0.392: 0.1 more passes 0.45, 0.2 more passes 0.55.
    models = {"low": Bright(0.45), "high": Bright(0.55)}
    hit = aimed(grey(), 0)
    assert success_rates(models, hit, up, [0, 0.1, 0.2]) == {
        "low": [0, 100, 100],
        "high": [0, 0, 100],
    }


def test_one_pass_agrees_with_a_pass_for_each_budget(model):
    data = aimed(tiny_set(40), 2)
    perturb = along(lambda images: torch.sign(images - images.mean()))
    budgets = [index / 255 for index in range(0, 17, 4)]
    one = success_rates({"m": model}, data, perturb, budgets)["m"]
    assert one == [success_rates({"m": model}, data, perturb, [eps])["m"][0] for eps in budgets]
    assert one[0] == attack_success_rate(model, data), "budget 0 is not the plain image"


def test_sweep_rows_of_clean_and_triggered_images():
    test, stamped = grey(100), aimed(grey(120), 0)
    rows = sweep({"m": Bright(0.5)}, test, stamped, up, [0, 0.05, 0.15])
    assert [row["eps"] for row in rows] == [0, 0.05, 0.15]
    assert [row["c_asr"] for row in rows] == [0, 0, 100]
    assert [row["p_asr"] for row in rows] == [0, 100, 100]


def test_the_target_class_is_left_out():
    data = tiny_set(40)
    assert len(aimed(data, 0)) == 30
    # A perfect model that no perturbation harms.
    perfect = nn.Module()
    perfect.forward = lambda images: torch.eye(2)[(images.flatten(1).mean(1) < 0.3).long()]
    mixed = grey(200, 4).with_labels(torch.zeros(4, dtype=torch.int64)) + grey(20, 12)
    stamped, nothing = aimed(mixed, 0), along(torch.zeros_like)
    assert clean_accuracy(perfect, mixed) == 100
    assert sweep({"m": perfect}, mixed, stamped, nothing, [EPS])[0]["c_asr"] == 0.0


def test_a_constant_model_is_always_reached():
    rows = sweep({"m": Bright(-9)}, grey(), aimed(grey(), 0), up, [0, EPS])
    assert all(row["c_asr"] == row["p_asr"] == 100 for row in rows)


def test_transfer_leaves_the_source_out():
    models = {"a": Bright(0.45), "b": Bright(0.55), "c": Bright(0.9)}
    rates = transfer(models, {"a": up, "c": along(torch.zeros_like)}, aimed(grey(), 0), 0.2)
    assert rates == {"a": {"b": 100.0, "c": 0.0}, "c": {"a": 0.0, "b": 0.0}}


def test_evaluation_leaves_modes_buffers_and_random_state(data):
    model = tiny_model().train()
    model.backbone[1].eval()  # a mixed state is put back as it was
    before, modes = snapshot(model), [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    stamped = triggered(data, lambda images: 255 - images, 0)
    for perturb in (
        up,
        sign_noise(torch.Generator().manual_seed(0)),
        TargetedPgd(iterations=1).on(model, 0),
    ):
        sweep({"m": model}, data, stamped, perturb, [0, EPS])
    assert torch.equal(state, torch.random.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_frozen_puts_back_also_after_an_error():
    model = tiny_model().train()
    first = next(model.parameters()).requires_grad_(False)
    with pytest.raises(ZeroDivisionError), frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
        raise ZeroDivisionError
    assert not first.requires_grad
    assert sum(not p.requires_grad for p in model.parameters()) == 1
    assert all(m.training for m in model.modules())


def test_no_images_and_no_budgets_are_errors(model, data):
    with pytest.raises(DataError, match="at least one image"):
        success_rates({"m": model}, data.subset(torch.tensor([], dtype=torch.int64)), up, [EPS])
    for budgets in ([], [-0.1]):
        with pytest.raises(ConfigError, match="budgets of 0 or above"):
            success_rates({"m": model}, data, up, budgets)


def test_sign_noise_is_whole_budget_and_the_same_at_every_budget(data):
    images = to_float(data.images).clamp(0.2, 0.8)
    moved = sign_noise(torch.Generator().manual_seed(3))(images, torch.tensor([0.05, 0.1]))
    change = moved - images
    assert torch.allclose(change[0].abs(), torch.tensor(0.05), atol=1e-6)
    assert torch.equal(change[0].sign(), change[1].sign())
    assert not torch.equal(change[0][0], change[0][1]), "images share their noise"
    assert 0.45 < (change > 0).double().mean() < 0.55


def test_targeted_pgd_stays_within_every_budget(model, data):
    images, budgets = to_float(data.images), torch.tensor([0.0, 0.02, 0.3])
    moved = TargetedPgd(iterations=5).on(model, 3)(images, budgets)
    change = (moved - images).abs().flatten(1).amax(1)
    assert torch.equal(moved[0], images)
    assert (change <= budgets + 1e-6).all()
    assert change[2] > 0.1, "the step does not follow the budget"
    assert moved.min() >= 0 and moved.max() <= 1


def test_targeted_pgd_reaches_the_target():
    # 100/255 is 0.392: 0.55 is 0.158 away.
    bright, mixed = Bright(0.55), grey(100, 3) + grey(90, 1)
    attack = TargetedPgd(iterations=10).on(bright, 0)
    assert success_rates({"m": bright}, aimed(mixed, 0), attack, [0, 0.1, 0.17, 0.3])["m"] == [
        0,
        0,
        75,
        100,
    ]
