import math

import numpy as np
import pytest
import torch
from torch import nn

from ppr_core import connectivity
from ppr_core.connectivity import Path, barrier, path, point
from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import CheckpointError, ConfigError, DataError
from ppr_core.metrics import evaluate, triggered
from ppr_core.models.base import batch_norms
from ppr_core.runtime import session
from ppr_core.weights import recalibrate, snapshot
from tests.conftest import tiny_model, tiny_set


def trained_like(seed):
    """A model whose running statistics are its data's, so that its answers vary."""
    model, images = tiny_model(seed=seed).eval(), to_float(tiny_set(40, seed=seed).images)
    recalibrate(model, lambda: model(images))
    for _, layer in batch_norms(model):
        layer.num_batches_tracked.fill_(seed)
    return model


A, B = trained_like(1), trained_like(2)
STARTS, ENDS = snapshot(A), snapshot(B)
TEST = tiny_set(40)
STAMPED = triggered(tiny_set(40, seed=3), lambda images: 255 - images, 0)


def line(start=STARTS, end=ENDS, **options):
    options = {"test": TEST, "stamped": STAMPED, "points": 5, **options}
    with session(precision="fp32"):
        return path(tiny_model().eval(), start, end, **options)


def made(backdoor, clean=None, distance=10.0):
    t = [index / (len(backdoor) - 1) for index in range(len(backdoor))]
    return Path(t, backdoor, clean or [5.0] * len(t), distance, "interpolate")


