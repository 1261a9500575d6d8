"""One to four steps of what tunes all weights: PAM, SAM, BTI, FST, FT-init, NAD and RA."""

import math
from typing import ClassVar

import pytest
import torch

from ppr_core.defenses import Bti, BtiSam, Fst, FtInit, FtSam, Nad, Pam, finetune, fst
from ppr_core.defenses.sources.base import TriggerSource
from ppr_core.reactivation import retuning
from ppr_core.reactivation.retuning import Retuning
from tests.parity import plain
from tests.parity.plain import Adam, Sgd, cross_entropy, logits, slopes, state, trained

WHOLE = {"batch_size": 15, "crop": 0, "flip": False}


class Mirror(TriggerSource):
    """A known trigger: the image from right to left. It notes the images that it is given."""

    seen: ClassVar[list] = []

    def invert(self, model, data, *, rng, state):
        return {"label": torch.tensor(0)}

    def trigger(self, model, state, stamp):
        def change(pixels):
            self.seen.append(pixels.double())
            return pixels.flip(-1)

        return change


@pytest.fixture
def given(data):
    """The mixed batches of a tuning, in any order: what `Mirror` was given, and the rest."""
    Mirror.seen.clear()
    whole = plain.pixels(data.images)

    def batches():
        for seen in Mirror.seen:
            chosen = (whole[:, None] == seen).flatten(2).all(2).any(1)
            mixed = torch.where(chosen[:, None, None, None], whole.flip(-1), whole)
            yield mixed, int(chosen.sum())

    return batches


def test_pam(model, data, given):
    """Min et al. 2024, Algorithm 1; defenses.md A8.

    W~ = W + rho * (W0 - W) / |W0 - W| over all parameters and no buffer; the gradient at W~ of one
    cross-entropy over a batch with int(0.2 B + 1) reversed images steps W by SGD, lr 0.01,
    momentum 0.1 kept over rounds. Running statistics are those met at W~. 2 rounds of 2 steps.
    """
    method = Pam(inversion=Mirror(), rounds=2, tuning={**WHOLE, "epochs": 2})
    got = method(model, data, rng=torch.Generator()).model
    s, sgd = state(model), Sgd(lr=0.01, momentum=0.1)
    start = {name: w.detach().clone() for name, w in trained(s).items()}
    for mixed, count in given():
        assert count == 4
        back = {name: start[name] - w.detach() for name, w in trained(s).items()}
        factor = 0.5 / (plain.length(back) + 1e-12)
        probe = {**s, **{n: (s[n].detach() + factor * back[n]).requires_grad_() for n in back}}
        loss = cross_entropy(logits(probe, mixed, training=True), data.labels)
        sgd.step(s, slopes(loss, trained(probe)))
        s |= {name: probe[name] for name in s if name not in back}
    assert len(Mirror.seen) == 4
    plain.check(got, s)


def test_bti_sam(model, data, given):
    """Foret et al. 2021, eq. 2; Min et al. 2024, Table 11; defenses.md A7.

    e = rho * g / (|g| + 1e-12) over all parameters; the gradient at W + e, of the same batch with
    int(0.2 B + 1) reversed images, steps W. Both passes update the running statistics.
    """
    method = BtiSam(inversion=Mirror(), rounds=1, tuning={**WHOLE, "epochs": 2})
    got = method(model, data, rng=torch.Generator()).model
    s, sgd = state(model), Sgd(lr=0.01, momentum=0.1)
    for mixed, count in given():
        assert count == 4
        g = slopes(cross_entropy(logits(s, mixed, training=True), data.labels), trained(s))
        factor = 0.1 / (plain.length(g) + 1e-12)
        probe = {**s, **{n: (s[n].detach() + factor * g[n]).requires_grad_() for n in g}}
        loss = cross_entropy(logits(probe, mixed, training=True), data.labels)
        sgd.step(s, slopes(loss, trained(probe)))
        s |= {name: probe[name] for name in s if name not in g}
    assert len(Mirror.seen) == 2
    plain.check(got, s)


