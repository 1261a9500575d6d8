import copy

import pytest
import torch
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses.finetune import Ft
from ppr_core.defenses.ft_sam import FtSam, balanced
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule

STILL = {"steps": 1, "batch_size": 16, "lr": 0.0}


def test_statistics_follow_the_first_pass_only(model, data, rng):
    moved = FtSam(rho=5.0, schedule=STILL)(model, data, rng=rng).model.state_dict()
    once = Ft(schedule={**STILL, "decay_by": "step"})(model, data, rng=rng).model.state_dict()
    for name in once:
        if name.endswith(("running_mean", "running_var")):
            assert torch.equal(moved[name], once[name])
        if name.endswith("num_batches_tracked"):
            assert (moved[name], once[name]) == (2, 1)


def test_rho_zero_is_plain_fine_tuning(model, data, rng):
    schedule = FtSam().schedule.replace(steps=3, batch_size=16, lr=0.05)
    sam = FtSam(rho=0.0, schedule=schedule)(model, data, rng=rng).model
    plain = Ft(smoothing=0.1, schedule=schedule)(model, data, rng=rng).model
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, sam.get_parameter(name))
    other = FtSam(rho=0.5, schedule=schedule)(model, data, rng=rng).model
    assert not torch.equal(other.linear.weight, plain.linear.weight)


@pytest.mark.parametrize("adaptive", [True, False])
def test_one_step_by_hand(adaptive, model, data, rng):
    schedule = {"steps": 1, "batch_size": 48, "lr": 0.1, "weight_decay": 0.0}
    method = FtSam(
        rho=0.5, adaptive=adaptive, smoothing=0.0, schedule={**schedule, "crop": 0, "flip": False}
    )
    model.double()  # pixels follow: the batch's order then leaves no trace
    with session(precision="fp32"):
        result = method(model, data, rng=rng).model
    by_hand = copy.deepcopy(model).train()

    def gradients():
        by_hand.zero_grad()
        F.cross_entropy(by_hand(to_float(data.images)), data.labels).backward()
        return [p.grad.clone() for p in by_hand.parameters()]

    weights = [p.detach().clone() for p in by_hand.parameters()]
    scales = [w.abs() if adaptive else torch.ones_like(w) for w in weights]
    first = gradients()
    length = torch.cat([(s * g).flatten() for s, g in zip(scales, first, strict=True)]).norm()
    with torch.no_grad():
        for p, s, g in zip(by_hand.parameters(), scales, first, strict=True):
            p += 0.5 * s**2 * g / length
    second = gradients()
    for p, w, g in zip(result.parameters(), weights, second, strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * g, rtol=1e-6, atol=1e-9)


def test_two_passes_a_step(model, data, rng):
    cost = FtSam(schedule={"steps": 3, "batch_size": 16})(model, data, rng=rng).cost
    assert (cost.forward, cost.backward) == (6, 6)


def test_the_published_rate_swings():
    swing = Schedule(lr=0.01, decay="cosine", decay_by="step", half_wave=100)
    rates = [swing.rate(step, 10, 1000) for step in (0, 50, 100, 200)]
    assert rates == pytest.approx([0.01, 0.005, 0.0, 0.01])
    assert FtSam().schedule.rate(1000, 10, 1000) == pytest.approx(0.0)


def test_balanced_draw(rng):
    labels = torch.tensor([0] * 5 + [1] * 2 + [3] * 9)  # class 2 is missing
    index = balanced(labels, rng)
    assert labels[index].bincount().tolist() == [2, 2, 0, 2]
    assert len(index.unique()) == 6


def test_balanced_tuning_uses_fewer_images(model, data, rng):
    odd = data.subset(torch.cat([torch.arange(48), torch.arange(0, 48, 4)]))
    method = FtSam(balanced=True, schedule={"epochs": 1, "batch_size": 16})
    assert method(model, odd, rng=rng).info["images"] == 48
