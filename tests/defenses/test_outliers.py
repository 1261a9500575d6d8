"""CLP and BNP, and what they share."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ppr_core.data.images import to_float
from ppr_core.defenses import Bnp, Clp
from ppr_core.defenses.bnp import divergence
from ppr_core.defenses.parts import selection
from ppr_core.defenses.parts.outliers import silence
from ppr_core.errors import ConfigError, DataError
from ppr_core.models import build
from ppr_core.models.base import batch_norms, lipschitz, normalised_convolutions
from ppr_core.weights import snapshot
from tests.conftest import tiny_set

CLASSES = [Clp, Bnp]


def silent(model):
    """The channels whose gamma and beta are zero."""
    return {
        (name, int(channel))
        for name, layer in batch_norms(model)
        for channel in torch.nonzero((layer.weight == 0) & (layer.bias == 0)).flatten()
    }


def with_bias(model):
    """A model none of whose channels is silent from the start."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for _, layer in batch_norms(model):
            layer.bias.fill_(0.1)
    return model


# -- what they share -----------------------------------------------------------------------------


def test_outliers_are_above_the_mean_of_their_own_layer(model):
    model = with_bias(model)
    scores = {"backbone.1": torch.tensor([1.0, 1.0, 1.0, 5.0])}  # mean 2, deviation 2
    assert silence(copy.deepcopy(model), scores, 1.5) == 0  # 5 is not above 5
    assert silence(model, scores, 1.49) == 1
    assert silent(model) == {("backbone.1", 3)}


@pytest.mark.parametrize("cls", CLASSES)
def test_pruned_sets_are_nested_and_only_gamma_and_beta_change(cls, model, data, rng):
    model, before = with_bias(model), set()
    for u in (50.0, 1.5, 1.0, 0.0):
        outcome = cls(u=u)(model, data, rng=rng)
        gone = silent(outcome.model)
        assert outcome.info["pruned"] == len(gone)
        assert before <= gone
        before = gone
        for name, tensor in outcome.model.state_dict().items():
            if not torch.equal(tensor, model.state_dict()[name]):
                layer, _, kind = name.rpartition(".")
                assert layer in dict(batch_norms(model)) and kind in ("weight", "bias")
    assert 0 < len(before) < sum(layer.num_features for _, layer in batch_norms(model))
    assert outcome.info["channels"] == sum(len(t) for t in outcome.tensors.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_smallest_limit_that_keeps_the_accuracy_is_chosen(cls, model, data, rng, monkeypatch):
    measured = iter([80, 60, 79])
    monkeypatch.setattr(selection, "clean_accuracy", lambda *_: next(measured))
    method = cls(u_grid=[2.0, 0.5, 1.0])
    outcome = method(with_bias(model), data, rng=rng, validation=tiny_set(8))
    assert outcome.info["u_tried"] == {"0.5": 60, "1": 79, "2": None}
    alone = cls(u=1.0)(with_bias(model), data, rng=rng)
    assert outcome.info["pruned"] == alone.info["pruned"]
    assert silent(outcome.model) == silent(alone.model)
    with pytest.raises(DataError, match="expected validation images to choose u by"):
        method(model, data, rng=rng)


@pytest.mark.parametrize(
    ("cls", "layers"),
    [
        (Clp, [nn.Conv2d(3, 4, 3)]),
        (Clp, [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)]),
        (Bnp, [nn.Conv2d(3, 4, 3)]),
        (Bnp, [nn.BatchNorm2d(3, track_running_stats=False)]),
    ],
)
def test_a_model_without_what_they_score_is_refused(cls, layers, data, rng):
    plain = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))
    plain(to_float(data.images))
    with pytest.raises(ConfigError, match="expected a model with"):
        cls()(plain, data, rng=rng)


# -- CLP -----------------------------------------------------------------------------------------


