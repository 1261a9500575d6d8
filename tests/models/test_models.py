import pytest
import torch

from ppr_core.errors import ConfigError
from ppr_core.models import MODELS, build
from ppr_core.models.base import batch_norms, clone
from ppr_core.weights import snapshot

SMALL = {
    "resnet18": {"width": 4, "blocks": 1},
    "resnet50": {"width": 4},
    "densenet161": {"width": 2},
    "resnet18_imagenet": {"width": 4, "pretrained": False, "size": 64},
}


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_173_962), ("resnet50", 23_520_842), ("densenet161", 26_494_090)],
)
def test_parameter_counts(name, count):
    model = build(name, 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", sorted(MODELS))
def test_head_of_features_is_the_model(name):
    model = build({"name": name, **SMALL[name]}, 7, seed=0).eval()
    images = torch.rand(3, 3, 32, 32)
    features = model.features(images)
    before = features.clone()
    logits = model.head(features)
    assert logits.shape == (3, 7)
    assert torch.equal(logits, model(images))
    assert torch.equal(features, before), "the head changed the features in place"
    assert list(batch_norms(model))


def test_the_first_layer_normalises():
    model = build({"name": "resnet18", "width": 4}, 2, seed=0)
    pixels = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert torch.allclose(model.normalise(pixels), torch.zeros(1, 3, 8, 8), atol=1e-6)
    noise = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model.normalise.inverse(model.normalise(noise)), noise, atol=1e-6)


def test_the_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = snapshot(build(SMALL["resnet18"] | {"name": "resnet18"}, 3, seed=1))
    assert torch.equal(torch.rand(1), expected)
    again = snapshot(build(SMALL["resnet18"] | {"name": "resnet18"}, 3, seed=1))
    other = snapshot(build(SMALL["resnet18"] | {"name": "resnet18"}, 3, seed=2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_clone_shares_nothing(model):
    copy = clone(model)
    with torch.no_grad():
        copy.linear.weight.zero_()
    assert model.linear.weight.abs().sum() > 0


def test_weights_that_cannot_be_had_name_a_fallback(monkeypatch):
    import torchvision.models as zoo

    def fail(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(zoo.ResNet18_Weights.IMAGENET1K_V1.__class__, "get_state_dict", fail)
    with pytest.raises(ConfigError, match="pretrained: false"):
        build("resnet18_imagenet", 10, seed=0)


def test_pretrained_weights_fix_the_width():
    with pytest.raises(ConfigError, match="expected width 64"):
        build({"name": "resnet18_imagenet", "width": 8}, 10, seed=0)
