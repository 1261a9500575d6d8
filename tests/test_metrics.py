import random

import numpy as np
import pytest
import torch
from torch import nn

from ppr_core.connectivity import path, point
from ppr_core.data.images import ImageSet
from ppr_core.errors import ConfigError, DataError
from ppr_core.metrics import (
    attack_success_rate,
    clean_accuracy,
    evaluate,
    logits,
    psnr,
    triggered,
)
from ppr_core.reactivation.perturbation import success_rates, sweep, transfer, within
from ppr_core.weights import snapshot
from tests.conftest import tiny_model, tiny_set


class Always(nn.Module):
    """Answers one class whatever it sees."""

    def __init__(self, answer, classes=4):
        super().__init__()
        self.answer = nn.Parameter(torch.eye(classes)[answer])

    def forward(self, images):
        return self.answer.expand(len(images), -1)


def test_constant_classifiers():
    data = tiny_set(40)
    stamped = triggered(data, lambda images: images, target=0)
    assert len(stamped) == 30
    assert set(stamped.labels.tolist()) == {0}
    assert evaluate(Always(0), data, stamped) == {"c_acc": 25.0, "asr": 100.0}
    assert evaluate(Always(2), data, stamped) == {"c_acc": 25.0, "asr": 0.0}


def test_logits_that_are_nan_are_no_answer():
    data, broken = tiny_set(40), Always(0)
    broken.answer.data[2] = float("nan")
    with pytest.raises(ConfigError, match="got NaN for 40 of 40 images"):
        clean_accuracy(broken, data)


@pytest.mark.parametrize(("classes", "kept"), [(10, 9000), (100, 9900), (200, 9950)])
def test_denominators(classes, kept):
    labels = torch.arange(10_000) % classes
    images = torch.zeros(10_000, 3, 1, 1, dtype=torch.uint8)
    data = ImageSet(images, labels, tuple(map(str, range(classes))))
    assert len(triggered(data, lambda images: images, 0)) == kept


def test_batch_size_and_order_do_not_matter(model, data):
    stamped = triggered(data, lambda images: 255 - images, 0)
    order = torch.randperm(len(stamped), generator=torch.Generator().manual_seed(1))
    assert attack_success_rate(model, stamped) == attack_success_rate(model, stamped.subset(order))


def shift(images, budgets):
    return within(images, torch.ones_like(images), budgets.view(-1, 1, 1, 1, 1))


EVALUATIONS = {
    "logits": lambda model, data, stamped: logits(model, data.images),
    "clean_accuracy": lambda model, data, stamped: clean_accuracy(model, data),
    "attack_success_rate": lambda model, data, stamped: attack_success_rate(model, stamped),
    "evaluate": evaluate,
    "success": lambda model, data, stamped: success_rates({"m": model}, stamped, shift, [0, 0.1]),
    "sweep": lambda model, data, stamped: sweep({"m": model}, data, stamped, shift, [0, 0.1]),
    "transfer": lambda model, data, stamped: transfer({"m": model}, {"other": shift}, stamped),
    "path": lambda model, data, stamped: path(
        model, snapshot(model), snapshot(tiny_model(seed=5)), test=data, stamped=stamped, points=3
    ),
    "point": lambda model, data, stamped: point(
        model, snapshot(model), snapshot(model), 0.5, batch_norm="recalibrate", tune=data
    ),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_leaves_all_as_it_found_it(name, data):
    model = tiny_model().train()
    model.backbone[1].eval()  # mixed modes and flags are put back as they were
    next(model.parameters()).requires_grad_(False)
    stamped = triggered(data, lambda images: 255 - images, 0)

    def found():
        flags = [module.training for module in model.modules()]
        flags += [p.requires_grad for p in model.parameters()]
        tensors = [*snapshot(model).values(), data.images.clone(), stamped.images.clone()]
        return flags, [*tensors, torch.get_rng_state()], random.getstate(), np.random.get_state()[1]

    before = found()
    EVALUATIONS[name](model, data, stamped)
    after = found()
    assert before[0] == after[0]
    assert all(torch.equal(old, new) for old, new in zip(before[1], after[1], strict=True))
    assert before[2] == after[2] and (before[3] == after[3]).all()
    assert all(p.grad is None for p in model.parameters())


def test_modes_come_back_after_an_error(model):
    model.train()
    with pytest.raises(RuntimeError):
        logits(model, torch.zeros(2, 5, 16, 16, dtype=torch.uint8))
    assert all(module.training for module in model.modules())


def test_stamping_leaves_the_images_alone(data):
    before = data.images.clone()
    triggered(data, lambda images: torch.zeros_like(images), 0)
    assert torch.equal(data.images, before)


def test_only_target_images_is_an_error(data):
    with pytest.raises(DataError, match="outside the target class 1"):
        triggered(data.subset(data.labels == 1), lambda images: images, 1)


def test_psnr_by_hand():
    black = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    assert psnr(black, black + 255) == pytest.approx(0.0, abs=1e-5)
    both = torch.cat([black, black]), torch.cat([black + 255, black + 51])
    assert psnr(*both) == pytest.approx(10 * 0.69897, abs=1e-3)  # the mean of 0 and 13.98
    assert psnr(black, black + 51) == pytest.approx(20 * 0.69897, abs=1e-3)  # 255/51 = 5
