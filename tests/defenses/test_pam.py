import copy

import pytest
import torch
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses import BtiSam, Pam
from ppr_core.defenses.pam import path_gradient, probe
from ppr_core.defenses.parts import selection
from ppr_core.defenses.parts.unlearning import triggered_first
from ppr_core.defenses.sources.base import TriggerSource
from ppr_core.errors import ConfigError, DataError
from ppr_core.method import fork
from ppr_core.metrics import clean_accuracy
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule, fit, make_optimizer, plain_gradient
from ppr_core.weights import moved
from tests.conftest import tiny_model, tiny_set

BATCHES = Schedule(steps=6, batch_size=16, lr=0.05, momentum=0.1)


class Invert(TriggerSource):
    """A trigger for the tests: the negative."""

    def invert(self, model, data, *, rng, state):
        return {"calls": state.get("calls", torch.zeros(1)) + 1}

    def trigger(self, model, state, stamp):
        return lambda pixels: 1 - pixels

    def findings(self, state):
        return {"calls": int(state["calls"])}


class Nothing(Invert):
    """No trigger at all: what remains is plain tuning."""

    def trigger(self, model, state, stamp):
        return lambda pixels: pixels


def short(cls=Pam, **settings):
    tuning = {"steps": 2, "batch_size": 16}
    return cls(**{"inversion": Invert(), "tuning": tuning, "rounds": 2, **settings})


