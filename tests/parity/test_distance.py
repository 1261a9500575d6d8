"""What moves weights away from the backdoored ones: weight distortion, Dist-Reg, MC-reg."""

import torch

from ppr_core.defenses import DistReg, McReg, WeightDistortion
from tests.parity import plain
from tests.parity.plain import Adam, cross_entropy, logits, slopes, state, trained
from tests.parity.test_tuning import WHOLE, Mirror, given

__all__ = ["given"]  # a fixture


def test_dist_reg(model, data):
    """arXiv:2505.22310's code; further-methods.md B2, alpha 1: the second step, too.

    CE - alpha * sqrt(mean((w - w0)^2) + 1e-8), the mean over all weights together; Adam, lr 1e-5,
    batch statistics tracked. At the start the distance has no gradient; after a step it has one.
    """
    method = DistReg(schedule={**WHOLE, "steps": 3})
    got = method(model, data, rng=torch.Generator()).model
    x, s, adam = plain.pixels(data.images), state(model), Adam(lr=1e-5)
    start = {name: w.detach().clone() for name, w in trained(s).items()}
    count = sum(w.numel() for w in start.values())
    for step in range(3):
        apart = sum(((w - start[name]) ** 2).sum() for name, w in trained(s).items())
        away = slopes((apart / count + 1e-8) ** 0.5, trained(s))
        assert (plain.length(away) > 0) == (step > 0)
        g = slopes(cross_entropy(logits(s, x, training=True), data.labels), trained(s))
        adam.step(s, {name: g[name] - away[name] for name in g})
    plain.check(got, s)


def test_mc_reg(model, data, given):
    """arXiv:2505.22310's code; further-methods.md B2.

    CE + alpha * max(-CE at (w0 + w) / 2, -gamma), floating buffers halfway, too; the clean images
    and the triggered ones, int(0.1 B + 1) of a batch, by what the first weights say of these.
    """
    method = McReg(inversion=Mirror(), alpha=0.3, tuning={**WHOLE, "steps": 2})
    got = method(model, data, rng=torch.Generator()).model
    x, s, adam = plain.pixels(data.images), state(model), Adam(lr=1e-5)
    start = {name: tensor.detach().clone() for name, tensor in s.items()}
    for mixed, count in given():
        chosen = (mixed != x).flatten(1).any(1)
        assert count == chosen.sum() == 2
        said = logits(start, mixed, training=False).argmax(1)
        halfway = {n: (t + start[n]) / 2 for n, t in s.items() if t.is_floating_point()}
        barrier = cross_entropy(
            logits(halfway, mixed, training=False), torch.where(chosen, said, data.labels)
        )
        loss = cross_entropy(logits(s, x, training=True), data.labels)
        loss = loss + 0.3 * torch.maximum(-barrier, torch.tensor(-50.0))
        adam.step(s, slopes(loss, trained(s)))
    assert len(Mirror.seen) == 2
    plain.check(got, s)


def test_a_barrier_that_is_high_enough_has_no_gradient(model, data):
    still = McReg(inversion=Mirror(), alpha=0.0, tuning={**WHOLE, "steps": 2})
    enough = McReg(inversion=Mirror(), alpha=0.3, gamma=0.0, tuning={**WHOLE, "steps": 2})
    one, two = (m(model, data, rng=torch.Generator()).model for m in (still, enough))
    plain.check(one, {n: t.detach() for n, t in two.state_dict().items()})


def test_weight_distortion(model, data):
    """arXiv:2505.22310's code; further-methods.md B2: N(0, 0.02^2) on each weight, no buffer."""
    model.linear = torch.nn.Linear(5, 4000)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0)
    got = WeightDistortion(schedule={"steps": 0})(model, data, rng=torch.Generator()).model
    for name, tensor in got.named_buffers():
        assert name not in before or torch.equal(tensor, before[name]), name
    for name, weight in got.named_parameters():
        noise = (weight.detach() - 1).flatten()
        assert (noise != 0).all(), name
        wide = 5 * 0.02 / (2 * len(noise)) ** 0.5  # five standard errors of a spread
        assert abs(noise.square().mean().sqrt() - 0.02) < wide, name