@pytest.mark.parametrize("adaptive", [True, False])
def test_ft_sam(adaptive, model, data):
    """Zhu et al. 2023, sec. 3; Kwon et al. 2021, eq. 6; BackdoorBench; defenses.md A4.

    e = rho * T^2 g / (|T g| + 1e-12), T = |w| or 1; only the first pass updates the statistics.
    Labels of 1 - s, the others s / (C - 1); SGD with momentum 0.9 and decay 5e-4; cosine by step.
    """
    method = FtSam(rho=0.7, adaptive=adaptive, schedule={**WHOLE, "epochs": 3})
    got = method(model, data, rng=torch.Generator()).model
    x, s = plain.pixels(data.images), state(model)
    sgd = Sgd(lr=0.01, momentum=0.9, decay=5e-4)
    target = torch.full((15, 3), 0.1 / 2)
    target[torch.arange(15), data.labels] = 0.9

    def loss(weights, track):
        scores = logits(weights, x, training=True, track=track)
        return -(target * (scores - scores.exp().sum(1, keepdim=True).log())).sum(1).mean()

    for step in range(3):
        g = slopes(loss(s, track=True), trained(s))
        scale = {n: s[n].detach().abs() if adaptive else torch.ones_like(s[n]) for n in g}
        factor = 0.7 / (plain.length({n: scale[n] * g[n] for n in g}) + 1e-12)
        move = {n: factor * scale[n] ** 2 * g[n] for n in g}
        probe = {**s, **{n: (s[n].detach() + move[n]).requires_grad_() for n in g}}
        sgd.lr = 0.01 * (1 + math.cos(math.pi * step / 3)) / 2
        sgd.step(s, slopes(loss(probe, track=False), trained(probe)))
    plain.check(got, s)


def test_bti(model, data, given):
    """Xu et al. 2024, sec. 4 (BTI-DBF (U)), and its code; defenses.md A6, step 3.

    CE(f(x~), y) + MSE(features of x, features of x~), int(0.1 B + 1) images of x~ reversed, true
    labels; a gradient through both passes, x first; Adam with lr 1e-4, kept over rounds.
    """
    method = Bti(inversion=Mirror(), rounds=2, tuning={**WHOLE, "epochs": 1})
    got = method(model, data, rng=torch.Generator()).model
    x, s, adam = plain.pixels(data.images), state(model), Adam(lr=1e-4)
    for mixed, count in given():
        assert count == 2
        clean = plain.feature_maps(s, plain.normalised(x), training=True)[-1]
        moved = plain.feature_maps(s, plain.normalised(mixed), training=True)[-1]
        loss = cross_entropy(plain.head(s, moved), data.labels) + ((clean - moved) ** 2).mean()
        adam.step(s, slopes(loss, trained(s)))
    assert len(Mirror.seen) == 2
    plain.check(got, s)


@pytest.fixture
def new_head(monkeypatch):
    """A head in place of the one that is drawn."""
    rng = torch.Generator().manual_seed(3)
    drawn = {"linear.weight": torch.randn(3, 5, generator=rng)}
    drawn["linear.bias"] = torch.randn(3, generator=rng)

    @torch.no_grad()
    def draw(linear, _):
        linear.weight.copy_(drawn["linear.weight"])
        linear.bias.copy_(drawn["linear.bias"])

    monkeypatch.setattr(fst, "draw_head", draw)
    monkeypatch.setattr(finetune, "draw_head", draw)
    return drawn


def test_fst(model, data, new_head):
    """Min et al. 2023, alg. 1 and eq. 3, with its code; defenses.md A5.

    CE + alpha * <w, w_ori>; SGD with momentum 0.9, no decay, cosine by epoch; after each step the
    head's weight, not its bias, is scaled to |w_ori|. The first pass has the head as drawn.
    """
    got = Fst(schedule={**WHOLE, "epochs": 3})(model, data, rng=torch.Generator()).model
    x, s, sgd = plain.pixels(data.images), state(model), Sgd(lr=0.01, momentum=0.9)
    old = s["linear.weight"].detach().clone()
    s |= {name: tensor.clone().requires_grad_() for name, tensor in new_head.items()}
    for epoch in range(3):
        loss = cross_entropy(logits(s, x, training=True), data.labels)
        loss = loss + 0.1 * (s["linear.weight"] * old).sum()
        sgd.lr = 0.01 * (1 + math.cos(math.pi * epoch / 3)) / 2
        sgd.step(s, slopes(loss, trained(s)))
        with torch.no_grad():
            weight = s["linear.weight"]
            weight *= (old**2).sum() ** 0.5 / (weight**2).sum() ** 0.5
    plain.check(got, s)


