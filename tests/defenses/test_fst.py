import pytest
import torch

from ppr_core.defenses.finetune import FtInit, draw_head
from ppr_core.defenses.fst import Fst, shift_loss
from ppr_core.defenses.parts import selection
from ppr_core.errors import DataError
from tests.conftest import tiny_model, tiny_set

SHORT = {"batch_size": 16, "lr": 0.05}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_norm_of_the_head_is_kept_after_every_step(steps, model, data, rng):
    outcome = Fst(schedule={**SHORT, "steps": steps})(model, data, rng=rng)
    head, old = outcome.model.linear, model.linear
    torch.testing.assert_close(head.weight.norm(), old.weight.norm(), rtol=1e-5, atol=0)
    assert not torch.equal(head.bias, old.bias)


def test_the_penalty_has_gradient_alpha_times_the_old_head(data):
    model = tiny_model().double()
    old = model.linear.weight.detach().clone()
    draw_head(model.linear, torch.Generator().manual_seed(3))
    images = data.images.double() / 255

    def gradient(alpha):
        loss = shift_loss(model, old, alpha)(images, data.labels)
        return torch.autograd.grad(loss, model.linear.weight)[0]

    torch.testing.assert_close(gradient(0.7) - gradient(0.0), 0.7 * old, rtol=1e-9, atol=1e-12)


def test_alpha_zero_is_ft_init_with_the_norm_kept(model, data, rng):
    schedule = {**SHORT, "steps": 3}
    shifted = Fst(schedule=schedule, alpha=0.0)(model, data, rng=rng).model.state_dict()
    plain = FtInit(schedule=schedule, rescale_all=True)(model, data, rng=rng).model.state_dict()
    assert all(torch.equal(shifted[name], plain[name]) for name in plain)
    pushed = Fst(schedule=schedule, alpha=0.5)(model, data, rng=rng).model
    assert not torch.equal(pushed.linear.weight, plain["linear.weight"])


def test_a_larger_alpha_turns_the_head_further_away(model, data, rng):
    def likeness(alpha):
        head = Fst(schedule={**SHORT, "steps": 6}, alpha=alpha)(model, data, rng=rng).model.linear
        return torch.cosine_similarity(head.weight.flatten(), model.linear.weight.flatten(), 0)

    assert likeness(5.0) < likeness(0.5) < likeness(0.0)


@pytest.mark.parametrize(
    ("found", "alpha"), [([90, 87.5], 2.0), ([90, 80, 88], 0.5), ([90, 80, 80, 80], 0.1)]
)
def test_the_largest_alpha_that_keeps_the_accuracy_is_chosen(
    found, alpha, model, data, rng, monkeypatch
):
    accuracies = iter(found)  # of the model handed in, then of each alpha from the largest down
    monkeypatch.setattr(selection, "clean_accuracy", lambda model, held: next(accuracies))
    method = Fst(schedule={**SHORT, "steps": 3}, alpha_grid=[0.1, 2.0, 0.5])
    outcome = method(model, data, rng=rng, validation=tiny_set(8))
    assert outcome.info["alpha"] == alpha
    tried = [outcome.info["alpha_tried"][name] for name in ("2", "0.5", "0.1")]
    assert tried == [*found[1:], None, None][:3]
    assert outcome.info["val_c_acc_floor"] == 87.5
    assert ("warnings" in outcome.info) == (found[-1] < 87.5)
    alone = method.replace(alpha_grid=[], alpha=alpha)(model, data, rng=rng).model.state_dict()
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, alone[name])


def test_alpha_can_be_chosen_by_the_papers_floor(model, data, rng, monkeypatch):
    accuracies = iter([91.0, 92.5])
    monkeypatch.setattr(selection, "clean_accuracy", lambda *_: next(accuracies))
    method = Fst(schedule={**SHORT, "steps": 1}, alpha_grid=[0.1, 2.0, 0.5], c_acc_floor=92.0)
    info = method(model, data, rng=rng, validation=tiny_set(8)).info
    assert (info["alpha"], info["val_c_acc_floor"]) == (0.5, 92.0)


def test_a_grid_needs_images_to_choose_on(model, data, rng):
    with pytest.raises(DataError, match="expected validation images to choose alpha by"):
        Fst(alpha_grid=[0.1, 0.2])(model, data, rng=rng)
