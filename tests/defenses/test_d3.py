import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses import D3
from ppr_core.defenses.d3 import started
from ppr_core.errors import ConfigError

SHORT = {"steps": 4, "batch_size": 16, "lr": 0.05}


@pytest.mark.parametrize(
    ("start", "expected"), [("far", [-1.0, 2.0]), ("zero", [0.0, 0.0]), ("near", [1.0, -2.0])]
)
def test_starts_by_hand(start, expected, rng):
    assert started(torch.tensor([[1.0, -2.0]]), start, rng).tolist() == [expected]


def test_drawn_starts(rng):
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    drawn = started(weight, "random", rng)
    torch.testing.assert_close(drawn.norm(), weight.norm())
    assert F.cosine_similarity(drawn.flatten(), weight.flatten(), dim=0).abs() < 0.1
    noise = started(weight, "noise", rng) - weight
    assert noise.std().item() == pytest.approx(weight.std().item(), rel=0.1)


@pytest.mark.parametrize("penalty", [0.5, 4.0])
def test_the_loss_by_hand(penalty, model, data):
    method = D3(bound=1.3, penalty=penalty)
    old = [model.linear.weight.detach() - 0.5]
    images = to_float(data.images)
    each = -model(images).log_softmax(1)[torch.arange(48), data.labels]
    assert ((each > 1.3).any()) and (each < 1.3).any()
    over = (each - 1.3).clamp_min(0).mean()
    expected = penalty * over - 0.5 * model.linear.weight.numel() ** 0.5
    got = method.loss(model, [model.linear.weight], old)(images, data.labels)
    torch.testing.assert_close(got, expected / (5.0 if penalty > 1 else 1.0))


def test_within_the_bound_only_the_distance_counts(model, data):
    old = [model.linear.weight.detach() - torch.arange(32.0)]
    loss = D3(bound=100.0).loss(model, [model.linear.weight], old)(
        to_float(data.images), data.labels
    )
    got = torch.autograd.grad(loss, [model.linear.weight, model.backbone[0].weight])
    way = model.linear.weight.detach() - old[0]
    torch.testing.assert_close(got[0], -way / way.norm())
    assert not got[1].any()


@pytest.mark.parametrize(
    "settings", [{}, {"start": "far"}, {"where": "all", "start": "near"}, {"start": "noise"}]
)
def test_layers_keep_their_norm_and_leave_their_weights(settings, model, data, rng):
    outcome = D3(schedule=SHORT, **settings)(model, data, rng=rng)
    layers = [model.linear] if "where" not in settings else model.modules()
    names = {m: n for n, m in model.named_modules()}
    squares = sizes = 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            new = outcome.model.get_submodule(names[layer]).weight
            torch.testing.assert_close(new.norm(), layer.weight.norm(), rtol=1e-5, atol=0)
            squares += (new - layer.weight).square().sum().item()
            sizes += layer.weight.square().sum().item()
    assert outcome.info["distance"] == pytest.approx(squares**0.5, rel=1e-5)
    assert outcome.info["distance_relative"] == pytest.approx((squares / sizes) ** 0.5, rel=1e-5)
    assert outcome.info["distance"] > 0


def test_where_the_bound_is_never_met_it_ends_at_the_opposite_weights(model, data, rng):
    long = {"steps": 80, "batch_size": 48, "lr": 0.1, "crop": 0, "flip": False}
    outcome = D3(bound=100.0, start="noise", schedule=long)(model, data, rng=rng)
    assert outcome.info["distance_relative"] == pytest.approx(2, rel=0.02)
    torch.testing.assert_close(
        outcome.model.linear.weight, -model.linear.weight, atol=0.05, rtol=0.2
    )


def test_batch_norm_statistics_follow_only_in_train_mode(model, data, rng):
    for train_mode in (True, False):
        outcome = D3(schedule=SHORT, train_mode=train_mode)(model, data, rng=rng)
        same = torch.equal(outcome.model.backbone[1].running_mean, model.backbone[1].running_mean)
        assert same != train_mode


@pytest.mark.parametrize("start", ["random", "far", "zero"])
def test_a_start_that_loses_the_network_is_refused(start, model, data, rng):
    with pytest.raises(ConfigError, match="expected start near or noise with where: all"):
        D3(where="all", start=start)(model, data, rng=rng)
