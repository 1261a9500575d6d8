import pytest
import torch

from ppr_core.defenses.parts import selection
from ppr_core.defenses.parts.selection import strongest
from ppr_core.errors import DataError
from ppr_core.weights import snapshot
from tests.conftest import tiny_set


@pytest.mark.parametrize(
    ("found", "chosen", "tried"),
    [
        ([90, 88], 3.0, {"1": None, "2": None, "3": 88}),
        ([90, 40, 88], 2.0, {"1": None, "2": 88, "3": 40}),
        ([90, 40, 50, 60], 1.0, {"1": 60, "2": 50, "3": 40}),
    ],
)
def test_the_first_that_keeps_the_accuracy_stands(found, chosen, tried, model, monkeypatch):
    measured, start = iter(found), snapshot(model)
    monkeypatch.setattr(selection, "clean_accuracy", lambda *_: next(measured))

    def attempt(setting):
        assert torch.equal(model.linear.weight, start["linear.weight"])
        with torch.no_grad():
            model.linear.weight.add_(setting)
        return f"by {setting}"

    result, info = strongest(model, tiny_set(8), [3.0, 2.0, 1.0], attempt, name="dose", drop=2.0)
    assert result == f"by {chosen}"
    assert torch.equal(model.linear.weight, start["linear.weight"] + chosen)
    assert (info["dose"], info["dose_tried"]) == (chosen, tried)
    assert info["val_c_acc_floor"] == 88
    doubt = "no dose of the grid kept validation accuracy above 88.00 %"
    assert info.get("warnings", []) == ([doubt] if found[-1] < 88 else [])


def test_without_held_out_images_nothing_is_tried(model):
    for nothing in (None, tiny_set(8).subset(torch.arange(0))):
        with pytest.raises(DataError, match="to choose dose by, got none.*an empty dose_grid"):
            strongest(model, nothing, [1.0], pytest.fail, name="dose", drop=2.0)


def test_a_floor_given_replaces_the_drop(model, monkeypatch):
    measured = iter([91.9, 92.0])  # of the attempts alone: the model's own does not matter
    monkeypatch.setattr(selection, "clean_accuracy", lambda *_: next(measured))
    attempts = {"name": "dose", "drop": 50.0, "floor": 92.0}
    result, info = strongest(model, tiny_set(8), [3.0, 2.0, 1.0], str, **attempts)
    assert (result, info["dose"]) == ("2.0", 2.0)
    assert info["dose_tried"] == {"1": None, "2": 92.0, "3": 91.9}
    assert info["val_c_acc_floor"] == 92.0
