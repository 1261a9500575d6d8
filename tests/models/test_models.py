import pytest
import torch
import torchvision.models as zoo
from torchvision.models.convnext import CNBlockConfig

from ppr_core.defenses import DEFENSES
from ppr_core.errors import ConfigError
from ppr_core.models import MODELS, build
from ppr_core.models.activations import twice_differentiable
from ppr_core.models.base import batch_norms, clone
from ppr_core.models.names import renamed
from ppr_core.models.needs import NEEDS, need_map_sizes
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import read, snapshot
from tests.conftest import tiny_set
from tests.defenses.test_registry import call

SMALL = {
    "resnet18": {"width": 4, "blocks": 1},
    "resnet50": {"width": 4},
    "densenet161": {"width": 2},
    "resnet18_imagenet": {"width": 4, "pretrained": False, "size": 64},
    "resnet18_pooled": {"width": 4},
    "preactresnet18": {"width": 4},
    "vgg19_bn": {"width": 2},
    "mobilenet_v3_large": {"width": 0.25},
    "convnext_tiny": {"width": 4, "pretrained": False},
    "vit_b_16": {"width": 12, "depth": 2, "size": 32, "pretrained": False},
}
NO_BATCH_NORM = {"convnext_tiny", "vit_b_16"}


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
    assert bool(list(batch_norms(model))) == (name not in NO_BATCH_NORM)
    assert model.linear.out_features == 7


