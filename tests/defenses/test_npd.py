import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses import Ft, Npd, npd
from ppr_core.defenses.npd import Polarizer, avoid, best_other, last_block
from ppr_core.errors import ConfigError
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.plan import Plan
from ppr_core.models import build
from ppr_core.runtime import session
from ppr_core.weights import snapshot
from tests.conftest import tiny_model

SHORT = {
    "warm_up": {"steps": 2, "batch_size": 16},
    "schedule": {"steps": 3, "batch_size": 16},
}
SMALL = [
    {"name": "resnet18", "width": 4, "blocks": 2},
    {"name": "resnet50", "width": 2},
    {"name": "densenet161", "width": 2},
]


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec["name"])
def test_the_new_layer_is_the_identity_at_first(spec, data):
    model = build(spec, 4, seed=0).double().eval()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model.features(images)
        kept = set(model.state_dict())
        assert Npd().extend(model) is model
        model.double()
        torch.testing.assert_close(model.features(images), before, rtol=1e-7, atol=1e-9)
    added = [name for name in model.state_dict() if name not in kept]
    prefixes = {name.partition("conv1.")[0] for name in added}
    assert len(prefixes) == 1
    assert not any(module.training for module in model.modules())


def test_the_new_layer_stands_in_the_last_block(model):
    assert last_block(model) is model.backbone[-1][-1]
    maps = torch.rand(2, 16, 4, 4)
    layer = Polarizer(nn.Conv2d(16, 8, 3, padding=1)).eval()
    torch.testing.assert_close(layer.filter(maps), maps, rtol=0, atol=0)
    torch.testing.assert_close(layer(maps), layer.layer(maps))


def test_only_the_new_layer_is_trained(model, data, rng):
    outcome = Npd(**SHORT)(model, data, rng=rng)
    fresh = Npd().extend(tiny_model())
    fresh.load_state_dict(outcome.model.state_dict())
    for name, tensor in model.state_dict().items():
        name = name.replace("6.0.conv1.", "6.0.conv1.layer.")
        assert torch.equal(tensor, outcome.model.state_dict()[name]), name
    layer = last_block(outcome.model).conv1
    identity = Polarizer(layer.layer)
    assert not torch.equal(layer.filter.weight, identity.filter.weight)
    assert not torch.equal(layer.norm.bias, identity.norm.bias)
    assert layer.norm.num_batches_tracked == 2  # of the warm-up alone
    assert not torch.equal(layer.norm.running_mean, identity.norm.running_mean)


def test_other_defenses_add_nothing(model):
    names = set(model.state_dict())
    assert set(Ft().extend(model).state_dict()) == names


def test_avoiding_by_hand():
    p = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    got = avoid(p.clamp_min(1e-30).log(), torch.tensor([1, 0]))
    torch.testing.assert_close(got[0], -torch.tensor(0.2501).log())
    assert got[1].item() == pytest.approx(9.2103, abs=0.01)  # -log(1e-4)


