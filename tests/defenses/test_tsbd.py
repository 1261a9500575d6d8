import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.defenses import Tsbd, tsbd
from ppr_core.defenses.parts import selection
from ppr_core.defenses.tsbd import reset, weight_changes
from ppr_core.errors import ConfigError, DataError
from ppr_core.models.base import convolutions
from ppr_core.runtime import session
from ppr_core.sharpness import sam_gradient
from ppr_core.training.fit import Schedule, fit, plain_gradient
from ppr_core.weights import snapshot
from tests.conftest import tiny_model, tiny_set

SHORT = {
    "forgetting": {"steps": 2, "batch_size": 16, "lr": 0.01},
    "schedule": {"steps": 3, "batch_size": 16},
}


@pytest.fixture
def changes(model):
    other = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng))
    return weight_changes(other, model)


# -- resetting -----------------------------------------------------------------------------------


def test_reset_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.Conv2d(2, 2, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1)
    changes = {
        "0": torch.tensor([[5.0, 1.0], [0.0, 0.1]]),
        "1": torch.tensor([[2.0, 3.0], [0.2, 0.1]]),
    }
    # Neurons by their sums: (0, 0) 6, (1, 0) 5. Their weights: 5 3 2 1, of which 5 3 2 go.
    assert reset(net, changes, n=0.5, m=0.75) == 3
    assert net[0].weight.flatten(1).tolist() == [[0, 1], [1, 1]]
    assert net[1].weight.flatten(1).tolist() == [[0, 0], [1, 1]]
    assert net[0].bias.tolist() == net[1].bias.tolist() == [1, 1]


def test_numbers_are_rounded_down():
    """0.45 of 4 neurons is one (1.8), and 0.95 of its 2 weights is one (1.9)."""
    net = nn.Sequential(nn.Conv2d(1, 4, (1, 2)))
    with torch.no_grad():
        net[0].weight.fill_(1)
    changes = {"0": torch.tensor([[5.0, 1.0], [4.0, 1.0], [0.0, 0.1], [0.0, 0.0]])}
    assert reset(net, changes, n=0.45, m=0.95) == 1
    assert net[0].weight.flatten(1).tolist() == [[0, 1], [1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize(("n", "m"), [(0.15, 0.7), (0.5, 1.0), (0.3, 0.0), (0.0, 0.7), (1.0, 0.4)])
def test_zeroed_weights_lie_in_the_top_neurons(n, m, model, changes):
    before = snapshot(model)
    count = reset(model, changes, n, m)
    sums = torch.cat([change.sum(1) for change in changes.values()])
    least = sums.sort(descending=True).values[: int(n * len(sums))].min() if n else torch.inf
    pooled = kept = 0
    for name, layer in convolutions(model):
        top = changes[name].sum(1) >= least
        zero = (layer.weight == 0).flatten(1)
        assert not zero[~top].any()
        pooled += int(top.sum()) * zero.shape[1]
        kept += int(zero.sum())
    assert count == kept == int(m * pooled)
    touched = {f"{name}.weight" for name, _ in convolutions(model)}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) or name in touched


def test_changes_are_absolute_and_leave_out_shortcuts(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.backbone[0].weight.sub_(0.5)
    changes = weight_changes(other, model)
    assert list(changes) == [name for name, _ in convolutions(model)]
    torch.testing.assert_close(changes["backbone.0"], torch.full((4, 27), 0.5))
    assert not any(change.any() for name, change in changes.items() if name != "backbone.0")


# -- tuning --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rho", "share"), [(0.0, 0.7), (0.05, 0.0)])
def test_without_distance_or_share_a_step_is_sgd(rho, share, data):
    batches = Schedule(steps=4, batch_size=16, lr=0.05)
    plain, penalised = tiny_model(), tiny_model()
    gradient = sam_gradient(
        penalised.parameters(), rho, per_tensor=True, share=share, freeze_bn_model=penalised
    )
    with session(precision="fp32"):
        for model, step in ((plain, plain_gradient), (penalised, gradient)):
            fit(model, data, batches, rng=torch.Generator().manual_seed(0), gradient=step)
    for one, two in zip(plain.parameters(), penalised.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("per_tensor", [True, False])
def test_the_two_gradients_are_mixed(per_tensor):
    """For x^4 + 2 y^2 at (1, 3), gradient (4, 12)."""
    x, y = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (1.0, 3.0))
    gradient = sam_gradient([x, y], 0.1, per_tensor=per_tensor, share=0.75)
    value = gradient(lambda: (x**4 + 2 * y**2).sum())
    assert value.item() == 19
    length = 1.0 if per_tensor else 160**0.5 / 4
    dx, dy = 0.1 / length, 0.1 if per_tensor else 3 * 0.1 / length
    assert x.grad.item() == pytest.approx(0.25 * 4 + 0.75 * 4 * (1 + dx) ** 3)
    assert y.grad.item() == pytest.approx(0.25 * 12 + 0.75 * 4 * (3 + dy))
    assert (x.item(), y.item()) == (1, 3)


def test_a_parameter_without_slope_is_not_lost():
    x = torch.zeros(2, requires_grad=True)
    sam_gradient([x], 0.1, per_tensor=True, share=0.5)(lambda: F.mse_loss(x, torch.zeros(2)))
    assert x.grad.tolist() == [0, 0]


# -- the method ----------------------------------------------------------------------------------


def test_a_copy_is_unlearnt_and_the_model_reset(model, data, rng, monkeypatch):
    seen = {}

    def note(unlearned, data, schedule, *, floor, **named):
        seen.update(floor=floor, same=unlearned is model)
        with torch.no_grad():
            unlearned.backbone[0].weight[1].add_(1)
        return [{"accuracy": 20.0}]

    monkeypatch.setattr(tsbd, "forget", note)
    method = Tsbd(n=0.01, m=1.0, schedule={"epochs": 0})
    outcome = method(model, data, rng=rng)
    assert seen == {"floor": 25, "same": False}
    assert not outcome.model.backbone[0].weight[1].any()
    # One percent of the neurons: one more than the changed one at the most.
    assert outcome.info["zeroed"] >= 27
    assert outcome.info["warnings"] == []
    stubborn = method.replace(forgotten=10.0)(model, data, rng=rng)
    assert stubborn.info["warnings"] == [
        "unlearning ended above 10 % accuracy: raise forgetting.lr"
    ]


def test_the_largest_share_that_keeps_the_accuracy_is_chosen(model, data, rng, monkeypatch):
    measured = iter([80, 60, 79])
    monkeypatch.setattr(selection, "clean_accuracy", lambda *_: next(measured))
    method = Tsbd(**SHORT, n_grid=[0.05, 0.9, 0.5])
    outcome = method(model, data, rng=rng, validation=tiny_set(8))
    assert outcome.info["n_tried"] == {"0.05": None, "0.5": 79, "0.9": 60}
    alone = Tsbd(**SHORT, n=0.5)(model, data, rng=rng)
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, alone.model.state_dict()[name])
    with pytest.raises(DataError, match="expected validation images to choose n by"):
        method(model, data, rng=rng)


def test_two_passes_a_step_and_statistics_of_the_first(model, data, rng):
    cost = Tsbd(**SHORT)(model, data, rng=rng).cost
    assert (cost.forward, cost.backward) == (2 + 1 + 6, 2 + 6)  # ascent, its accuracy, tuning


def test_a_model_without_convolutions_is_refused(data, rng):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(ConfigError, match="expected a model with convolutions"):
        Tsbd()(plain, data, rng=rng)
