"""RNP, and the forgetting that it shares with TSBD."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses import Rnp
from ppr_core.defenses.parts import forgetting
from ppr_core.defenses.parts.forgetting import forget
from ppr_core.errors import ConfigError
from ppr_core.metrics import clean_accuracy
from ppr_core.models.base import batch_norms
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import snapshot

PLAIN = Schedule(epochs=3, batch_size=16, lr=0.05, crop=0, flip=False)
SHORT = {"forgetting": {"epochs": 2, "batch_size": 16}, "schedule": {"steps": 4, "batch_size": 16}}


def climb(model, data, schedule=PLAIN, floor=-1.0, judged="eval", **settings):
    rng = torch.Generator().manual_seed(0)
    return forget(model, data, schedule, floor=floor, judged=judged, rng=rng, **settings)


# -- forgetting ----------------------------------------------------------------------------------


def test_one_step_climbs_the_gradient(model, data):
    once = PLAIN.replace(batch_size=48, steps=1)
    with session(precision="fp32"):
        model.train()
        loss = F.cross_entropy(model(to_float(data.images)), data.labels)
        slope = torch.autograd.grad(loss, model.linear.weight)[0]
        expected = model.linear.weight.detach() + 0.05 * slope
        (record,) = climb(model, data, once)
    torch.testing.assert_close(model.linear.weight.detach(), expected)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("judged", ["training", "eval"])
def test_it_stops_once_enough_is_forgotten(judged, model, data):
    fit(model, data, PLAIN.replace(epochs=20), rng=torch.Generator().manual_seed(1))
    assert clean_accuracy(model, data) > 40
    long = PLAIN.replace(epochs=30, lr=0.005)
    history = climb(model, data, long, floor=30.0, judged=judged)
    assert 1 < len(history) < 30
    accuracies = [record["accuracy"] for record in history]
    assert accuracies.pop() <= 30 < min(accuracies)
    if judged == "eval":
        assert history[-1]["accuracy"] == clean_accuracy(model, data)
    assert [record["epoch"] for record in history] == list(range(1, len(history) + 1))


def test_training_accuracy_is_that_of_the_batches(model, data):
    with session(precision="fp32"):
        (record,) = climb(model, data, PLAIN.replace(steps=2, lr=0.0), judged="training")
        assert 100 * round(record["accuracy"] * 0.32) == pytest.approx(32 * record["accuracy"])
        (record,) = climb(
            model, data, PLAIN.replace(epochs=1, lr=0.0, batch_size=48), judged="training"
        )
        right = (model.train()(to_float(data.images)).argmax(1) == data.labels).float().mean()
    assert record["accuracy"] == pytest.approx(100 * right.item())


def test_the_rate_falls_and_the_momentum_stays(model, data, monkeypatch):
    seen = []
    original = forgetting.fit

    def noting(model, data, schedule, *, optimizer, **hooks):
        seen.append((schedule.lr, schedule.steps, optimizer))
        return original(model, data, schedule, optimizer=optimizer, **hooks)

    monkeypatch.setattr(forgetting, "fit", noting)
    climb(model, data, PLAIN.replace(epochs=4), decay_epoch=2)
    assert [lr for lr, _, _ in seen] == pytest.approx([0.05, 0.05, 0.005, 0.005])
    assert {optimizer for _, _, optimizer in seen} == {seen[0][2]}
    seen.clear()
    climb(model, data, PLAIN.replace(steps=7))
    assert [steps for _, steps, _ in seen] == [3, 3, 1]


def test_a_clipped_step_is_as_long_as_the_bound(model, data):
    before = snapshot(model)
    climb(model, data, PLAIN.replace(steps=1, momentum=0.0, lr=1.0), clip=0.01)
    after = dict(model.named_parameters())
    length = sum((after[name] - before[name]).square().sum() for name in after).sqrt()
    assert length.item() == pytest.approx(0.01, rel=1e-3)


# -- RNP -----------------------------------------------------------------------------------------


def test_the_original_is_pruned_by_masks_of_the_unlearned(model, data, rng):
    before = snapshot(model)
    method = Rnp(**SHORT, select="fixed", tau=0.99)
    state = method.prepare(model, data, rng=rng)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    values = torch.cat(list(state.values()))
    assert 0 <= values.min() < values.max() <= 1
    outcome = method(model, data, rng=rng, state=state)
    pruned = {f"{name}.weight" for name, _ in batch_norms(model)}
    for name, tensor in outcome.model.state_dict().items():
        if name in pruned:
            gone = state[name.removesuffix(".weight")] <= 0.99
            assert torch.equal(tensor, before[name] * ~gone)
        else:
            assert torch.equal(tensor, before[name])
    assert outcome.info["pruned"] == int((values <= 0.99).sum()) > 0


def test_recovery_descends_the_weighted_loss_over_the_masks_alone(model, data, rng):
    """Where nothing is forgotten, one step of recovery is known."""
    plain = {"steps": 1, "batch_size": 48, "crop": 0, "flip": False}
    method = Rnp(forgetting={"epochs": 0}, schedule={**plain, "lr": 1e-3})
    with session(precision="fp32"):
        masks = {
            alpha: method.replace(alpha=alpha).prepare(model, data, rng=rng) for alpha in (0.2, 0.4)
        }
    moved = {alpha: torch.cat(list(found.values())) for alpha, found in masks.items()}
    inside = (moved[0.4] < 1) & (moved[0.2] < 1)
    assert inside.any()
    torch.testing.assert_close(
        (1 - moved[0.4])[inside], 2 * (1 - moved[0.2])[inside], rtol=1e-3, atol=1e-6
    )


def test_recovery_trains_no_weight(model, data, rng):
    before = snapshot(model)
    masks = Rnp(**{**SHORT, "forgetting": {"epochs": 0}}).learn(model, data, rng=rng)
    assert masks.values.min() < 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_thresholds_share_masks_and_settings_of_learning_do_not(rng):
    method = Rnp()
    assert method.preparation() == method.replace(tau=0.1, tau_grid=[0.5]).preparation()
    for change in ({"clip": 20.0}, {"forgotten": 10.0}, {"forgetting": {"epochs": 3}}):
        assert method.preparation() != method.replace(**change).preparation()
    assert method.tau_grid[0] == 0 and method.tau_grid[-1] == 0.9 and len(method.tau_grid) == 19


def test_a_model_without_batch_norm_is_refused(data, rng):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ConfigError, match="Rnp: expected a model with batch norm"):
        Rnp()(plain, data, rng=rng)