def test_the_warm_up_is_plain_descent_on_plain_images(model, data, rng, monkeypatch):
    """Two steps of w - lr * slope, with neither decay nor momentum, crop nor flip."""
    seen = []
    real = npd.fit

    def spied(trained, images, schedule, **hooks):
        inner = hooks["loss"]
        hooks["loss"] = lambda x, y: seen.append((x, y)) or inner(x, y)
        return real(trained, images, schedule, **hooks)

    monkeypatch.setattr(npd, "fit", spied)
    twice = Npd(warm_up={"steps": 2, "batch_size": 48, "lr": 0.5}, schedule={"epochs": 0})
    with session(precision="fp32"):
        got = last_block(twice(model, data, rng=rng).model).conv1
        twin = Npd().extend(copy.deepcopy(model).eval())
        layer = last_block(twin).conv1
        trained = [layer.filter.weight, layer.norm.weight, layer.norm.bias]
        layer.norm.train()
        for images, labels in seen:
            slopes = torch.autograd.grad(F.cross_entropy(twin(images), labels), trained)
            for weight, slope in zip(trained, slopes, strict=True):
                weight.data.sub_(0.5 * slope)
    plain = {tuple(image.flatten().tolist()) for image in to_float(data.images)}
    assert {tuple(image.flatten().tolist()) for image in images} == plain
    found = [got.filter.weight, got.norm.weight, got.norm.bias]
    for ours, theirs in zip(found, trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    tuned = Npd().schedule
    assert (tuned.crop, tuned.flip, tuned.momentum, tuned.weight_decay) == (0, False, 0.9, 5e-4)
    assert (len(seen), Npd().warm_up.lr) == (2, 1e-4)


def test_the_best_class_besides_the_label():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert best_other(logits, torch.tensor([0, 1])).tolist() == [2, 0]


# -- perturbations -------------------------------------------------------------------------------


def test_perturbed_images_are_in_the_ball_and_in_range(model, data):
    images = to_float(data.images)
    target = (data.labels + 1) % 4
    for radius in (0.5, 3.0):
        method = Npd(radius=radius, search_steps=4, enough=1.0)
        found = method.perturb(model, images, target)
        assert found.min() >= 0 and found.max() <= 1
        length = (found - images).flatten(1).norm(dim=1)
        assert length.max() <= radius * (1 + 1e-5)
        assert length.max() > 0.4
        before, after = (F.cross_entropy(model(x), target) for x in (images, found))
        assert after < before
    assert torch.equal(Npd(search_steps=0).perturb(model, images, target), images)
    assert all(p.grad is None for p in model.parameters())


def test_a_step_by_hand():
    """Two pixels a class: the slope's sign is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]))
    images = torch.tensor([0.5, 0.95, 0.05, 0.2]).view(1, 1, 2, 2)
    once = Npd(search_steps=1, step_size=0.1, radius=3.0)
    found = once.perturb(model, images, torch.tensor([1])).flatten()
    torch.testing.assert_close(found, torch.tensor([0.4, 0.85, 0.15, 0.3]))
    found = once.perturb(model, images, torch.tensor([0])).flatten()
    torch.testing.assert_close(found, images.flatten())  # fooled from the start
    found = once.replace(enough=1.0, radius=0.1).perturb(model, images, torch.tensor([1]))
    torch.testing.assert_close((found - images).norm(), torch.tensor(0.1))


def test_a_search_ends_when_enough_are_fooled(model, data):
    images, calls = to_float(data.images), []
    model.register_forward_hook(lambda *_: calls.append(1))
    target = model(images).argmax(1)
    calls.clear()
    assert torch.equal(Npd().perturb(model, images, target), images)
    assert len(calls) == 1
    calls.clear()
    Npd(radius=0.0).perturb(model, images, (target + 1) % 4)
    assert len(calls) == 2


def test_the_loss_by_hand(data):
    model = tiny_model().eval()
    images, labels = to_float(data.images), data.labels
    method = Npd(robust=2.0, other=3.0, target=5.0)
    logits = model(images)
    target = best_other(logits, labels)
    moved = model(method.perturb(model, images, target))
    p, at = moved.softmax(1), torch.arange(48)
    expected = F.cross_entropy(logits, labels) + 2 * F.cross_entropy(moved, logits.argmax(1))
    expected = expected - 3 * (1.0001 - p[at, best_other(moved, labels)]).log().mean()
    expected = expected - 5 * (1.0001 - p[at, target]).log().mean()
    with session(precision="fp32"):
        torch.testing.assert_close(method.loss(model)(images, labels), expected)


def test_a_model_without_such_a_block_is_refused(data, rng):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(ConfigError, match="expected a model with backbone"):
        Npd()(plain, data, rng=rng)
    model = tiny_model()
    model.backbone = model.backbone[:3]
    model.linear = nn.Linear(4, 4)
    before = snapshot(model)
    with pytest.raises(ConfigError, match="convolution is called conv1"):
        Npd()(model, data, rng=rng)
    assert set(before) == set(model.state_dict())


def test_the_study_reads_the_longer_model_back(store, tiny_study):
    plan = Plan(tiny_study.replace(defenses={"npd": {**SHORT}}))
    lab = Lab(store)
    model = lab.model(plan.retuned(Cell("badnet", "npd", 0)))
    assert isinstance(last_block(model).conv1, Polarizer)
    for other in (
        plan.backdoored(Cell("badnet", "none", 0)),
        plan.retuned(Cell("badnet", "clean", 0)),
    ):
        assert last_block(lab.model(other)).conv1.kernel_size == (3, 3)
