import pytest
import torch
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.errors import DataError
from ppr_core.method import Method, Outcome, fork
from ppr_core.weights import snapshot
from tests.conftest import tiny_model


class Zero(Method):
    """Set the head to zero, after three passes forward and one backward."""

    def run(self, model, data, *, rng, extra=None):
        images = to_float(data.images[:8])
        with torch.no_grad():
            model(images)
            model.features(images)
        F.cross_entropy(model(images), data.labels[:8]).backward()
        with torch.no_grad():
            model.linear.weight.zero_()
        return Outcome(model.train(), info={"extra": extra})


def test_the_model_passed_in_is_never_changed(data, rng):
    model = tiny_model().train()
    model.linear.weight.requires_grad_(False)
    before = snapshot(model)
    outcome = Zero()(model, data, rng=rng)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.training
    assert not model.linear.weight.requires_grad
    assert outcome.model.linear.weight.abs().sum() == 0
    assert not outcome.model.training
    assert outcome.model.linear.weight.requires_grad


def test_passes_are_counted(data, rng):
    cost = Zero()(tiny_model(), data, rng=rng).cost
    assert (cost.forward, cost.backward, cost.images) == (3, 1, 24)
    assert cost.seconds > 0


def test_names_are_those_of_run(data, rng):
    assert Zero()(tiny_model(), data, rng=rng, extra=1).info == {"extra": 1}
    with pytest.raises(TypeError, match="trigger"):
        Zero()(tiny_model(), data, rng=rng, trigger=None)


def test_no_data_is_an_error(data, rng):
    with pytest.raises(DataError, match="Zero: expected images"):
        Zero()(tiny_model(), data.subset(torch.tensor([], dtype=torch.int64)), rng=rng)


def test_forks_are_independent_and_draw_nothing(rng):
    state = rng.get_state()
    one, two = fork(rng, "a"), fork(rng, "b", 1)
    assert torch.equal(rng.get_state(), state)
    assert one.initial_seed() == fork(rng, "a").initial_seed() != two.initial_seed()