def test_ft_init(model, data, new_head):
    """Min et al. 2023, sec. 3.2; defenses.md C1.

    A fresh head, then plain tuning of all weights: SGD with momentum 0.9, no decay, cosine by
    epoch, and no scaling of the head.
    """
    got = FtInit(schedule={**WHOLE, "epochs": 2})(model, data, rng=torch.Generator()).model
    x, s, sgd = plain.pixels(data.images), state(model), Sgd(lr=0.01, momentum=0.9)
    s |= {name: tensor.clone().requires_grad_() for name, tensor in new_head.items()}
    for rate in (0.01, 0.005):
        sgd.lr = rate
        loss = cross_entropy(logits(s, x, training=True), data.labels)
        sgd.step(s, slopes(loss, trained(s)))
    plain.check(got, s)


def test_the_head_that_is_drawn(model):
    """Min et al. 2023's code; defenses.md A5: U(-1 / sqrt(d), 1 / sqrt(d)), weight then bias."""
    finetune.draw_head(model.linear, torch.Generator().manual_seed(4))
    rng = torch.Generator().manual_seed(4)
    for tensor in (model.linear.weight, model.linear.bias):
        uniform = torch.rand(tensor.shape, generator=rng)
        torch.testing.assert_close(tensor.detach(), (2 * uniform - 1) / 5**0.5, **plain.CLOSE)


def test_nad(model, data):
    """Li et al. 2021, eq. 1 to 3 with p = 2, and BackdoorBench's weights; defenses.md C5.

    A(F) = sum over channels of F^2, over its norm in space + 1e-6; CE + sum of beta * MSE(A of the
    student, A of the teacher), the teacher tuned before, in eval mode, without a gradient.
    """
    once = {**WHOLE, "epochs": 1}
    method = Nad(betas=[500.0, 1000.0], teacher=once, schedule=once)
    got = method(model, data, rng=torch.Generator()).model
    x, labels = plain.pixels(data.images), data.labels
    teacher, s = state(model), state(model)
    loss = cross_entropy(logits(teacher, x, training=True), labels)
    Sgd(lr=0.01, decay=5e-4).step(teacher, slopes(loss, trained(teacher)))

    def attention(maps):
        energy = (maps**2).sum(1)
        return energy / ((energy**2).sum((1, 2)) ** 0.5 + 1e-6).view(-1, 1, 1)

    ours = plain.feature_maps(s, plain.normalised(x), training=True)
    theirs = plain.feature_maps(teacher, plain.normalised(x), training=False)
    loss = cross_entropy(plain.head(s, ours[-1]), labels)
    for beta, own, other in zip((500, 1000), ours, theirs, strict=True):
        loss = loss + beta * ((attention(own) - attention(other.detach())) ** 2).mean()
    Sgd(lr=0.01, decay=5e-4).step(s, slopes(loss, trained(s)))
    plain.check(got, s)


def test_retuning(model, data, monkeypatch):
    """Min et al. 2024, sec. 3.2, B.2, and its code; defenses.md B2.

    The poisons replace as many clean samples; SGD on the cross-entropy of the mixed set, lr 0.01,
    momentum 0.9, no decay, a constant rate, batch statistics tracked. Two steps.
    """
    drawn = []
    real = retuning.draw
    monkeypatch.setattr(retuning, "draw", lambda *args: drawn.append(real(*args)) or drawn[-1])
    stamped = data.images.flip(-1)
    poisons = data.with_images(stamped).with_labels(torch.zeros_like(data.labels))
    method = Retuning(share=0.6, poisoned=3, schedule={**WHOLE, "epochs": 2})
    got = method(model, data, rng=torch.Generator(), poisons=poisons).model
    clean, stamps = drawn
    assert (len(clean), len(stamps)) == (6, 3)
    assert not stamps.labels.any()
    x = plain.pixels(torch.cat([clean.images, stamps.images]))
    labels, s = torch.cat([clean.labels, stamps.labels]), state(model)
    sgd = Sgd(lr=0.01, momentum=0.9)
    for _ in range(2):
        loss = cross_entropy(logits(s, x, training=True), labels)
        sgd.step(s, slopes(loss, trained(s)))
    plain.check(got, s)
