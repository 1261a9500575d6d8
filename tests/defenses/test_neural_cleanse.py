import pytest
import torch
from torch import nn

from ppr_core.data.images import to_float
from ppr_core.defenses import NeuralCleanse, Pam
from ppr_core.defenses.sources.cleanse import Cleanse, Patch, _Pace, anomaly, flag, put
from ppr_core.weights import snapshot

SEARCH = {"epochs": 40, "batch_size": 48, "crop": 0, "flip": False}
TUNING = {"steps": 3, "batch_size": 16}
REACH = {0: 64, 1: 64, 2: 4, 3: 64}  # pixels that a class looks at


@pytest.fixture
def rigged():
    """A model that answers 2 to four bright pixels; every other class takes a quarter image."""
    linear = nn.Linear(3 * 16 * 16, 4, bias=False)
    weight = torch.zeros(4, 3, 16, 16)
    for label, pixels in REACH.items():
        side = int(pixels**0.5)
        top, left = 8 * (label // 2), 8 * (label % 2)
        weight[label, :, top : top + side, left : left + side] = 60 / (3 * pixels)
    with torch.no_grad():
        linear.weight.copy_(weight.flatten(1))
    return nn.Sequential(nn.Flatten(), linear)


@pytest.fixture
def found(rigged, data, rng):
    return Cleanse(schedule=SEARCH, weight=0.01).invert(rigged, data, rng=rng, state={})


# -- which class stands out -----------------------------------------------------------------------


def test_the_anomaly_index_by_hand():
    norms = torch.tensor([10.0, 12.0, 11.0, 13.0, 3.0])  # median 11, deviations 1 1 0 2 8
    expected = (11 - norms) / 1.4826
    torch.testing.assert_close(anomaly(norms), expected)
    assert flag(norms, 2.0).tolist() == [4]
    assert flag(norms, 6.0).tolist() == []
    assert flag(torch.tensor([50.0, 2.0, 51.0, 1.0, 52.0, 50.0, 49.0]), 2.0).tolist() == [3, 1]


def test_equal_patches_are_no_anomaly():
    assert flag(torch.full((5,), 7.0), 2.0).tolist() == []


# -- the search -----------------------------------------------------------------------------------


def test_the_class_that_a_small_patch_reaches_is_found(rigged, data, found):
    assert found["flagged"].tolist() == [2]
    assert found["norms"].argmin() == 2
    assert found["norms"][2] < 8 < found["norms"][[0, 1, 3]].min()
    assert found["masks"].min() > 0
    assert found["masks"].max() < 1
    assert found["masks"].shape == (1, 1, 16, 16) and found["patterns"].shape == (1, 3, 16, 16)
    change = Cleanse().trigger(rigged, found, None)
    reached = rigged(change(to_float(data.images))).argmax(1) == 2
    assert reached.float().mean() >= 0.98
    inside = found["masks"][0, 0, 8:10, 0:2].sum()
    assert inside > 0.3 * found["masks"].sum()


def test_the_model_is_left_as_it_is(rigged, data, rng):
    before = snapshot(rigged)
    Cleanse(schedule={**SEARCH, "epochs": 1}).invert(rigged, data, rng=rng, state={})
    assert torch.equal(rigged[1].weight, before["1.weight"])
    assert rigged[1].weight.requires_grad and rigged[1].weight.grad is None


def test_the_weight_of_the_norm_follows_the_success():
    pace = _Pace(Cleanse(weight=1.0, patience=2, stop_patience=3, raise_by=2.0, lower_by=4.0))
    none = Patch(None, None, 256.0, 0.0)
    weights = []
    for success in (0.99, 0.99, 0.5, 0.99, 0.99, 0.5, 0.5, 0.5, 0.5):
        assert not pace.over(success, none)
        weights.append(pace.weight)
    assert weights == [1, 2, 2, 2, 4, 4, 1, 1, 0.25]


def test_it_stops_when_the_weight_went_both_ways_and_nothing_is_gained():
    pace = _Pace(Cleanse(patience=1, stop_patience=3))
    sizes = (100.0, 98.0, 97.5, 97.0, 96.9, 96.8)  # gains of a percent: the first two
    over = [pace.over(0.99, Patch(None, None, size, 1.0)) for size in sizes]
    assert not any(over)  # the weight only rose
    assert pace.over(0.5, Patch(None, None, 96.8, 1.0))
    pace = _Pace(Cleanse(patience=1, stop_patience=3))
    pace.over(0.5, Patch(None, None, 256, 0.0))
    over = [pace.over(0.99, Patch(None, None, size, 1.0)) for size in sizes]
    assert over.index(True) == 4


def test_no_class_that_stands_out_leaves_the_model_alone(model, data, rng):
    blind = Cleanse(schedule={"epochs": 1, "batch_size": 48}, wanted=1.0, limit=1e9)
    outcome = NeuralCleanse(inversion=blind, tuning=TUNING)(model, data, rng=rng)
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert outcome.info["flagged"] == []
    assert outcome.info["rounds"] == 0
    assert outcome.info["warnings"] == ["no class stands out: the model is left as it is"]
    state = blind.replace(fallback=True).invert(model, data, rng=rng, state={})
    assert state["flagged"].tolist() == [int(state["norms"].argmin())]
    assert blind.findings(state)["warnings"] == [
        "uncertain label: no class stands out, and the smallest patch was taken"
    ]
    apart = state | {"norms": torch.tensor([1.0, 90.0, 100.0, 110.0])}
    assert "warnings" not in blind.replace(limit=2.0).findings(apart)


def test_later_rounds_search_the_flagged_and_keep_a_patch_that_is_not_bettered(
    rigged, data, rng, found
):
    quick = Cleanse(schedule={**SEARCH, "epochs": 1}, weight=0.01)
    again = quick.replace(wanted=0.0).invert(rigged, data, rng=rng, state=found)
    assert again["masks"].shape == found["masks"].shape
    assert not torch.equal(again["masks"], found["masks"])
    unlucky = quick.search(nn.Sequential(rigged, Never()), data, 2, rng=rng)
    assert (unlucky.turned, unlucky.norm) == (0, 256)
    kept = quick.invert(nn.Sequential(rigged, Never()), data, rng=rng, state=found)
    assert torch.equal(kept["masks"], found["masks"])
    assert torch.equal(kept["flagged"], found["flagged"])


class Never(nn.Module):
    """Answer 0, whatever comes."""

    def forward(self, scores):
        return torch.cat([scores[:, :1].detach() + 1e3, scores[:, 1:]], 1)


# -- the patch as a trigger -----------------------------------------------------------------------


def test_patches_blend_by_hand():
    pixels = torch.full((1, 3, 1, 2), 0.5)
    got = put(pixels, torch.tensor([[[0.0, 0.5]]]), torch.ones(3, 1, 2))
    torch.testing.assert_close(got[0, 0, 0], torch.tensor([0.5, 0.75]))


def test_of_several_patches_each_goes_on_its_share(model):
    state = {"masks": torch.ones(2, 1, 16, 16), "patterns": torch.zeros(2, 3, 16, 16)}
    state["patterns"][1] = 1
    got = Cleanse().trigger(model, state, None)(torch.full((5, 3, 16, 16), 0.5))
    assert got[:, 0, 0, 0].tolist() == [0, 1, 0, 1, 0]


# -- unlearning -----------------------------------------------------------------------------------


def test_both_defenses_take_it_as_a_source(model, data, rng):
    source = {"name": "neural_cleanse", "fallback": True, "schedule": {"steps": 1}}
    for cls, named in ((Pam, source), (NeuralCleanse, dict(list(source.items())[1:]))):
        method = cls(inversion=named, tuning=TUNING, rounds=2)
        assert isinstance(method.inversion, Cleanse)
        assert not method.oracle
        outcome = method(model, data, rng=rng)
        assert outcome.info["rounds"] == 2
        assert outcome.info["label"] in range(4)
        assert not torch.equal(outcome.model.linear.weight, model.linear.weight)


def test_the_search_is_shared_by_ways_to_step(model):
    cleanse = NeuralCleanse()
    assert cleanse.preparation() == Pam(inversion="neural_cleanse").preparation()
    assert cleanse.preparation() == cleanse.replace(tuning=TUNING).preparation()
    assert cleanse.preparation() != cleanse.replace(inversion={"limit": 3.0}).preparation()
