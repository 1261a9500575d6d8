import pytest
import torch

from ppr_core.defenses import DistReg, dist_reg
from ppr_core.weights import snapshot
from tests.conftest import tiny_set

SHORT = {"epochs": 3, "steps": None, "batch_size": 16, "lr": 1e-3}


@pytest.mark.parametrize(
    ("found", "kept"), [([90, 79], 0), ([90, 85, 79], 1), ([90, 85, 84, 83], 3)]
)
def test_the_epoch_that_costs_too_much_is_undone(found, kept, model, data, monkeypatch):
    """A model that the first one already breaks is the one that came, which its row must say."""
    measured, seen = iter(found), [snapshot(model)]

    def accuracy(tuned, images):
        seen.append(snapshot(tuned))
        return next(measured)

    monkeypatch.setattr(dist_reg, "clean_accuracy", accuracy)
    outcome = DistReg(schedule=SHORT)(
        model, data, rng=torch.Generator(), validation=tiny_set(8, seed=1)
    )
    after = seen[1 + kept]  # seen at the start, before the floor, and after each epoch
    assert all(torch.equal(t, after[name]) for name, t in outcome.model.state_dict().items())
    assert len(outcome.history) == kept
    assert outcome.info["stopped"] == (kept < 3)
    assert outcome.info.get("warnings", []) == ([] if kept else [dist_reg.TOO_FAST])
