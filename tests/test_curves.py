"""Quadratic paths: their ends, their gradient, and what training them brings."""

import pytest
import torch
from torch.nn import functional as F

from ppr_core.connectivity import path, point
from ppr_core.curves import bezier, drawn_anew, fit_curve
from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError
from ppr_core.metrics import triggered
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule
from ppr_core.weights import snapshot
from tests.conftest import tiny_model, tiny_set

STARTS, MIDDLES, ENDS = (snapshot(tiny_model(seed=seed)) for seed in (1, 2, 3))
ONCE = Schedule(steps=1, batch_size=64, lr=1.0, momentum=0.0, crop=0, flip=False)


def test_a_curve_ends_at_its_ends_bit_for_bit():
    for t, end in ((0, STARTS), (1, ENDS)):
        state = bezier(STARTS, MIDDLES, ENDS, t)
        assert all(torch.equal(state[name], tensor) for name, tensor in end.items())
    with pytest.raises(CheckpointError, match="difference"):
        bezier(STARTS, {}, ENDS, 0.5)


def test_a_point_of_a_curve_by_hand():
    state = bezier(STARTS, MIDDLES, ENDS, 0.4)
    name = "linear.weight"
    expected = 0.36 * STARTS[name] + 0.48 * MIDDLES[name] + 0.16 * ENDS[name]
    assert torch.allclose(state[name], expected, atol=1e-6)
    assert not torch.allclose(state[name], point(tiny_model(), STARTS, ENDS, 0.4)[name], atol=1e-3)


def test_a_step_of_the_middle_is_the_gradient_at_the_point():
    """M moves by lr * 2t(1-t) * (gradient of cross-entropy + decay * weights) at theta(t)."""
    data, rng = tiny_set(24), torch.Generator().manual_seed(7)
    model = tiny_model()
    with session(precision="fp32"):
        fit_curve(model, STARTS, ENDS, data, ONCE, rng=rng, decay=0.1)
    # `fit` has drawn the shuffle of its one epoch; then the position is drawn.
    again = torch.Generator().manual_seed(7)
    torch.randperm(24, generator=again)
    t = float(torch.rand((), generator=drawn_anew(again)()))
    assert 0.05 < t < 0.95
    middle = {n: (STARTS[n] + tensor) / 2 for n, tensor in ENDS.items()}
    plain = tiny_model(seed=0).train()
    plain.load_state_dict(
        {
            n: (1 - t) ** 2 * STARTS[n] + 2 * t * (1 - t) * middle[n] + t**2 * ENDS[n]
            if end.is_floating_point()
            else end
            for n, end in ENDS.items()
        }
    )
    F.cross_entropy(plain(to_float(data.images)), data.labels).backward()
    weights = dict(plain.named_parameters())
    for name, moved in model.named_parameters():
        slope = weights[name].grad + 0.1 * weights[name].detach()
        expected = middle[name] - 2 * t * (1 - t) * slope
        assert torch.allclose(moved, expected, atol=1e-5), name


def test_positions_are_drawn_anew_each_epoch_and_repeat_after_a_resume():
    rng = torch.Generator().manual_seed(0)
    draw = drawn_anew(rng)
    first = [float(torch.rand((), generator=draw())) for _ in range(3)]
    assert len(set(first)) == 3
    again = drawn_anew(rng)
    assert [float(torch.rand((), generator=again())) for _ in range(3)] == first
    torch.rand(1, generator=rng)  # as the next epoch's shuffle
    assert float(torch.rand((), generator=draw())) not in first


def test_a_trained_curve_lies_lower_than_the_line():
    data = tiny_set(48)
    stamped = triggered(data, lambda images: 255 - images, 0)
    short = Schedule(epochs=12, batch_size=16, lr=0.05, crop=0)
    given = {"test": data, "stamped": stamped, "points": 5, "tune": data}
    model = tiny_model()
    with session(precision="fp32"):
        fit_curve(model, STARTS, ENDS, data, short, rng=torch.Generator().manual_seed(0))
        found = {
            middle is not None: path(
                model, STARTS, ENDS, batch_norm="recalibrate", middle=middle, **given
            )
            for middle in (None, snapshot(model))
        }
    assert found[True].clean_error[0] == found[False].clean_error[0]
    assert found[True].clean_error[2] < found[False].clean_error[2] - 20
