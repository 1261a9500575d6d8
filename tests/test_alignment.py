"""Permutation alignment: what a network computes stays, and weights come closer."""

import itertools

import numpy as np
import pytest
import torch
import torchvision.models as zoo
from torch import nn

from ppr_core.alignment import (
    aligned,
    assigned,
    correlations,
    permuted,
    streams,
    weight_matching,
)
from ppr_core.connectivity import path
from ppr_core.data.images import to_float
from ppr_core.errors import ConfigError
from ppr_core.metrics import triggered
from ppr_core.models import build
from ppr_core.models.base import Classifier
from ppr_core.models.hooks import watching
from ppr_core.runtime import seeded, session
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import distance, snapshot
from tests.conftest import tiny_model, tiny_set


def densenet():
    net = zoo.DenseNet(4, (2, 1, 1, 1), 8, num_classes=4)
    return Classifier(net.features, net.classifier, relu_head=True)


NETWORKS = {
    "resnet18": lambda: build({"name": "resnet18", "width": 4}, 4, seed=0),
    "resnet50": lambda: build({"name": "resnet50", "width": 2}, 4, seed=0),
    "preact": lambda: build({"name": "preactresnet18", "width": 4}, 4, seed=0),
    "vgg19": lambda: build({"name": "vgg19_bn", "width": 2}, 4, seed=0),
    "mobilenet": lambda: build({"name": "mobilenet_v3_large", "width": 0.1}, 4, seed=0),
    "densenet": densenet,
}


CONVNEXT = {"name": "convnext_tiny", "width": 4}


def drawn(make, seed=0):
    """A network whose every number is drawn, so that no two channels are alike."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("weight"):
                tensor.copy_(0.5 + torch.rand(tensor.shape))
    return model


def shuffled(found, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randperm(stream.channels, generator=rng) for stream in found]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_gives_the_same_logits(name):
    model, pixels = drawn(NETWORKS[name]), torch.rand(3, 3, 32, 32)
    found = streams(model, pixels)
    moved = permuted(snapshot(model), found, shuffled(found))
    with torch.no_grad():
        expected = model(pixels)
        assert expected.std() > 1e-3, "the test could not tell logits apart"
        changed = sum(not torch.equal(moved[n], t) for n, t in model.state_dict().items())
        model.load_state_dict(moved)
        assert torch.allclose(model(pixels), expected, rtol=1e-5, atol=1e-5)
    assert changed > len(moved) / 2
    inner = {axis.name for stream in found for axis in stream.axes}
    assert {n for n, _ in model.named_parameters()} - inner == {list(model.state_dict())[-1]}


def test_layers_on_one_residual_stream_share_a_permutation():
    found = streams(tiny_model(), torch.rand(2, 3, 16, 16))
    assert [stream.channels for stream in found] == [4, 4, 8, 8, 16, 16, 32, 32]
    assert found[0].writers == ["backbone.0", "backbone.3.0.conv2"]
    assert found[1].writers == ["backbone.3.0.conv1"]
    assert found[3].writers == ["backbone.4.0.conv2", "backbone.4.0.downsample.0"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            lambda: build({"name": "convnext_tiny", "pretrained": False, "width": 4}, 4, seed=0),
            "permute",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), "channels to permute"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(32), nn.Flatten()), "layer_norm"),
    ],
)
def test_a_network_that_mixes_channels_otherwise_is_refused(model, words):
    with pytest.raises(ConfigError, match=f"expected a model with .*{words}"):
        streams(model(), torch.rand(2, 3, 32, 32))


def test_weight_matching_undoes_a_permutation():
    model = drawn(tiny_model)
    start, pixels = snapshot(model), torch.rand(2, 3, 16, 16)
    found = streams(model, pixels)
    end = permuted(start, found, shuffled(found, 3))
    back = aligned(model, start, end, pixels)
    assert all(torch.equal(back[name], tensor) for name, tensor in start.items())


def wide(seed):
    """Many channels: what one network has learnt, the other has somewhere, too."""
    with seeded(seed):
        first = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        second = nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        return Classifier(nn.Sequential(*first, *second), nn.Linear(64, 4))


def test_alignment_lowers_the_barrier_between_networks_trained_apart():
    """From different initial weights, on different draws: 21 points of error between them."""
    data, (one, two) = tiny_set(96, seed=5), (wide(seed) for seed in (0, 1))
    schedule = Schedule(epochs=12, batch_size=16, lr=0.05, crop=0)
    stamped = triggered(data, lambda images: 255 - images, 0)
    with session(precision="fp32"):
        for seed, model in enumerate((one, two)):
            fit(model, data, schedule, rng=torch.Generator().manual_seed(seed))
        start, end = snapshot(one), snapshot(two)
        near = aligned(one, start, end, to_float(data.images[:2]))
        before, after = (
            path(one, start, other, test=data, stamped=stamped, points=5) for other in (end, near)
        )
    assert after.distance < 0.8 * before.distance
    assert before.clean_error[-1] == after.clean_error[-1]
    assert before.clean_barrier > 10
    assert after.clean_barrier < 2


def test_an_assignment_is_the_best_of_all():
    score = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    sums = {p: float(score[range(5), list(p)].sum()) for p in itertools.permutations(range(5))}
    assert tuple(assigned(score, largest=True).tolist()) == max(sums, key=sums.get)
    assert tuple(assigned(score, largest=False).tolist()) == min(sums, key=sums.get)


def test_correlations_are_those_of_outputs_before_batch_norm():
    one, two, data = tiny_model(seed=0).eval(), tiny_model(seed=1).eval(), tiny_set(6)
    found = streams(one, torch.rand(2, 3, 16, 16))
    seen = []
    for model in (one, two):
        layer = {"conv": model.get_submodule("backbone.3.0.conv1")}
        with torch.no_grad(), watching(layer, lambda name, given, out: seen.append(out)):
            model(to_float(data.images))
    ours, theirs = (out.movedim(1, 0).flatten(1).double().numpy() for out in seen)
    with session(precision="fp32"):
        got = correlations(found, one, two, data)[1].numpy()
    spread = ours.std(1)[:, None] * theirs.std(1)
    expected = np.corrcoef(ours, theirs)[:4, 4:] * spread / (spread + 1e-4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_correlations_find_a_permutation():
    model, data = drawn(tiny_model), tiny_set(24)
    found = streams(model, to_float(data.images[:2]))
    orders = shuffled(found, 1)
    other = drawn(tiny_model)
    other.load_state_dict(permuted(snapshot(model), found, orders))
    scores = correlations(found, model, other, data)
    for score, order in zip(scores, orders, strict=True):
        assert torch.equal(order[assigned(score, largest=True)], torch.arange(len(order)))


def test_matching_never_moves_weights_apart():
    one, two = (snapshot(tiny_model(seed=seed)) for seed in (0, 1))
    found = streams(tiny_model(), torch.rand(2, 3, 16, 16))
    names = [name for name, _ in tiny_model().named_parameters()]
    near = permuted(two, found, weight_matching(found, one, two, names))
    assert distance(one, near, names) < distance(one, two, names)
