import copy

import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn import functional as F

from ppr_core.config import from_registry
from ppr_core.defenses import DEFENSES
from ppr_core.errors import ConfigError
from ppr_core.models import MODELS, build
from ppr_core.models.base import Capped, clone, features_of, logits_of, normalise_of
from ppr_core.models.wrap import Whole, wrap
from ppr_core.weights import read
from tests.conftest import tiny_model, tiny_set

PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Plain(nn.Module):
    """A user's network: a stage of blocks, pooling by mean, dropout, a layer of any name."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.answer = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stage(self.stem(x))
        return self.answer(self.drop(x.mean((2, 3)).view(x.size(0), -1)))


class Branching(Plain):
    """What torch.fx cannot trace: the outermost forward asks for a value."""

    def forward(self, x):
        x = self.stage(self.stem(x))
        if x.sum() > 1e9:
            x = x / 2
        return self.answer(x.mean((2, 3)))


class Functional(Plain):
    """What tracing would bake in: dropout that looks at the mode in the outermost forward."""

    def forward(self, x):
        x = self.stage(self.stem(x)).mean((2, 3))
        return self.answer(F.dropout(x, 0.5, self.training))


class After(Plain):
    """Its last linear layer is not its answer."""

    def forward(self, x):
        return torch.tanh(self.answer(self.stage(self.stem(x)).mean((2, 3)))) * x.mean()


def drawn(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


FOREIGN = {  # network -> shape of the features, names of the parts of its backbone
    "resnet18": (lambda: zoo.resnet18(num_classes=4), (512, 1, 1), "layer4"),
    "vgg11_bn": (lambda: zoo.vgg11_bn(num_classes=4), (512, 1, 1), "features"),
    "mobilenet_v3_small": (lambda: zoo.mobilenet_v3_small(num_classes=4), (576, 1, 1), "features"),
    "densenet121": (lambda: zoo.densenet121(num_classes=4), (1024, 1, 1), "features"),
    "swin": (
        lambda: zoo.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=4),
        None,
        "features",
    ),
    "vit": (lambda: zoo.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=4), (8,), "encoder"),
    "plain": (Plain, (8, 8, 8), "stage"),
    "branching": (Branching, (8,), "stage"),
    "functional": (Functional, (8,), "stage"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_features_and_head_of_a_foreign_network_are_found(name):
    make, shape, part = FOREIGN[name]
    net = drawn(make).eval()
    model = wrap(net)
    assert isinstance(model, Capped)
    features = model.features(PIXELS)
    if shape:
        assert tuple(features.shape[1:]) == shape
    expected = net(PIXELS)
    torch.testing.assert_close(model(PIXELS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.head(features), model(PIXELS), rtol=0, atol=0)
    assert hasattr(model.backbone, part)
    assert model.linear.out_features == 4
    assert model.get_submodule("linear") is model.linear
    numbers = [sum(p.numel() for p in m.parameters()) for m in (net, model)]
    assert numbers[0] == numbers[1]
    # A copy is independent, and takes the state of the first.
    other = clone(model)
    with torch.no_grad():
        other.linear.weight.zero_()
        other.linear.bias.zero_()
    assert other(PIXELS).abs().max() == 0
    other.load_state_dict(model.state_dict())
    other.to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(PIXELS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "branching", "functional"])
def test_it_trains_as_the_network_does(name):
    """Dropout and batch norm follow the mode, and the module handed in stays as it is."""
    net = drawn(FOREIGN[name][0])
    before = copy.deepcopy(net)
    model = wrap(net)
    assert model.training
    assert [part.training for part in net.modules()] == [p.training for p in before.modules()]
    for (name, tensor), was in zip(
        net.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, was), name
    answers = []
    for network in (net, model):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            answers.append(network(PIXELS))
    torch.testing.assert_close(*answers)
    answers[1].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in net.parameters())
    model.eval()
    assert torch.equal(model(PIXELS), model(PIXELS))


def test_what_cannot_be_cut_stays_whole_and_says_what_to_name():
    model = wrap(drawn(After), stats=((0.5,) * 3, (0.2,) * 3)).eval()
    assert isinstance(model, Whole)
    data = tiny_set(16, size=32)
    with pytest.raises(ConfigError, match="give it two attributes, features .* and head") as caught:
        DEFENSES["bti"]().check(model, data)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected a model with linear, got a Whole without"):
        DEFENSES["fst"]().check(model, data)
    for name in ("ft", "ft_sam", "ibau", "ep", "sau"):
        DEFENSES[name]().check(model, data)
    inverted = {"name": "neural_cleanse"}
    DEFENSES["pam"](inversion=inverted).check(model, data)


def test_parts_with_these_names_that_do_not_fit_are_refused():
    """torchvision's Swin has features and head, with a norm and a permutation between them."""
    net = drawn(FOREIGN["swin"][0]).eval()
    net.training = True  # modes that differ, so that a careless restoring shows
    with pytest.raises(ConfigError, match=r"expected head\(features\(x\)\) to be the answer"):
        DEFENSES["bti"]().check(net, tiny_set(16, size=32))
    assert [part.training for part in net.modules()].count(True) == 1


