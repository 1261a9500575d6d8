"""NAB: pseudo labels, the stamp in training, and the network that stamps what it is given."""

import copy

import pytest
import torch

from ppr_core.data.images import to_float
from ppr_core.defenses.nab import SIDE, Nab, Stamping, nearest_class
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule
from tests.conftest import tiny_model, tiny_set

STILL = Schedule(steps=0)
PLAIN = {"steps": 1, "batch_size": 48, "crop": 0, "flip": False}


def rng():
    return torch.Generator().manual_seed(0)


def test_the_nearest_mean_of_trusted_features():
    features = torch.tensor([[0.0, 0], [0, 1], [5, 5], [5, 6], [0, 0.5], [9, 9]])
    labels = torch.tensor([0, 0, 2, 2, 2, 0])
    found = nearest_class(features, labels, torch.tensor([0, 1, 2, 3]))
    assert found.tolist() == [0, 0, 2, 2, 0, 2]
    by_poisons = nearest_class(features, labels, torch.tensor([4, 5]))
    assert by_poisons.tolist() == [2, 2, 0, 0, 2, 0], "which is why some are not trusted"


def test_a_stamp_is_zero_where_it_is_normalised():
    model, plain = tiny_model().eval(), tiny_model().eval()
    images = torch.rand(3, 3, 16, 16)
    assert Nab().extend(model) is model
    again = Nab().extend(copy.deepcopy(model))
    assert type(again.normalise) is Stamping and not isinstance(plain.normalise, Stamping)
    found, expected = model.normalise(images), plain.normalise(images)
    assert not found[..., :SIDE, :SIDE].any()
    expected[..., :SIDE, :SIDE] = 0
    assert torch.equal(found, expected)
    assert model.state_dict().keys() == plain.state_dict().keys()
    marked = images.clone()
    marked[..., :SIDE, :SIDE] = plain.normalise.mean
    assert torch.allclose(model(images), plain(marked), atol=1e-6)


def test_only_images_whose_label_changes_carry_the_stamp(monkeypatch):
    data, model = tiny_set(), tiny_model()
    changed = torch.zeros(48, dtype=torch.bool)
    changed[[3, 10]] = True
    given = data.with_labels((data.labels + changed) % 4)
    seen = []
    monkeypatch.setattr(model, "forward", lambda images: seen.append(images) or forward(images))
    forward = type(model).forward.__get__(model)
    with session(precision="fp32"):
        Nab(training=PLAIN).train(model, given, changed, rng())
    plain = to_float(data.images)
    marked = plain.clone()
    marked[changed.nonzero().squeeze(1), :, :SIDE, :SIDE] = model.normalise.mean.squeeze(0)
    [batch] = seen
    for image in marked:
        assert (batch - image).abs().amax((1, 2, 3)).min() < 1e-6
    assert not torch.equal(plain, marked)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_it_relabels_what_is_learnt_first(share):
    data = tiny_set()
    method = Nab(features=STILL, isolation=STILL, training=STILL, share=share)
    outcome = method(tiny_model(), data, rng=rng(), build=lambda seed: tiny_model(seed=seed % 99))
    assert len(outcome.tensors["flagged"]) == int(share * 48)
    assert 0 <= outcome.info["stamped"] <= outcome.info["flagged"]
    assert isinstance(outcome.model.normalise, Stamping)
