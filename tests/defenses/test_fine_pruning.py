import pytest
import torch
from torch import nn

from ppr_core.data.images import to_float
from ppr_core.defenses import FinePruning, fine_pruning
from ppr_core.errors import ConfigError, DataError
from ppr_core.models.base import convolutions
from ppr_core.runtime import session
from tests.conftest import tiny_set

STILL = {"epochs": 0}
PLACES = ["linear_in", "last_conv"]


def weights(model, where):
    """The pruned layer's weights, one row a unit."""
    if where == "linear_in":
        return model.linear.weight.detach().T
    return model.backbone[-1][-1].conv2.weight.detach().flatten(1)


def asleep(model, where):
    return set(torch.nonzero((weights(model, where) == 0).all(1)).flatten().tolist())


def test_activity_is_the_mean_over_all_images(model, data, monkeypatch):
    monkeypatch.setattr(fine_pruning, "EVAL_BATCH", 20)
    with session(precision="fp32"), torch.no_grad():
        maps = model.features(to_float(data.images))
        found = FinePruning().activity(model, data)
        torch.testing.assert_close(found, maps.mean((0, 2, 3)))
        before = model.backbone[:-1](model.normalise(to_float(data.images)))
        block = model.backbone[-1][-1]
        out = block.conv2(torch.relu(block.bn1(block.conv1(before))))
        found = FinePruning(where="last_conv").activity(model, data)
        torch.testing.assert_close(found, out.abs().mean((0, 2, 3)))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("where", PLACES)
def test_the_sleepiest_units_go_first_and_the_last_step_is_undone(where, model, data, rng):
    method = FinePruning(where=where, step_share=0.1, schedule=STILL, select="oracle_c_acc")
    figures = iter([80, 79, 75, 72, 50])  # of 0, 4, 8 and 12 units: 72 is a tenth less, too much
    outcome = method(model, data, rng=rng, score=lambda _: {"c_acc": next(figures)})
    width = len(weights(model, where))
    assert (outcome.info["pruned"], outcome.info["units"]) == (8, width)
    order = method.activity(model, data).argsort()
    assert asleep(outcome.model, where) == set(order[:8].tolist())
    name = "linear.weight" if where == "linear_in" else "backbone.6.0.conv2.weight"
    for key, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]) == (key != name), key
    kept = order[8:]
    assert torch.equal(weights(outcome.model, where)[kept], weights(model, where)[kept])


def test_it_always_leaves_a_unit(model, data, rng):
    method = FinePruning(max_loss=1.0, schedule=STILL, select="oracle_c_acc")
    outcome = method(model, data, rng=rng, score=lambda _: {"c_acc": 50})
    assert outcome.info["pruned"] == 31


@pytest.mark.parametrize("where", PLACES)
def test_pruned_units_stay_asleep_while_the_rest_is_tuned(where, model, data, rng, monkeypatch):
    figures = iter([80, 79, 78, 0])
    monkeypatch.setattr(fine_pruning, "clean_accuracy", lambda *_: next(figures))
    method = FinePruning(where=where, step_share=0.1, schedule={"steps": 3, "batch_size": 16})
    outcome = method(model, data, rng=rng, validation=tiny_set(8))
    assert len(asleep(outcome.model, where)) == 8  # twice 3.2 of 32, rounded up
    awake = sorted(set(range(32)) - asleep(outcome.model, where))
    changed = weights(outcome.model, where)[awake] != weights(model, where)[awake]
    assert changed.any(1).all()
    assert not torch.equal(outcome.model.backbone[0].weight, model.backbone[0].weight)


def test_only_the_test_set_makes_an_oracle(model, data, rng):
    assert not FinePruning().oracle
    assert FinePruning(select="oracle_c_acc").oracle
    with pytest.raises(DataError, match="expected validation images to choose the pruned share"):
        FinePruning()(model, data, rng=rng)
    with pytest.raises(ConfigError, match="expected score="):
        FinePruning(select="oracle_c_acc")(model, data, rng=rng)


def test_a_model_without_the_layer_is_refused(data, rng):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ConfigError, match="expected a model with linear"):
        FinePruning()(plain, data, rng=rng)
    plain.linear = plain[1]
    with pytest.raises(ConfigError, match="expected a model with convolutions"):
        FinePruning(where="last_conv")(plain, data, rng=rng)


def test_shortcuts_are_no_convolutions_of_the_path(model):
    names = [name for name, _ in convolutions(model)]
    assert names[-1] == "backbone.6.0.conv2"
    assert len(names) == 9
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 12
