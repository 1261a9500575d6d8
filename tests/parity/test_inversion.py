"""BTI-DBF's inversion: the mask, the generator's pretraining and the two losses of its search."""

import pytest
import torch
from torch import nn

from ppr_core.defenses.sources import inversion
from ppr_core.defenses.sources.decoupling import decoupled
from ppr_core.defenses.sources.inversion import Inversion
from ppr_core.models.base import clone
from tests.parity import plain
from tests.parity.plain import Adam, Sgd, cross_entropy, slopes, state

WHOLE = {"batch_size": 15, "crop": 0, "flip": False}


def opened(theta):
    """Return the mask: tanh(theta) / (2 + 1e-7) + 0.5."""
    return theta.tanh() / (2 + 1e-7) + 0.5


def test_the_mask(model, data):
    """Xu et al. 2024, eq. 2, and its code; defenses.md A6, step 1.

    One mask for all images falls along CE(head(m * f), y) - CE(head((1 - m) * f), y) by Adam, lr
    0.01; no weight of the classifier moves, and its statistics drift, as it is in train mode.
    """
    schedule = Inversion().decouple.replace(**WHOLE, steps=3)
    frozen, rng = clone(model).requires_grad_(False), torch.Generator().manual_seed(5)
    found = decoupled(frozen, data, schedule, rng=rng)
    rng = torch.Generator().manual_seed(5)
    theta = {"theta": torch.randn(1, 5, 4, 4, generator=rng).requires_grad_()}
    x, s, adam = plain.normalised(plain.pixels(data.images)), state(model), Adam(lr=0.01)
    for _ in range(3):
        maps, m = plain.feature_maps(s, x, training=True)[-1].detach(), opened(theta["theta"])
        loss = cross_entropy(plain.head(s, m * maps), data.labels)
        loss = loss - cross_entropy(plain.head(s, (1 - m) * maps), data.labels)
        adam.step(theta, slopes(loss, theta))
    torch.testing.assert_close(found, theta["theta"].detach(), **plain.CLOSE)
    plain.check(frozen, s)


def near_identity(spread):
    """Return what makes a generator of 1x1: the identity and a little more."""

    def fresh(*_):
        net, rng = nn.Conv2d(3, 3, 1), torch.Generator().manual_seed(6)
        with torch.no_grad():
            drawn = torch.eye(3) + spread * torch.randn(3, 3, generator=rng)
            net.weight.copy_(drawn[..., None, None])
            net.bias.copy_(spread * torch.randn(3, generator=rng))
        return net

    return fresh


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("spread", "bounds", "broken"),
    [
        (0.3, {"norm_bound": 100.0, "feat_bound": 100.0}, False),
        (0.3, {"norm_bound": 1e-6, "feat_bound": 100.0}, True),
        (0.05, {"norm_bound": 100.0, "feat_bound": 1e-9}, True),
    ],
)
def test_the_generator(spread, bounds, broken, rule, model, data, monkeypatch):
    """Xu et al. 2024, eq. 3 to 5, and its code; defenses.md A6, steps 0 and 2.

    Before: CE of softmax(head(f)) as logits against softmax(head(f')), + MSE(f, f') + w *
    MSE(x, G(x)), w = 100 above 0.1 and 0.01 below, Adam with lr 1e-3. Search: MSE(x, G(x)) where
    it or Lb is above its bound, else 0.01 Lb - Lt, of Lb = MSE(m f, m f') and Lt = the same of
    1 - m; from round 2 on also CE(h(G(x)), label). Its Adam goes on over the rounds; the
    classifier is in eval mode, with the statistics that the mask's pass has left.

    Adam's own steps hardly change with the scale of a loss: plain SGD shows the weights.
    """
    monkeypatch.setattr(inversion, "fresh", near_identity(spread))
    plainly = {} if rule == "adam" else {"optimizer": "sgd", "momentum": 0.0}
    budgets = {
        "pretrain": {**WHOLE, **plainly, "epochs": 1},
        "generate": {**WHOLE, **plainly, "epochs": 2},
    }

    def updates():
        return Adam(lr=1e-3) if rule == "adam" else Sgd(lr=1e-3)

    method = Inversion(decouple={**WHOLE, "steps": 1}, **budgets, **bounds)
    rounds = [method.invert(model, data, rng=torch.Generator(), state={})]
    rounds.append(method.invert(model, data, rng=torch.Generator(), state=rounds[0]))

    x, s = plain.normalised(plain.pixels(data.images)), state(model)
    net = near_identity(spread)().state_dict()
    g = {name: tensor.clone().requires_grad_() for name, tensor in net.items()}

    def passed(s):
        made = torch.einsum("oi,nihw->nohw", g["weight"][..., 0, 0], x) + g["bias"].view(3, 1, 1)
        before = plain.feature_maps(s, x, training=False)[-1].detach()
        return before, plain.feature_maps(s, made, training=False)[-1], ((made - x) ** 2)

    before, after, image = passed(s)
    far = image.mean() > 0.1
    assert far == (spread == 0.3)
    soft, target = plain.head(s, before).softmax(1), plain.head(s, after).softmax(1)
    label = -(target * (soft - soft.exp().sum(1, keepdim=True).log())).sum(1).mean()
    loss = label + ((after - before) ** 2).mean() + (100 if far else 0.01) * image.mean()
    updates().step(g, slopes(loss, g))

    going_on = updates()
    for number, found in enumerate(rounds):
        m, drifted = opened(found["mask_logits"]), state(model)
        plain.feature_maps(drifted, x, training=True)
        for _ in range(2):
            before, after, image = passed(drifted)
            kept = ((m * (after - before)) ** 2).mean()
            moved = (((1 - m) * (after - before)) ** 2).mean()
            loss = image.mean() if broken else 0.01 * kept - moved
            if number:
                wanted = rounds[0]["label"].expand(15)
                loss = loss + cross_entropy(plain.head(drifted, after), wanted)
            going_on.step(g, slopes(loss, g))
        for name, tensor in g.items():
            torch.testing.assert_close(found[f"generator.{name}"], tensor.detach(), **plain.CLOSE)
