import pytest
import torch

from ppr_core.behaviour import need_behaviour
from ppr_core.config import from_registry
from ppr_core.errors import CheckpointError
from ppr_core.metrics import clean_accuracy
from ppr_core.models import MODELS
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import read
from tests.conftest import tiny_set, torchvisions

CLASSES = 4


def test_a_missing_max_pool_is_caught_by_what_the_model_does(tmp_path):
    """Names and shapes fit both; the C-Acc that its maker reports tells them apart."""
    data = tiny_set(64, size=32)
    pooled = from_registry(
        MODELS, {"name": "resnet18_pooled", "stem": 3, "width": 4, "blocks": 1}, "model"
    ).build(CLASSES, seed=0)
    rng = torch.Generator().manual_seed(0)
    fit(pooled, data, Schedule(steps=40, batch_size=32, lr=0.05, crop=0, flip=False), rng=rng)
    reported = clean_accuracy(pooled, data)
    assert reported > 80
    state = torchvisions(pooled)
    torch.save(state, tmp_path / "theirs.pt")
    spec = {"name": "resnet18", "width": 4, "blocks": 1}
    model = from_registry(MODELS, spec, "model").build(CLASSES, seed=1)
    model.load_state_dict(read(tmp_path / "theirs.pt", model))  # goes through: silently wrong
    found = {"c_acc": clean_accuracy(model.eval(), data)}
    with pytest.raises(CheckpointError, match="expected C-Acc .* within 1 points") as caught:
        need_behaviour(found, CLASSES, c_acc=reported, state=state)
    assert "fits resnet18 with width=4 and blocks=1, and resnet18_pooled with" in str(caught.value)
    need_behaviour({"c_acc": reported}, CLASSES, c_acc=reported)


def test_a_model_near_chance_is_not_judged():
    need_behaviour({"c_acc": 32.5}, 10)
    with pytest.raises(CheckpointError, match=r"expected a C-Acc of 32\.5 or more .* got 18\.7"):
        need_behaviour({"c_acc": 18.7, "asr": 52.8}, 10)
    need_behaviour({"c_acc": 18.7}, 10, c_acc=19.0)  # who expects it has his reasons


def test_an_expected_asr_is_held():
    need_behaviour({"c_acc": 92.0, "asr": 96.1}, 10, c_acc=91.5, asr=95.0)
    with pytest.raises(CheckpointError, match="expected ASR 95 within 2 points, got 52.8"):
        need_behaviour({"c_acc": 92.0, "asr": 52.8}, 10, asr=95.0)
    with pytest.raises(CheckpointError, match="expected ASR 95 within 2 points, got nan"):
        need_behaviour({"c_acc": 92.0}, 10, asr=95.0)