def test_the_bound_is_that_of_a_brute_force_decomposition():
    convolution, norm = nn.Conv2d(3, 5, (2, 3)).double(), nn.BatchNorm2d(5).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0, 0.25, 9.0, 2.0]))
    expected = []
    for channel in range(5):
        matrix = convolution.weight[channel].detach().numpy().reshape(3, 6)
        largest = np.linalg.svd(matrix, compute_uv=False)[0]
        scale = abs(norm.weight[channel].item()) / (norm.running_var[channel].item() + 1e-5) ** 0.5
        expected.append(largest * scale)
    torch.testing.assert_close(lipschitz(convolution, norm), torch.tensor(expected).double())


def test_a_channel_that_amplifies_a_hundredfold_is_pruned(rng, data):
    model = build({"name": "resnet18", "width": 16, "blocks": 1}, 4, seed=0).eval()
    with torch.no_grad():
        model.backbone[3][0].bn2.weight[5] *= 100
        model.backbone[3][0].bn2.bias[5] = 1
    assert silent(Clp()(model, data, rng=rng).model) - silent(model) >= {("backbone.3.0.bn2", 5)}


def test_every_convolution_of_a_resnet_has_its_batch_norm(model):
    pairs = list(normalised_convolutions(model))
    assert {name for name, _, _ in pairs} == {name for name, _ in batch_norms(model)}
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [convolution for _, convolution, _ in pairs] == convolutions
    names = {module: name for name, module in model.named_modules()}
    for name, convolution, _ in pairs:  # conv1 has bn1, downsample.0 has downsample.1
        expected = name.replace("bn", "conv")
        if name == "backbone.1" or "downsample" in name:
            expected = f"{name[:-1]}0"
        assert names[convolution] == expected


def test_data_are_not_looked_at(model, data, rng):
    one = Clp(u=1.0)(model, data, rng=rng).model.state_dict()
    two = Clp(u=1.0)(model, tiny_set(5, seed=9), rng=rng)
    assert two.cost.forward == 0
    assert all(torch.equal(tensor, one[name]) for name, tensor in two.model.state_dict().items())


# -- BNP -----------------------------------------------------------------------------------------


def test_the_divergence_by_hand():
    zero, one = torch.zeros(1), torch.ones(1)
    assert divergence(zero, one, zero, one, exact=True) == 0
    assert divergence(zero, one, zero, one, exact=False) == 0
    assert divergence(3 * one, one, one, one, exact=True).item() == pytest.approx(2)
    wide = torch.e * one
    exact = divergence(zero, one, zero, wide, exact=True)
    assert exact.item() == pytest.approx(0.5 + 0.5 / torch.e - 0.5)
    coded = divergence(zero, one, zero, wide, exact=False)
    assert (coded - exact).item() == pytest.approx(0.5)


@pytest.mark.parametrize("exact", [True, False])
def test_statistics_of_the_batch_itself_give_zero(exact, model, data, rng):
    model.double()
    maps = {}

    def keep(layer, args):
        maps[layer] = args[0]

    for _, layer in batch_norms(model):  # a layer's input depends on the statistics before it
        handle = layer.register_forward_pre_hook(keep)
        with torch.no_grad():
            model(to_float(data.images).double())
            layer.running_mean.copy_(maps[layer].mean((0, 2, 3)))
            layer.running_var.copy_(maps[layer].transpose(0, 1).flatten(1).var(1))
        handle.remove()
    original = model.forward
    model.forward = lambda pixels: original(pixels.double())
    scores = Bnp(kl_exact=exact).scores(model, data, rng=rng)
    assert list(scores) == [name for name, _ in batch_norms(model)]
    for score in scores.values():
        torch.testing.assert_close(score, torch.zeros_like(score), atol=1e-6, rtol=0)
    model.backbone[1].running_mean[2] += 1
    assert Bnp(kl_exact=exact).scores(model, data, rng=rng)["backbone.1"].argmax() == 2


def test_one_batch_is_looked_at_and_nothing_stays_behind(model, data, rng):
    before = snapshot(model)
    outcome = Bnp(batch_size=20)(model, data, rng=rng)
    assert (outcome.cost.forward, outcome.cost.images) == (1, 20)
    Bnp().scores(model, data, rng=rng)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
