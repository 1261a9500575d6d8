"""How well a network tells triggered from clean images, against cases computed by hand."""

import pytest
import torch
from torch import nn

from ppr_core.models import build
from ppr_core.separation import margins, separation, with_last_layer


class Bright(nn.Module):
    """Two classes; the second one's margin is the mean pixel, in [0, 255], and an offset."""

    def __init__(self, offset=0.0, sign=1.0):
        super().__init__()
        self.offset, self.sign = nn.Parameter(torch.tensor(offset)), sign

    def forward(self, pixels):
        second = self.sign * 255 * pixels.mean((1, 2, 3)) + self.offset
        return torch.stack([torch.zeros_like(second), second], 1)


def grey(*levels):
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_by_hand():
    """Of 3 x 2 pairs, 4 have the triggered image above, and one has two that are equal."""
    clean, stamped = grey(10, 20, 30), grey(20, 40)
    assert margins(Bright(), clean, 1).tolist() == pytest.approx([10, 20, 30], rel=1e-3)
    assert margins(Bright(), clean, 0).tolist() == pytest.approx([-10, -20, -30], rel=1e-3)
    assert separation(Bright(), clean, stamped, 1) == pytest.approx(100 * 4.5 / 6)
    assert separation(Bright(sign=-1.0), clean, stamped, 1) == pytest.approx(100 * 1.5 / 6)


def test_it_asks_for_no_margin_above_0_and_is_no_rate_of_the_target():
    clean, stamped = grey(*range(0, 50)), grey(*range(100, 150))
    asleep, everything = Bright(-250.0), Bright(250.0)
    assert (margins(asleep, stamped, 1) < 0).all(), "ASR is 0"
    assert separation(asleep, clean, stamped, 1) == 100
    assert (margins(everything, clean, 1) > 0).all(), "ASR is 100, and of clean images, too"
    assert separation(everything, clean, clean, 1) == 50


def test_a_last_layer_put_back_shows_what_the_features_hold():
    """A last layer that was turned round hides the trigger; its features are as they were."""
    victim = build({"name": "resnet18", "width": 4, "blocks": 1}, 2, seed=0).eval()
    turned = build({"name": "resnet18", "width": 4, "blocks": 1}, 2, seed=0).eval()
    with torch.no_grad():
        turned.linear.weight.neg_()
    rng = torch.Generator().manual_seed(0)
    clean, stamped = (
        torch.randint(low, high, (20, 3, 32, 32), generator=rng, dtype=torch.uint8)
        for low, high in ((0, 80), (150, 256))
    )
    seen = separation(victim, clean, stamped, 1)
    assert abs(seen - 50) > 40, "the untrained network reacts to brightness"
    assert separation(turned, clean, stamped, 1) == pytest.approx(100 - seen)
    back = with_last_layer(turned, victim)
    assert separation(back, clean, stamped, 1) == pytest.approx(seen)
    assert not torch.equal(turned.linear.weight, victim.linear.weight), "it is a copy"