@pytest.mark.parametrize(
    ("name", "count", "entries"),
    [
        ("preactresnet18", 11_171_146, 102),
        ("resnet18_pooled", 11_181_642, 122),
        ("vgg19_bn", 139_622_218, 118),
        ("mobilenet_v3_large", 4_214_842, 312),
        ("convnext_tiny", 27_827_818, 182),
        ("vit_b_16", 85_806_346, 152),
    ],
)
def test_the_published_counts(name, count, entries):
    model = MODELS[name]().skeleton(10)
    assert all(tensor.is_meta for tensor in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("name", sorted(MODELS))
def test_one_step_on_tiny_images_and_answers_on_larger_ones(name):
    model = build({"name": name, **SMALL[name]}, 4, seed=0)
    data, before = tiny_set(8, size=32), snapshot(model)
    rng = torch.Generator().manual_seed(0)
    fit(model, data, Schedule(steps=1, batch_size=8, lr=0.1), rng=rng)
    with torch.no_grad():
        assert model(torch.rand(2, 3, 96, 96)).shape == (2, 4)
    after = model.state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    heads = [name for name in after if name.startswith(("linear.", "top."))]
    assert not all(torch.equal(before[name], after[name]) for name in heads)


THEIRS = {
    "resnet18_pooled": lambda: zoo.resnet18(num_classes=7),
    "mobilenet_v3_large": lambda: zoo.mobilenet_v3_large(num_classes=7, width_mult=0.25),
    "convnext_tiny": lambda: zoo.ConvNeXt(
        [CNBlockConfig(*c) for c in ((4, 8, 3), (8, 16, 3), (16, 32, 9), (32, None, 3))],
        num_classes=7,
    ),
    "vit_b_16": lambda: zoo.VisionTransformer(32, 16, 2, 12, 12, 48, num_classes=7),
}


@pytest.mark.parametrize("name", THEIRS)
def test_torchvisions_weights_give_torchvisions_answers(name, tmp_path):
    """Mean and spread apart, which here leave pixels as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = THEIRS[name]().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # some heads start from zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    small = {"width": 64} if name == "resnet18_pooled" else SMALL[name]
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3}
    model = build({"name": name, **small, **plain}, 7, seed=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    model.load_state_dict(read(tmp_path / "theirs.pt", model))
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model.double()(images), theirs.double()(images))


def test_vgg_is_torchvisions_by_name_and_shape():
    """Its head is too large to compute here: 119 million weights."""
    with torch.device("meta"):
        theirs = zoo.vgg19_bn(num_classes=10)
    model = MODELS["vgg19_bn"]().skeleton(10)
    own = model.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert own[renamed(name, own, model)].shape == tensor.shape
    kinds = [type(part) for part in (*theirs.features, theirs.avgpool, *theirs.classifier)]
    ours = [*model.backbone, model.top.pool, *model.top.classifier]
    assert kinds == [type(part) for part in ours]


def test_preact_has_nothing_between_its_last_block_and_pooling():
    model = build({"name": "preactresnet18", "width": 4}, 3, seed=0).eval()
    features = model.features(torch.rand(4, 3, 32, 32))
    assert features.shape == (4, 32, 4, 4)
    assert features.min() < 0
    names = {name for name in model.state_dict() if "downsample" in name}
    assert names == {f"backbone.{n}.0.downsample.0.weight" for n in (2, 3, 4)}


def test_dropout_follows_the_methods_generator(rng):
    """Whatever the global generator did before."""
    ends = []
    for seed in (1, 2):
        model, data = build({"name": "vgg19_bn", "width": 1}, 4, seed=0), tiny_set(8, size=32)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            method = DEFENSES["ft"](schedule={"steps": 2, "batch_size": 8})
            ends.append(method(model, data, rng=torch.Generator().manual_seed(0)).model)
    one, two = (model.state_dict() for model in ends)
    assert all(torch.equal(one[name], two[name]) for name in one)


NEEDS_BATCH_NORM = {"anp", "rnp", "bnp", "clp"}


@pytest.mark.parametrize("name", sorted(NO_BATCH_NORM))
def test_what_does_not_apply_without_batch_norm_is_said_before_anything_runs(name):
    bare, data, refused = MODELS[name]().skeleton(4), tiny_set(8, size=32), set()
    told = []
    for defense, cls in DEFENSES.items():
        try:
            cls().check(bare, data)
        except ConfigError as error:
            refused.add(defense)
            told.append(str(error))
            unmet = [part for part in cls().needed() if not NEEDS[part].met(bare)]
            assert unmet or cls.asks, f"the list says that {defense} takes such a network"
    advice = ("choose another defense", "give at most", "to permute its channels")
    assert all(any(part in text for part in advice) for text in told)
    assert refused >= NEEDS_BATCH_NORM
    assert refused <= NEEDS_BATCH_NORM | {"npd", "nad", "tsc"}


@pytest.mark.parametrize("name", ["ibau", "bti", "fst"])
@pytest.mark.parametrize("model", ["vit_b_16", "convnext_tiny", "mobilenet_v3_large"])
def test_defenses_run_on_them(name, model):
    """I-BAU takes second derivatives, which fused attention and hard sigmoids do not have."""
    network, data = build({"name": model, **SMALL[model]}, 4, seed=0), tiny_set(8, size=32)
    outcome = call(DEFENSES[name], network, data)
    assert all(tensor.isfinite().all() for tensor in outcome.model.state_dict().values())


def test_hard_sigmoids_come_back_after_their_second_derivative():
    model = build({"name": "mobilenet_v3_large", "width": 0.25}, 4, seed=0).eval()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    before, kinds = model(images), [type(part) for part in model.modules()]
    with twice_differentiable(model):
        torch.testing.assert_close(model(images), before)
        (slope,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
        (curved,) = torch.autograd.grad(slope.square().sum(), images)
    assert curved.isfinite().all() and curved.abs().max() > 0
    assert [type(part) for part in model.modules()] == kinds


@pytest.mark.parametrize(
    ("name", "size", "wrong"),
    [
        ("mobilenet_v3_large", 16, True),
        ("mobilenet_v3_large", 32, False),
        ("resnet18_pooled", 16, True),
        ("resnet18", 8, False),
        ("vgg19_bn", 32, False),  # its maps shrink by pooling alone
    ],
)
def test_small_images_that_bf16_would_train_wrongly_are_refused(name, size, wrong):
    bare = MODELS[name](**SMALL[name]).skeleton(4)
    place = torch.device("cpu")
    with session(precision="fp32"):
        need_map_sizes(bare, size, place)
    with session(precision="bf16"):
        if not wrong:
            return need_map_sizes(bare, size, place)
        with pytest.raises(ConfigError, match=f"expected images of 32 pixels .* got {size}"):
            need_map_sizes(bare, size, place)


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