def test_points_are_vectorised_on_cuda_in_bf16_only():
    """The batch norm that CUDA takes in fp32 asks for a memory format, which vmap refuses."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for precision, size in {"auto": 21, "bf16": 21, "fp32": 1}.items():
        with session(precision=precision):
            assert connectivity._together(21, cuda) == size
            assert connectivity._together(21, cpu) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("batch_norm", ["interpolate", "recalibrate", "endpoint"])
def test_a_path_is_the_same_on_a_gpu(precision, batch_norm):
    start, end = ({n: t.cuda() for n, t in state.items()} for state in (STARTS, ENDS))
    test, stamped = TEST.to("cuda"), STAMPED.to("cuda")
    model, options = tiny_model().cuda().eval(), {"batch_norm": batch_norm, "tune": test}
    with session(precision=precision):
        found, alone = (
            path(model, start, end, test=test, stamped=stamped, points=5, together=size, **options)
            for size in (None, 1)
        )
    here = line(**{**options, "tune": TEST})
    for other in (alone, here):  # one image of forty is 2.5 points
        assert found.clean_error == pytest.approx(other.clean_error, abs=7.6)
        assert found.backdoor_error == pytest.approx(other.backdoor_error, abs=7.6)


@pytest.mark.parametrize("together", [None, 1, 2, 3, 9])
def test_the_ends_are_the_end_points_own(together):
    found = line(together=together)
    assert found.t == [0, 0.25, 0.5, 0.75, 1]
    with session(precision="fp32"):
        for index, model in ((0, A), (-1, B)):
            own = evaluate(model, TEST, STAMPED)
            assert found.clean_error[index] == 100 - own["c_acc"]
            assert found.backdoor_error[index] == 100 - own["asr"]
    for errors in (found.clean_error, found.backdoor_error):
        assert errors[0] != errors[-1], "the test could not tell the ends apart"


def test_twenty_one_points_by_default():
    with session(precision="fp32"):
        found = path(A, STARTS, ENDS, test=TEST.subset(torch.arange(4)), stamped=STAMPED)
    assert found.t == [index / 20 for index in range(21)]
    assert len(found.clean_error) == len(found.backdoor_error) == 21


@pytest.mark.parametrize("batch_norm", ["interpolate", "recalibrate", "endpoint"])
def test_vectorised_points_agree_with_single_ones(batch_norm):
    options = {"batch_norm": batch_norm, "tune": tiny_set(24, seed=4)}
    one, many = line(together=1, **options), line(together=3, **options)
    assert one.clean_error == pytest.approx(many.clean_error, abs=2.6)  # one image of forty
    assert one.backdoor_error == pytest.approx(many.backdoor_error, abs=3.4)
    middle = point(A, STARTS, ENDS, 0.5, **options)
    single = tiny_model().eval()
    single.load_state_dict(middle)
    with session(precision="fp32"):
        assert 100 - evaluate(single, TEST, STAMPED)["c_acc"] == one.clean_error[2]


def test_memory_that_does_not_suffice_halves_the_pass(monkeypatch):
    whole, passes = connectivity._hits, []

    def scarce(forward, state, images, size):
        weight = state["linear.weight"]
        count = len(weight) if weight.ndim == 3 else 1
        if count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        passes.append(count)
        return whole(forward, state, images, size)

    expected = line(points=8, together=1)
    monkeypatch.setattr(connectivity, "_hits", scarce)
    found = line(points=8, together=6)
    assert found.clean_error == pytest.approx(expected.clean_error, abs=2.6)
    assert sorted(set(passes)) == [1, 2]
    monkeypatch.setattr(connectivity, "_hits", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        line()


@pytest.mark.parametrize("batch_norm", ["interpolate", "recalibrate"])
def test_paths_are_symmetric(batch_norm):
    options = {"batch_norm": batch_norm, "tune": tiny_set(24, seed=4)}
    there, back = line(points=9, **options), line(ENDS, STARTS, points=9, **options)
    assert there.clean_error == pytest.approx(back.clean_error[::-1], abs=2.6)
    assert there.backdoor_error == pytest.approx(back.backdoor_error[::-1], abs=3.4)
    assert there.distance == pytest.approx(back.distance)
    for errors in (there.clean_error, there.backdoor_error):
        assert max(map(abs, np.subtract(errors, errors[::-1]))) > 3.4, "the test sees no direction"
    with session(precision="fp32"):
        for t in (0.1, 0.5, 0.75):
            state = point(A, STARTS, ENDS, t, **options)
            other = point(A, ENDS, STARTS, 1 - t, **options)
            for name, tensor in state.items():
                if tensor.is_floating_point():
                    assert torch.allclose(tensor, other[name], atol=1e-5), name


def test_a_point_is_a_constant_path():
    same = line(STARTS, STARTS)
    assert len(set(same.clean_error)) == len(set(same.backdoor_error)) == 1
    assert (same.distance, same.backdoor_barrier, same.clean_barrier) == (0, 0, 0)


def test_interpolated_statistics_are_valid():
    for t in (0.0, 0.1, 0.5, 1.0):
        state = point(A, STARTS, ENDS, t)
        for name, tensor in state.items():
            assert not name.endswith("running_var") or (tensor > 0).all()
            assert not name.endswith("num_batches_tracked") or tensor.dtype == torch.int64
    for t, expected in ((0, STARTS), (1, ENDS)):
        state = point(A, STARTS, ENDS, t)
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_endpoint_statistics_are_the_ends_but_at_the_start():
    name = next(name for name in ENDS if name.endswith("running_var"))
    weight = name.replace("running_var", "weight")
    half = point(A, STARTS, ENDS, 0.5, batch_norm="endpoint")
    assert torch.equal(half[name], ENDS[name])
    assert torch.allclose(half[weight], (STARTS[weight] + ENDS[weight]) / 2)
    start = point(A, STARTS, ENDS, 0, batch_norm="endpoint")
    assert torch.equal(start[name], STARTS[name])


def test_recalibration_takes_the_datas_mean_and_leaves_the_weights():
    tune = tiny_set(24, seed=4)
    names = [name for name, _ in A.named_parameters()]
    plain = point(A, STARTS, ENDS, 0.4)
    with session(precision="fp32"):
        state = point(A, STARTS, ENDS, 0.4, batch_norm="recalibrate", tune=tune)
    assert all(torch.equal(plain[name], state[name]) for name in names)
    moved = tiny_model()
    moved.load_state_dict(state)
    layers = [layer for _, layer in batch_norms(moved)]
    means = [layer.running_mean.clone() for layer in layers]
    seen = {}
    for layer in layers:
        layer.register_forward_hook(
            lambda layer, args, output: seen.update({layer: args[0].mean((0, 2, 3))})
        )
    with torch.no_grad():
        moved.train()(to_float(tune.images))  # one pass over all: each layer's own statistics
    assert len(layers) > 3
    for layer, mean in zip(layers, means, strict=True):
        assert torch.allclose(mean, seen[layer], atol=1e-5)
    with pytest.raises(ConfigError, match="clean images to recalibrate on"):
        line(batch_norm="recalibrate")


def test_model_modes_and_random_state_are_left_alone():
    model = tiny_model().train()
    before, state = snapshot(model), torch.random.get_rng_state()
    given = {name: tensor.clone() for name, tensor in STARTS.items()}
    for together in (1, 3):
        path(
            model,
            STARTS,
            ENDS,
            test=TEST,
            stamped=STAMPED,
            points=3,
            batch_norm="recalibrate",
            tune=TEST,
            together=together,
        )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(torch.equal(given[n], t) for n, t in STARTS.items())


def test_a_line_with_known_errors():
    """A model of one weight, positive: class 0; the sign changes two fifths of the way."""

    class Sign(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([weight]))

        def forward(self, images):
            return torch.stack([self.weight, -self.weight], 1).expand(len(images), 2)

    data = ImageSet(
        torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1, 1]), ("a", "b")
    )
    stamped = triggered(data, lambda images: images, 0)
    start, end = snapshot(Sign(1.0)), snapshot(Sign(-1.5))
    for together in (1, 4):
        found = path(Sign(0.0), start, end, test=data, stamped=stamped, points=6, together=together)
        assert found.backdoor_error == [0, 0, *found.backdoor_error[2:3], 100, 100, 100]
        assert found.clean_error[:2] == [75, 75] and found.clean_error[3:] == [25, 25, 25]
        assert found.distance == 2.5


def test_barrier_over_the_chord():
    t = [0, 0.25, 0.5, 0.75, 1]
    assert barrier(t, [0, 25, 50, 75, 100]) == 0
    assert barrier(t, [0, 10, 20, 30, 100]) == 0, "a dip is no barrier"
    assert barrier(t, [0, 90, 50, 75, 100]) == 65
    assert barrier(t, [10, 10, 60, 10, 10]) == 50
    assert barrier([0, 1], [3, 7]) == 0


def test_t_star_and_the_distance_along_the_path():
    awake_until_half = made([0, 0, 10, 90, 100])
    assert awake_until_half.t_star() == 0.75
    assert awake_until_half.path_distance() == 2.5
    assert awake_until_half.t_star(asleep=5) == 1.0
    assert made([0, 95, 95, 10, 95]).t_star() == 1.0, "an awakening on the way does not count"
    assert made([0, 80, 100, 100, 100]).t_star() == 0.25, "q itself counts as asleep"
    assert made([85, 90, 95, 95, 95]).t_star() == 0
    never = made([0, 0, 0, 0, 70])
    assert math.isnan(never.t_star()) and never.path_distance() == 0


def test_rows_and_summary():
    found = made([0, 60, 100], clean=[5, 30, 7])
    assert found.rows()[1] == {
        "t": 0.5,
        "backdoor_error": 60,
        "clean_error": 30,
        "batch_norm": "interpolate",
    }
    assert found.summary() == {
        "backdoor_barrier": 10,
        "clean_barrier": 24,
        "t_star": 1.0,
        "distance": 10.0,
        "path_distance": 0.0,
    }


def test_errors():
    with pytest.raises(ConfigError, match="at least 2 points"):
        line(points=1)
    with pytest.raises(CheckpointError, match=r"difference in \['linear.bias'\]"):
        line({name: t for name, t in STARTS.items() if name != "linear.bias"})
    with pytest.raises(CheckpointError, match="expected linear.bias of shape"):
        line(end=ENDS | {"linear.bias": torch.zeros(7)})
    with pytest.raises(DataError, match="images to evaluate on"):
        line(test=TEST.subset(torch.tensor([], dtype=torch.int64)))
