"""TSC: which order it leaves in, which it comes back in, and where it stops on a curve."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ppr_core.alignment import correlations, streams
from ppr_core.data.images import to_float
from ppr_core.defenses import Tsc
from ppr_core.errors import ConfigError
from ppr_core.models import ResNet18
from ppr_core.models.base import clone
from ppr_core.models.torchvision_nets import VitB16
from ppr_core.runtime import session
from ppr_core.weights import distance, snapshot
from tests.conftest import tiny_model, tiny_set

STILL = {"steps": 0}
METHOD = Tsc(rounds=1, curve=STILL, tuning=STILL)


def test_it_leaves_by_the_least_and_comes_back_by_the_largest_correlation(model, data):
    other = tiny_model(seed=1).eval()
    found = streams(model, to_float(data.images[:2]))
    with session(precision="fp32"):
        scores = correlations(found, other, model, data)
        expected = model(to_float(data.images))
        for largest in (False, True):
            state = METHOD.ordered(other, model, data, largest=largest)
            moved = clone(model)
            moved.load_state_dict(state)
            assert torch.allclose(moved(to_float(data.images)), expected, atol=1e-5)
            _, columns = linear_sum_assignment(scores[0].numpy(), maximize=largest)
            first = model.state_dict()["backbone.0.weight"][columns.tolist()]
            assert torch.equal(state["backbone.0.weight"], first)


def test_a_round_without_training_is_two_points_of_two_curves(model, data):
    """The middle stays halfway: theta(t) = (1 - t) start + t end, then statistics anew."""
    with session(precision="fp32"):
        got = METHOD(model, data, rng=torch.Generator().manual_seed(0)).model
        far = METHOD.ordered(model, model, data, largest=False)
        start, names = snapshot(model), [name for name, _ in model.named_parameters()]
        point = clone(model)
        point.load_state_dict(
            {n: 0.36 * w + 0.48 * (w + far[n]) / 2 + 0.16 * far[n] for n, w in start.items()}
        )
        images = to_float(data.images)
        relearnt(point, images)
        near = METHOD.ordered(point, model, data, largest=True)
        at = point.state_dict()
        for name in names:
            expected = 0.36 * near[name] + 0.48 * (near[name] + at[name]) / 2 + 0.16 * at[name]
            assert torch.allclose(got.state_dict()[name], expected, atol=1e-6), name
        assert distance(start, got.state_dict(), names) > 0.1
        told = {n: t.clone() for n, t in got.state_dict().items() if "running" in n}
        relearnt(got, images)
        assert all(torch.allclose(got.state_dict()[n], t, atol=1e-6) for n, t in told.items())


def relearnt(model, images):
    """Take batch-norm statistics as those of one pass over all images."""
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.momentum = 1.0
    model.train()(images)
    model.eval()


def test_a_model_whose_channels_have_no_order_is_refused_before_a_study_runs():
    bare = VitB16(pretrained=False, width=12, depth=1, size=32).skeleton(4)
    with pytest.raises(ConfigError, match="to permute its channels, got"):
        METHOD.check(bare, tiny_set(4, size=32))


def test_it_serves_the_skeleton_of_a_model():
    METHOD.check(ResNet18(width=4).skeleton(4), tiny_set(4))
