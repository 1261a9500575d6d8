import pytest
import torch
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses.bti_p import BtiP
from ppr_core.weights import snapshot
from tests.conftest import shrink, tiny_model

SMALL = shrink(BtiP(width=2, rounds=2))


def test_a_purifier_does_nothing_until_it_is_switched_on(model, data):
    pixels = to_float(data.images[:4])
    with torch.no_grad():
        before = model(pixels)
        extended = SMALL.extend(model).eval()
        torch.testing.assert_close(extended(pixels), before)
        extended.backbone.share.fill_(1)
        assert not torch.allclose(extended(pixels), before, atol=1e-3)


def test_only_the_purifier_learns(model, data, rng):
    before = snapshot(model)
    outcome = SMALL(model, data, rng=rng)
    start = SMALL.extend(tiny_model())
    start.load_state_dict(outcome.model.state_dict())  # the layers are those that it adds
    inner = snapshot(outcome.model.backbone.inner)
    backbone = {n: t for n, t in before.items() if n.startswith("backbone.")}
    assert all(torch.equal(inner[n.removeprefix("backbone.")], t) for n, t in backbone.items())
    drawn = snapshot(SMALL.extend(tiny_model()).backbone.net)
    learnt = snapshot(outcome.model.backbone.net)
    assert any(not torch.equal(drawn[name], learnt[name]) for name in drawn)
    assert float(outcome.model.backbone.share) == 1
    assert outcome.info["rounds"] == 2


@pytest.mark.parametrize("moved", [False, True])
def test_loss_by_hand(moved, model, data):
    pixels, labels = to_float(data.images[:5]).double(), data.labels[:5]
    method = BtiP(width=2, noise=0.5 if moved else 0.0)
    model = method.extend(model).double().eval()
    model.backbone.share.fill_(1)
    model.backbone.net = net = torch.nn.Conv2d(3, 3, 1).double()
    with torch.no_grad():
        net.weight.copy_(torch.eye(3)[..., None, None])
        net.bias.fill_(0.01)
    triggered = 1 - pixels if moved else pixels
    rngs = [torch.Generator().manual_seed(3) for _ in range(2)]
    hooks = method.hooks(model, lambda x, y: (triggered, y), rngs[0])
    assert hooks["train_mode"] is False
    assert hooks["capturable"] is False  # the noise is drawn on the host
    got = hooks["loss"](pixels, labels)

    images = model.normalise(pixels)
    noise = torch.randn(images.shape, generator=rngs[1]).double()
    cleaned = (model.normalise(triggered) + method.noise * noise) + 0.01
    near, inner = (cleaned - images).square().mean(), model.backbone.inner
    assert bool(near > 0.05) is moved
    after, before = inner(cleaned), inner(images)
    expected = F.cross_entropy(model.head(after), labels) + (after - before).square().mean()
    expected = expected + (100 if moved else 1) * near
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