def drifted(count=3):
    """Weights that left their start, and the way back."""
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=rng, dtype=torch.float64) for s in ((3, 4), (5,), (2, 2))]
    now = [s + 0.3 * torch.randn(s.shape, generator=rng, dtype=torch.float64) for s in start]
    return start, now, [s - n for s, n in zip(start, now, strict=True)]


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def parameters_of(model):
    return [p.detach().clone() for p in model.parameters()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def captured(model, data, gradient, seen):
    """A loss that notes the weights at which it is evaluated."""

    def loss(images, labels):
        seen.append(parameters_of(model))
        return F.cross_entropy(model(images), labels)

    fit(model, data, BATCHES, rng=torch.Generator().manual_seed(0), loss=loss, gradient=gradient)


@pytest.mark.parametrize("rho", [0.0, 0.2, 5.0])
def test_a_step_on_a_quadratic_is_the_closed_form(rho):
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(5, 5, generator=rng, dtype=torch.float64)
    matrix, start = root @ root.T, torch.randn(5, generator=rng, dtype=torch.float64)
    weights = start.clone().requires_grad_()
    optimizer = make_optimizer([weights], Schedule(lr=0.02, momentum=0.0))
    gradient = path_gradient([weights], rho)
    expected = start.clone()
    for _ in range(4):
        optimizer.zero_grad()
        gradient(lambda: 0.5 * weights @ matrix @ weights)
        optimizer.step()
        back = start - expected
        point = expected + rho * back / back.norm() if back.any() else expected
        expected = expected - 0.02 * matrix @ point
        torch.testing.assert_close(weights.detach(), expected)


def test_rho_zero_is_sgd_with_momentum_bit_for_bit(data):
    plain, pam = tiny_model(), tiny_model()
    with session(precision="fp32"):
        for model, gradient in (
            (plain, plain_gradient),
            (pam, path_gradient(pam.parameters(), 0.0)),
        ):
            fit(model, data, BATCHES, rng=torch.Generator().manual_seed(0), gradient=gradient)
    assert same(plain.state_dict().values(), pam.state_dict().values())


def test_the_call_with_rho_zero_is_sgd_on_the_same_batches_bit_for_bit(model, data, rng):
    method = short(rho=0.0, rounds=1, tuning={"steps": 5, "batch_size": 16})
    assert method.tuning.momentum == 0.1

    def mix(images, labels):
        return triggered_first(images, lambda pixels: 1 - pixels, 0.2), labels

    with session(precision="fp32"):
        got = method(model, data, rng=rng).model
        fit(model, data, method.tuning, rng=fork(rng, "tune", 1), on_batch=mix)
    assert same(got.state_dict().values(), model.state_dict().values())
    with session(precision="fp32"):
        other = method.replace(rho=0.5)(tiny_model(), data, rng=rng).model
    assert not same(parameters_of(got), parameters_of(other))


def test_the_first_step_is_the_same_for_any_rho(data):
    after = []
    for rho in (0.0, 0.5, 50.0):
        model = tiny_model()
        once = BATCHES.replace(steps=1)
        gradient = path_gradient(model.parameters(), rho)
        fit(model, data, once, rng=torch.Generator().manual_seed(0), gradient=gradient)
        after.append(parameters_of(model))
    assert same(after[0], after[1])
    assert same(after[0], after[2])


def test_a_start_that_follows_the_weights_is_sgd(data):
    plain, pam = tiny_model(), tiny_model()

    def follow(loss):
        return path_gradient(pam.parameters(), 0.7)(loss)  # its start is where it now stands

    for model, gradient in ((plain, plain_gradient), (pam, follow)):
        fit(model, data, BATCHES, rng=torch.Generator().manual_seed(0), gradient=gradient)
    assert same(parameters_of(plain), parameters_of(pam))


@pytest.mark.parametrize("rho", [0.1, 3.0])
def test_the_probe_is_rho_away_and_on_the_line_to_the_start(rho):
    _, _, back = drifted()
    move = flat(probe(back, rho))
    assert move.norm().item() == pytest.approx(rho, rel=1e-6)
    cosine = F.cosine_similarity(move, flat(back), dim=0)
    assert cosine.item() == pytest.approx(1, abs=1e-12)


def test_only_the_direction_of_the_way_back_counts():
    _, _, back = drifted()
    torch.testing.assert_close(probe([7 * b for b in back], 0.4), probe(back, 0.4))
    assert all(not move.any() for move in probe([0 * b for b in back], 0.4))


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_clipped_probe_stops_at_the_start(per_layer):
    start, now, back = drifted()
    far = probe(back, 100.0, clip=True, per_layer=per_layer)
    reached = [n + m for n, m in zip(now, far, strict=True)]
    torch.testing.assert_close(reached, start)
    assert flat(far).norm().item() == pytest.approx(flat(back).norm().item())
    near = probe(back, 0.1, clip=True, per_layer=per_layer)
    assert flat(near).norm().item() == pytest.approx(0.1)


def test_per_layer_every_tensor_moves_as_far():
    _, _, back = drifted()
    move = probe(back, 0.6, per_layer=True)
    for part, way in zip(move, back, strict=True):
        assert part.norm().item() == pytest.approx(0.6 / 3**0.5)
        assert F.cosine_similarity(part.flatten(), way.flatten(), dim=0).item() == pytest.approx(1)
    assert flat(move).norm().item() == pytest.approx(0.6)


def test_the_gradient_is_taken_at_the_probe_and_applied_at_the_weights(data):
    model, seen = tiny_model(), []
    start, images, labels = parameters_of(model), to_float(data.images), data.labels
    gradient = path_gradient(model.parameters(), 0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    now, twin = parameters_of(model), copy.deepcopy(model)

    def loss():
        seen.append(parameters_of(model))
        return F.cross_entropy(model(images), labels)

    gradient(loss)
    away = flat(seen[0]) - flat(now)
    assert away.norm().item() == pytest.approx(0.3, rel=1e-4)
    back = flat(start) - flat(now)
    assert F.cosine_similarity(away, back, dim=0).item() == pytest.approx(1, abs=1e-5)
    assert same(now, parameters_of(model))
    with torch.no_grad():
        for parameter, value in zip(twin.parameters(), seen[0], strict=True):
            parameter.copy_(value)
    F.cross_entropy(twin(images), labels).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_weights_come_back_exactly_also_after_an_error(data):
    model = tiny_model()
    gradient = path_gradient(model.parameters(), 2.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    now = parameters_of(model)
    still = BATCHES.replace(lr=0.0)
    fit(model, data, still, rng=torch.Generator().manual_seed(0), gradient=gradient)
    assert same(now, parameters_of(model))

    def broken():
        assert not same(now, parameters_of(model))
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        gradient(broken)
    assert same(now, parameters_of(model))


def test_buffers_never_enter_the_way_back(data):
    seen, twin_seen = [], []
    model, twin = tiny_model(), tiny_model()
    gradient = path_gradient(model.parameters(), 0.5)
    with torch.no_grad():
        for name, buffer in twin.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(3)
    twin_gradient = path_gradient(twin.parameters(), 0.5)
    captured(model, data, gradient, seen)
    captured(twin, data, twin_gradient, twin_seen)
    assert all(same(a, b) for a, b in zip(seen, twin_seen, strict=True))


def test_parameters_that_do_not_train_stay_and_do_not_count(data):
    model = tiny_model()
    model.linear.requires_grad_(False)
    weight, seen = model.linear.weight.detach().clone(), []
    gradient = path_gradient(model.parameters(), 0.4)
    with torch.no_grad():
        model.linear.weight.add_(1)  # away from the start, but frozen
    captured(model, data, gradient, seen)
    assert all(torch.equal(point[-2], weight + 1) for point in seen)
    assert torch.equal(model.linear.weight, weight + 1)


def test_the_call_takes_one_pass_a_step_and_copies_no_model(model, data, rng, monkeypatch):
    copies = []
    deepcopy = copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", lambda x, *a: copies.append(x) or deepcopy(x, *a))
    outcome = short()(model, data, rng=rng)
    assert (outcome.cost.forward, outcome.cost.backward) == (4, 4)
    assert len([c for c in copies if isinstance(c, torch.nn.Module)]) == 1
    assert len(outcome.history) == 2
    assert [record["epoch"] for record in outcome.history] == [1, 2]
    assert [record["round"] for record in outcome.history] == [1, 2]


def test_sam_takes_two_passes_a_step(model, data, rng):
    cost = short(BtiSam)(model, data, rng=rng).cost
    assert (cost.forward, cost.backward) == (8, 8)


def test_the_start_is_the_model_handed_in_in_every_round(model, data, rng, monkeypatch):
    goals = []

    def noting(parameters, by):
        goals.append(flat([p.detach() + b for p, b in zip(parameters, by, strict=True)]))
        return moved(parameters, by)

    monkeypatch.setattr("ppr_core.defenses.pam.moved", noting)
    short(clip_to_segment=True, rho=1e6)(model, data, rng=rng)
    assert len(goals) == 4
    for goal in goals:
        torch.testing.assert_close(goal, flat(parameters_of(model)))


def test_the_optimizer_goes_on_from_round_to_round(model, data, rng):
    tuning = {"steps": 3, "batch_size": 48, "momentum": 0.9, "lr": 0.02, "crop": 0, "flip": False}
    two = short(rho=0.0, tuning=tuning, inversion=Nothing())
    one = two.replace(rounds=1, tuning={"steps": 6})
    with session(precision="fp32"):
        twice, once = (method(model, data, rng=rng).model for method in (two, one))
    for a, b in zip(twice.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_frozen_statistics_are_the_ones_handed_in(model, data, rng):
    outcome = short(bn="frozen", rho=1.0)(model, data, rng=rng, validation=data)
    before = dict(model.named_buffers())
    for name, buffer in outcome.model.named_buffers():
        assert torch.equal(buffer, before[name]) or name.endswith("num_batches_tracked")
    assert "val_c_acc_recalibrated" not in outcome.info
    tracked = short(rho=1.0)(model, data, rng=rng).model
    assert not torch.equal(tracked.backbone[1].running_mean, model.backbone[1].running_mean)


def test_recalibrated_statistics_are_those_of_the_clean_set(model, rng):
    data, held = tiny_set(32), tiny_set(16, seed=1)
    settings = {"rho": 4.0, "tuning": {"steps": 3, "batch_size": 32, "lr": 0.1}}
    with session(precision="fp32"):
        tracked = short(**settings)(model, data, rng=rng, validation=held)
        anew = short(**settings, bn="recalibrate")(model, data, rng=rng, validation=held)
    assert same(parameters_of(tracked.model), parameters_of(anew.model))
    stem, norm = anew.model.backbone[0], anew.model.backbone[1]
    maps = stem(anew.model.normalise(to_float(data.images)))
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    for outcome in (tracked, anew):
        assert outcome.info["val_c_acc"] == clean_accuracy(outcome.model, held)
    assert anew.info["val_c_acc"] == anew.info["val_c_acc_recalibrated"]
    assert tracked.info["val_c_acc"] == tracked.info["val_c_acc_tracked"]
    assert anew.info["val_c_acc_tracked"] == tracked.info["val_c_acc"]
    assert anew.info["val_c_acc_recalibrated"] == tracked.info["val_c_acc_recalibrated"]


@pytest.mark.parametrize("cls", [Pam, BtiSam])
def test_the_largest_rho_above_the_floor_is_chosen(cls, data, rng, monkeypatch):
    model, held = tiny_model().eval(), tiny_set(16, seed=1)
    accuracies, tried = [], []

    def tune(self, model, data, state, **given):
        tried.append(self.rho)
        return original(self, model, data, state, **given)

    original = cls.tune
    monkeypatch.setattr(cls, "tune", tune)
    monkeypatch.setattr(selection, "clean_accuracy", lambda *_: accuracies.pop(0))
    accuracies += [80.0, 60.0, 78.0]  # of the model handed in, then of each rho
    method = short(cls, rho_grid=[0.1, 0.9, 0.5], c_acc_drop=2.0)
    outcome = method(model, data, rng=rng, validation=held)
    assert tried == [0.9, 0.5]
    assert outcome.info["rho"] == 0.5
    assert outcome.info["rho_tried"] == {"0.1": None, "0.5": 78.0, "0.9": 60.0}
    assert outcome.info["val_c_acc_floor"] == 78.0
    assert outcome.info["warnings"] == []
    alone = short(cls, rho=0.5)(model, data, rng=rng, validation=held)
    assert same(outcome.model.state_dict().values(), alone.model.state_dict().values())
    assert not any(module._forward_hooks for module in outcome.model.modules())
    strict = short(cls, rho_grid=[0.1, 0.9], c_acc_drop=0.5)
    accuracies += [80.0, 60.0, 79.0]
    outcome = strict(model, data, rng=rng, validation=held)
    assert outcome.info["rho"] == 0.1
    assert outcome.info["warnings"] == ["no rho of the grid kept validation accuracy above 79.50 %"]


@pytest.mark.parametrize("cls", [Pam, BtiSam])
def test_rho_can_be_chosen_by_the_papers_floor(cls, data, rng, monkeypatch):
    accuracies = [91.0, 93.0]
    monkeypatch.setattr(selection, "clean_accuracy", lambda *_: accuracies.pop(0))
    method = short(cls, rho_grid=[0.1, 0.5, 0.9], c_acc_floor=92.0)
    info = method(tiny_model().eval(), data, rng=rng, validation=tiny_set(16, seed=1)).info
    assert (info["rho"], info["val_c_acc_floor"]) == (0.5, 92.0)
    assert info["rho_tried"] == {"0.1": None, "0.5": 93.0, "0.9": 91.0}


def test_choosing_rho_needs_validation_images(model, data, rng):
    method = short(rho_grid=[0.1, 0.5])
    for nothing in (None, data.subset(torch.arange(0))):
        with pytest.raises(DataError, match="expected validation images to choose rho by"):
            method(model, data, rng=rng, validation=nothing)


def test_another_source_plugs_in_by_one_argument(model, data, rng):
    outcome = short(rounds=3)(model, data, rng=rng)
    assert outcome.info == {"calls": 3, "rounds": 3, "warnings": []}
    stamps = []
    real = short(inversion="real")
    assert real.oracle
    assert not short().oracle
    assert real.preparation() is None
    real(model, data, rng=rng, trigger=lambda images: stamps.append(images) or 255 - images)
    assert {images.dtype for images in stamps} == {torch.uint8}
    assert {len(images) for images in stamps} == {int(0.2 * 16 + 1)}
    with pytest.raises(ConfigError, match="expected trigger="):
        real(model, data, rng=rng)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inversion": "guess"}, "unknown trigger source: 'guess'"),
        ({"inversion": {"name": "bti", "widht": 8}}, "Pam.inversion: unknown setting: 'widht'"),
        ({"inversion": {"name": "mesa", "size": 0}}, "Pam.inversion.size: expected greater"),
        ({"inversion": {"width": 0}}, "Pam.inversion.width: expected greater"),
        (
            {"inversion": {"name": "mesa", "schedule": {"lr": -1.0}}},
            "Pam.inversion.schedule.lr: expected greater",
        ),
        ({"rho_grid": [-0.1]}, "greater than or equal to 0"),
        ({"reversed_share": 1.5}, "less than or equal to 1"),
        ({"bn": "off"}, "track_probe"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Pam(**settings)
