import copy
import math

import pytest
import torch
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses import Sau
from ppr_core.defenses.sau import jensen_shannon, unlike
from ppr_core.metrics import logits as logits_of
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule, fit
from tests.conftest import tiny_model

PLAIN = {"batch_size": 48, "crop": 0, "flip": False}


def scores(*answers):
    """Logits that are sure of these answers, of three classes."""
    return 9.0 * F.one_hot(torch.tensor(answers), 3).float()


@pytest.fixture
def pair(data):
    """A model that has learnt a little, and another that was the same before."""
    old = tiny_model()
    fit(old, data, Schedule(steps=12, batch_size=16), rng=torch.Generator().manual_seed(0))
    new = copy.deepcopy(old)
    fit(new, data, Schedule(steps=6, batch_size=16), rng=torch.Generator().manual_seed(1))
    new.zero_grad()
    return new, old.requires_grad_(False)


def test_the_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    m = (p + q) / 2
    expected = 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
    torch.testing.assert_close(jensen_shannon(p.log(), q.log()), expected.view(1))
    assert jensen_shannon(p.log(), p.log()).abs().item() < 1e-7
    sure = torch.tensor([[200.0, 0.0]])
    assert jensen_shannon(sure, sure.flip(1)).item() == pytest.approx(0.6931, abs=1e-3)


def test_unlikeness_by_hand():
    p = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.0005, 0.9995]])
    got = unlike(p.clamp_min(1e-30).log(), torch.tensor([1, 0, 0]))
    torch.testing.assert_close(got[0], -torch.tensor(0.250001).log())
    assert got[1].item() == pytest.approx(13.8155, abs=1e-4)  # -log(1e-6)
    assert got[2].item() == pytest.approx(0.0009995, abs=1e-6)  # as of p = 0.001


@pytest.mark.parametrize(("p", "slope"), [(0.99999, 0.9090818), (0.5, 0.4999990), (0.0005, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sure_answer_is_still_pushed_away(p, slope, dtype):
    """By the logit, -log(1 + 1e-6 - p) has the slope p (1 - p) / (1 + 1e-6 - p)."""
    odds = torch.tensor(p / (1 - p), dtype=torch.float64).log()
    logits = torch.stack((odds, 0 * odds)).to(dtype)[None].requires_grad_()
    unlike(logits, torch.tensor([0])).sum().backward()
    assert logits.grad[0, 0].item() == pytest.approx(slope, abs=2e-5)


def test_the_search_leaves_out_what_is_done():
    labels = torch.tensor([0, 0, 0, 0])
    new, old = scores(0, 1, 1, 1), scores(0, 0, 1, 2)
    each = F.cross_entropy(new[:1], labels[:1])  # of a sure and right answer
    both_right_once, old_right_again = -0.5 * 2 * each / 4, -0.5 * each / 4
    apart = jensen_shannon(new, old)
    unshared = (apart[0] + apart[1] + apart[3]) / 4  # the third fools both into class 1
    expected = 0.01 * (both_right_once + old_right_again) + unshared
    torch.testing.assert_close(Sau().search_loss(new, old, labels, (labels, labels)), expected)


def test_an_image_fools_a_model_that_changes_its_own_answer():
    """Two images of class 0, which the models take for 1 and 2 when they are clean.

    Perturbed, the first is answered as it was: it fools no one, though the answers are wrong and
    alike. The second is answered 0 by both, the truth: it fools both, and into the same answer.
    """
    labels, clean = torch.tensor([0, 0]), torch.tensor([1, 2])
    perturbed = scores(1, 0)
    surprise = 9 + math.log(1 + 2 * math.exp(-9))  # cross-entropy of a sure and wrong answer
    expected = 0.01 * -(surprise / 2 + surprise / 2) / 2
    got = Sau().search_loss(perturbed, perturbed, labels, (clean, clean))
    assert got.item() == pytest.approx(expected, rel=1e-5)
    assert got.item() == pytest.approx(-0.0450012, abs=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_perturbations_stay_in_the_ball_and_nothing_else_moves(steps, pair, data):
    new, old = pair
    new.train()
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    images = to_float(data.images)
    delta = Sau(bound=0.1, step_size=0.07, search_steps=steps).perturb(
        new, old, images, data.labels
    )
    assert delta.shape == images.shape
    assert delta.abs().max() <= 0.1
    if not steps:
        assert (delta == 0.1).all()
    assert new.training
    assert all(torch.equal(before[name], tensor) for name, tensor in new.state_dict().items())
    assert all(p.grad is None for p in new.parameters())


def test_a_small_step_lowers_the_search_loss(pair, data):
    new, old = (model.double() for model in pair)
    images = to_float(data.images).double()
    losses = []
    for steps in (0, 1):
        method = Sau(bound=0.1, step_size=1e-5, search_steps=steps)
        delta = method.perturb(new, old, images, data.labels)
        at = new(images + delta), old(images + delta)
        answers = new(images).argmax(1), old(images).argmax(1)
        losses.append(method.search_loss(*at, data.labels, answers).item())
    assert losses[1] < losses[0]


def test_the_loss_by_hand(pair, data):
    new, old = pair
    method = Sau(search_steps=1, shared=3.0, robust=0.5, clean=2.0)
    images, labels = to_float(data.images), data.labels
    perturbed = images + method.perturb(new, old, images, labels)
    risk, risky = 0, 0
    clean, moved = old(images).argmax(1), old(perturbed).argmax(1)
    q = new(perturbed).softmax(1)
    for index in range(48):
        if moved[index] not in (labels[index], clean[index]):
            risk = risk - (1 + 1e-6 - q[index, moved[index]].clamp_min(0.001)).log()
            risky += 1
    assert 0 < risky < 48
    expected = 3 * risk / 48 + 0.5 * F.cross_entropy(new(perturbed), labels)
    expected = expected + 2 * F.cross_entropy(new(images), labels)
    torch.testing.assert_close(method.loss(new, old)(images, labels), expected)


def test_without_a_shared_risk_it_is_plain_tuning_in_eval_mode(model, data, rng):
    schedule = Schedule(epochs=3, optimizer="adam", lr=1e-3, amsgrad=True, **PLAIN)
    with session(precision="fp32"):
        got = Sau(shared=0.0, search_steps=0, schedule=schedule)(model, data, rng=rng).model
        expected = copy.deepcopy(model)
        fit(expected, data, schedule, rng=rng, train_mode=False)
        found, wanted = (logits_of(net, data.images) for net in (got, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert torch.equal(got.backbone[1].running_mean, model.backbone[1].running_mean)


def test_statistics_are_of_clean_and_perturbed_images_together(pair, data):
    new, old = (model.double() for model in pair)
    method, images = Sau(search_steps=1), to_float(data.images).double()
    both = torch.cat((images, images + method.perturb(new, old, images, data.labels)))
    mean = new.backbone[0](new.normalise(both)).mean((0, 2, 3))
    expected = 0.9 * new.backbone[1].running_mean + 0.1 * mean
    method.loss(new.train(), old)(images, data.labels)
    torch.testing.assert_close(new.backbone[1].running_mean, expected)


def test_statistics_follow_in_train_mode_only(model, data, rng):
    for train_mode in (False, True):
        method = Sau(train_mode=train_mode, schedule={**PLAIN, "epochs": 1})
        got = method(model, data, rng=rng).model
        same = torch.equal(got.backbone[1].running_var, model.backbone[1].running_var)
        assert same != train_mode
