import pytest
import torch

from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError
from ppr_core.models.base import batch_norms
from ppr_core.weights import distance, interpolate, moved, norm, recalibrate, scaled_to, snapshot
from tests.conftest import tiny_model, tiny_set


def test_moved_restores_bit_for_bit_also_after_an_error(model):
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)  # a frozen weight is restored too
    before = [p.detach().clone() for p in parameters]
    by = [torch.full_like(p, 0.1) for p in parameters]
    with pytest.raises(ZeroDivisionError), moved(parameters, by):
        assert torch.allclose(parameters[0], before[0] + 0.1)
        raise ZeroDivisionError
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_norm_is_one_norm_over_everything():
    tensors = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    assert norm(tensors) == 5.0
    assert norm(scaled_to(tensors, 2.0)) == pytest.approx(2.0)
    assert torch.equal(scaled_to([torch.zeros(2)], 1.0)[0], torch.zeros(2))


def test_interpolation_ends_are_exact_and_paths_are_symmetric():
    start, end = snapshot(tiny_model(seed=0)), snapshot(tiny_model(seed=1))
    for t, expected in ((0, start), (1, end)):
        point = interpolate(start, end, t)
        assert all(torch.equal(point[name], expected[name]) for name in point)
    there, back = interpolate(start, end, 0.3), interpolate(end, start, 0.7)
    assert all(torch.allclose(there[n].double(), back[n].double(), atol=1e-6) for n in there)
    same = interpolate(start, start, 0.5)
    assert all(torch.equal(same[name], start[name]) for name in same)


def test_interpolated_variances_stay_positive(data):
    model = tiny_model()
    model.train()(to_float(data.images))
    point = interpolate(snapshot(tiny_model()), snapshot(model), 0.45)
    assert all((t > 0).all() for name, t in point.items() if name.endswith("running_var"))
    assert all(t.dtype == torch.int64 for name, t in point.items() if name.endswith("tracked"))


def test_other_shapes_are_refused():
    start = snapshot(tiny_model(classes=4))
    with pytest.raises(CheckpointError, match=r"expected linear.weight of shape \(5"):
        interpolate(start, snapshot(tiny_model(classes=5)), 0.5)
    with pytest.raises(CheckpointError, match="difference in"):
        interpolate(start, {}, 0.5)


def test_distance_by_hand():
    zero, one = {"w": torch.zeros(4), "b": torch.zeros(1)}, {"w": torch.ones(4), "b": torch.ones(1)}
    assert distance(zero, one, ["w"]) == 2.0


def test_recalibration_gives_the_data_mean_and_no_parameter_changes():
    model, data = tiny_model().eval(), tiny_set(32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = []
    _, first = next(iter(batch_norms(model)))
    hook = first.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    recalibrate(model, lambda: [model(to_float(part)) for part in data.images.split(16)])
    hook.remove()
    expected = torch.stack([part.mean((0, 2, 3)) for part in seen]).mean(0)
    assert torch.allclose(first.running_mean, expected, atol=1e-5)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(layer.training for _, layer in batch_norms(model))
    assert first.momentum == 0.1