def test_a_users_own_description_is_taken():
    class Described(Plain):
        def features(self, x):
            return self.stage(self.stem(x))

        def head(self, maps):
            return self.answer(maps.mean((2, 3)))

    net = drawn(Described).eval()
    DEFENSES["bti"]().check(net, tiny_set(16, size=32))
    assert torch.equal(normalise_of(net)(PIXELS), PIXELS)
    assert torch.equal(logits_of(net, PIXELS), net(PIXELS))
    assert torch.equal(features_of(net, PIXELS), net.features(PIXELS))


def test_our_own_models_are_asked_the_same_way_bit_for_bit():
    model = tiny_model().eval()
    normalised = normalise_of(model)(PIXELS)
    assert torch.equal(normalised, model.normalise(PIXELS))
    assert torch.equal(logits_of(model, normalised), model(PIXELS))
    assert torch.equal(features_of(model, normalised), model.features(PIXELS))
    assert wrap(model) is model


def test_mean_and_spread_wrap_what_does_not_take_pixels():
    net = drawn(Plain).eval()
    model = wrap(net, stats=((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)), size=16)
    mean = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    small = F.interpolate((PIXELS - mean) / 0.2, 16, mode="bilinear", antialias=True)
    torch.testing.assert_close(model(PIXELS), net(small))


@pytest.mark.parametrize(
    ("net", "given", "message"),
    [
        (lambda: nn.Linear(5, 4), {}, "expected a model that takes images"),
        (lambda: nn.Conv2d(3, 4, 3), {}, r"expected logits \(N, classes\) from Conv2d, got"),
        (lambda: nn.Flatten(), {}, "expected a model with weights, got a Flatten"),
        (Plain, {"head": "stem"}, r"expected the name of an nn.Linear .* \['answer'\]"),
        (Plain, {"num_classes": 10}, "expected 10 classes, as the data have, from Plain, got 4"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_line(net, given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        wrap(net(), **given)
    assert "\n" not in str(caught.value)


# -- by name, from a study's file ------------------------------------------------------------------

FILE = """
from torch import nn

def tiny(num_classes, width=4):
    head = nn.Linear(width, num_classes)
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

def four():
    return tiny(4)

def none():
    return 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "Nets.py").write_text(FILE)
    return str(tmp_path / "Nets.py")


def test_any_callable_is_a_model_by_name(file, tmp_path):
    spec = {"name": f"{file}:tiny", "mean": [0.5] * 3, "std": [0.25] * 3, "arguments": {"width": 6}}
    model = build(spec, 5, seed=1)
    assert torch.equal(model(PIXELS), build(spec, 5, seed=1)(PIXELS))
    assert not torch.equal(model(PIXELS), build(spec, 5, seed=2)(PIXELS))
    assert model.features(PIXELS).shape == (3, 6, 16, 16)
    architecture = from_registry(MODELS, spec, "model")
    assert len(architecture.own_code()) == 64
    bare = architecture.skeleton(5)
    assert next(bare.parameters()).is_meta
    assert bare.state_dict().keys() == model.state_dict().keys()
    # Weights that its file's own state_dict holds are read by their own names.
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), *3 * [nn.Identity()])
    net.append(nn.Linear(6, 5))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    state = read(tmp_path / "net.pt", model)
    assert torch.equal(state["top.5.weight"], net[5].weight)
    model.load_state_dict(state)


def test_torchvision_by_name():
    model = build({"name": "torchvision.models:resnet18", "size": 32}, 3, seed=0)
    assert model(PIXELS).shape == (3, 3)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("four", {}, "expected 10 classes, as the data have"),
        ("none", {}, "expected an nn.Module from .*Nets.py:none, got int"),
        ("tiny", {"mean": [0.5]}, "expected mean and std of one length"),
        ("tiny", {"mean": [0.5], "std": [0.0]}, "std above 0"),
        ("tiny", {"wdth": 1}, "Own: unknown setting"),
    ],
)
def test_a_users_model_that_does_not_fit_is_refused(file, name, more, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": f"{file}:{name}", **more}, 10, seed=0)


def test_any_architecture_takes_another_normalisation(file, tmp_path):
    name = "ppr_core.models.own:Normalised"
    small = {"name": "resnet18", "width": 4, "blocks": 1}
    spec = {"name": name, "model": small, "mean": [0.1] * 3, "std": [0.5] * 3}
    model, plain = build(spec, 4, seed=0).eval(), build(small, 4, seed=0).eval()
    assert torch.equal(model.linear.weight, plain.linear.weight)
    assert torch.equal(model(PIXELS), plain.logits_of((PIXELS - 0.1) / 0.5))
    bare = from_registry(MODELS, spec, "model").skeleton(4)
    assert model.state_dict().keys() == bare.state_dict().keys()
    own = {"name": name, "model": {"name": f"{file}:tiny"}}
    assert len(from_registry(MODELS, own, "model").own_code()) == 64
    with pytest.raises(ConfigError, match="unknown model: 'resnet81'"):
        build({"name": name, "model": {"name": "resnet81"}}, 4, seed=0)


def test_a_users_own_shortcut_keeps_its_name(tmp_path):
    class Short(Plain):
        def __init__(self):
            super().__init__()
            self.stage = nn.Sequential()
            self.stage.shortcut = nn.Conv2d(4, 8, 1)

    net = drawn(Short).eval()
    model = wrap(net)
    torch.save(net.state_dict(), tmp_path / "short.pt")
    model.load_state_dict(read(tmp_path / "short.pt", model))
    torch.testing.assert_close(model.eval()(PIXELS), net(PIXELS))
