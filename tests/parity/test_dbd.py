"""DBD's losses on fixed tensors: features, the head, MixMatch; and whose labels are kept."""

import numpy as np
import pytest
import torch
from torch import nn

from ppr_core.defenses import Dbd
from ppr_core.defenses.parts.contrastive import GRAY, blurred, nt_xent, turned, view
from ppr_core.defenses.parts.mixmatch import Unlabelled, interleaved, mix_loss
from tests.parity import plain
from tests.parity.plain import logits, state


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nt_xent():
    """Chen et al. 2020, eq. 1, the anchors the first views alone; further-methods.md A4, 1."""
    drawn = torch.randn(2, 5, 7, generator=rng())
    one, two = drawn / drawn.square().sum(2, keepdim=True).sqrt()
    expected = 0.0
    for i in range(5):
        others = [(one[i] @ two[k] / 0.5).exp() for k in range(5)]
        others += [(one[i] @ one[k] / 0.5).exp() for k in range(5) if k != i]
        expected -= ((one[i] @ two[i] / 0.5).exp() / sum(others)).log() / 5
    torch.testing.assert_close(nt_xent(one, two, 0.5), expected, **plain.CLOSE)


def test_symmetric_cross_entropy():
    """Wang et al. 2019, eq. 6; A4, 2: .1 CE + RCE, p at least 1e-7, the one-hot y at least 1e-4."""
    scores = 4 * torch.randn(6, 3, generator=rng())
    labels = torch.arange(6) % 3
    p = scores.exp() / scores.exp().sum(1, keepdim=True)
    y = torch.full((6, 3), 1e-4)
    y[torch.arange(6), labels] = 1.0
    own = p[torch.arange(6), labels]
    expected = -0.1 * own.log() - (p.clamp_min(1e-7) * y.log()).sum(1)
    torch.testing.assert_close(Dbd().symmetric(scores, labels), expected, **plain.CLOSE)


def test_the_easier_half_keeps_its_labels(model, data):
    s, method = state(model), Dbd()
    each = method.symmetric(logits(s, plain.pixels(data.images), training=False), data.labels)
    expected = torch.zeros(15, dtype=torch.bool)
    expected[each.detach().argsort()[:7]] = True
    assert torch.equal(method.easier(model, data), expected)


class Linear(nn.Module):
    """A network that answers each image by itself, and notes its batches."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12, generator=rng(5)))
        self.seen = []

    def forward(self, pixels):
        self.seen.append(pixels)
        return pixels.flatten(1) @ self.weight.T


def test_mixmatch():
    """Berthelot et al. 2019, eq. 2 to 7; A4, 3: T .5, mixed with a share, batches interleaved."""
    model, count, share, weight = Linear(), 4, 0.7, 3.0
    x, *views = torch.rand(3, count, 3, 2, 2, generator=rng(1))
    labels, order = torch.tensor([0, 2, 1, 1]), torch.randperm(12, generator=rng(2))
    got = mix_loss(
        model, x, labels, tuple(views), order, share, classes=3, sharpening=0.5, weight=weight
    )
    said = sum((v.flatten(1) @ model.weight.T).softmax(1) for v in views) / 2
    guessed = said**2 / (said**2).sum(1, keepdim=True)
    wanted = torch.cat([torch.eye(3)[labels], guessed, guessed])
    pixels = torch.cat([x, *views])
    mixed = share * pixels + (1 - share) * pixels[order]
    wanted = share * wanted + (1 - share) * wanted[order]
    p = (mixed.flatten(1) @ model.weight.T).softmax(1)
    expected = -(wanted[:4] * p[:4].log()).sum(1).mean()
    expected = expected + weight * ((p[4:] - wanted[4:].detach()) ** 2).mean()
    torch.testing.assert_close(got, expected, **plain.CLOSE)
    slope = torch.autograd.grad(got, model.weight)[0]
    guessed = guessed.detach()
    fixed = torch.cat([torch.eye(3)[labels], guessed, guessed])
    fixed = share * fixed + (1 - share) * fixed[order]
    alone = -(fixed[:4] * p[:4].log()).sum(1).mean() + weight * ((p[4:] - fixed[4:]) ** 2).mean()
    torch.testing.assert_close(slope, torch.autograd.grad(alone, model.weight)[0], **plain.CLOSE)
    _, _, *batches = model.seen  # after the two that labels are guessed by
    assert [len(batch) for batch in batches] == [4, 4, 4]
    first = {tuple(image.flatten().tolist()) for image in batches[0]}
    assert not first <= {tuple(image.flatten().tolist()) for image in mixed[:4]}, "both kinds"


def test_interleaving_twice_changes_nothing():
    parts = list(torch.arange(21).split(7))
    assert all(map(torch.equal, interleaved(interleaved(parts)), parts))
    assert not torch.equal(interleaved(parts)[0], parts[0])


def test_what_a_step_draws(data):
    own = rng(3)
    draw = Unlabelled(data, crop=1, flip=True, draw=lambda: own)
    shares = []
    for _ in range(200):
        (one, two), order, share = draw(5, 0.75)
        assert one.shape == two.shape == (5, 3, 8, 8) and len(order) == 15
        shares.append(share)
    assert not torch.equal(one, two)
    assert 0.5 <= min(shares) < 0.55 and max(shares) > 0.95
    drawn = np.random.RandomState(0).beta(0.75, 0.75, 100_000)
    assert np.mean(shares) == pytest.approx(np.maximum(drawn, 1 - drawn).mean(), abs=0.04)


def test_views():
    images = torch.rand(40, 3, 16, 16, generator=rng())
    one, two = view(images, rng(1)), view(images, rng(2))
    assert one.shape == images.shape and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, view(images, rng(1))) and not torch.equal(one, two)
    gray = (one - one[:, :1]).abs().amax((1, 2, 3)) < 1e-6
    assert 1 <= gray.sum() <= 20


def test_a_turned_hue_keeps_the_level_and_a_full_turn_the_image():
    images = torch.rand(3, 3, 4, 4, generator=rng())
    level = torch.tensor(GRAY).view(1, 3, 1, 1)
    moved = turned(images, torch.tensor([0.1, 0.5, 1.0]))
    torch.testing.assert_close((moved * level).sum(1), (images * level).sum(1), rtol=0, atol=1e-8)
    torch.testing.assert_close(moved[2], images[2], rtol=0, atol=1e-8)
    assert (moved[1] - images[1]).abs().max() > 0.1


def test_a_blur_is_a_gaussian_of_three_pixels():
    point = torch.zeros(1, 3, 9, 9)
    point[:, :, 4, 4] = 1
    found = blurred(point, torch.tensor([0.8]))
    near = float(torch.exp(torch.tensor(-1 / (2 * 0.8**2))))
    total = 1 + 2 * near
    assert float(found[0, 1, 4, 4]) == pytest.approx(1 / total**2)
    assert float(found[0, 1, 4, 5]) == pytest.approx(near / total**2)
    assert float(found[0, 1, 3, 5]) == pytest.approx((near / total) ** 2)
    assert float(found.sum()) == pytest.approx(3)
