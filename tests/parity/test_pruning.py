"""ANP's and RNP's masks, and the channels that CLP, BNP and RNP prune."""

import pytest
import torch

from ppr_core.defenses import Anp, Bnp, Clp, Rnp, anp
from tests.parity import plain
from tests.parity.plain import EPS, Sgd, cross_entropy, logits, slopes, state, trained

WHOLE = {"batch_size": 15, "crop": 0, "flip": False}
NORMS = ("backbone.0.1", "backbone.1.1")
SIZES = (4, 5)  # their channels


def factors(mask, noise=None):
    """Return each layer's (factor of gamma, factor of beta): (m + n, 1 + b), or (m, 1)."""
    n, b = torch.zeros(2, sum(SIZES)) if noise is None else noise
    return list(zip((mask + n).split(SIZES), (1 + b).split(SIZES), strict=True))


def silenced(model, s, names, channels):
    """Compare a model with a state in which these tensors are zero at these channels."""
    expected = {name: tensor.detach().clone() for name, tensor in s.items()}
    for norm in NORMS:
        for name in names:
            expected[f"{norm}.{name}"][channels[norm]] = 0
    plain.check(model, expected)


@pytest.mark.parametrize("ascent", [1, 2])
def test_anp(ascent, model, data, monkeypatch):
    """Wu and Wang 2021, eq. 2 to 4, and its code; defenses.md A2, phase 1.

    n, b rise by (eps / steps) * sign of the gradient of CE at gamma (m + n), beta (1 + b), without
    a projection; m falls along alpha * CE (no noise) + (1 - alpha) * CE (noise), and is clamped to
    [0, 1]. SGD with momentum 0.9; batch statistics. Two iterations, at a rate that clamps.
    """
    drawn = []
    real = anp.fill_noise

    def draw(start, eps, rng):
        real(start, eps, rng)
        drawn.append(start.clone())

    monkeypatch.setattr(anp, "fill_noise", draw)
    method = Anp(ascent_steps=ascent, schedule={**WHOLE, "steps": 2, "lr": 0.3})
    found = method.prepare(model, data, rng=torch.Generator())
    x, s = plain.pixels(data.images), state(model)
    m, sgd = {"m": torch.ones(sum(SIZES), requires_grad=True)}, Sgd(lr=0.3, momentum=0.9)

    def loss(noise=None):
        masks = factors(m["m"], noise)
        return cross_entropy(logits(s, x, training=True, masks=masks), data.labels)

    for start in drawn[:2]:
        assert start.abs().max() <= 0.4
        assert start.abs().max() > 0.3
        noise = start
        for _ in range(ascent):
            noise = noise.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss(noise), noise)
            noise = noise + 0.4 / ascent * slope.sign()
        value = 0.2 * loss() + 0.8 * loss(noise.detach())
        sgd.step(m, slopes(value, m))
        with torch.no_grad():
            m["m"].clamp_(0, 1)
    expected = m["m"].detach()
    assert 0 < (expected == 1).sum() < sum(SIZES)
    torch.testing.assert_close(torch.cat([found[name] for name in NORMS]), expected, **plain.CLOSE)


def test_rnp(data):
    """Li et al. 2023, eq. 2 to 4, and BackdoorBench; defenses.md C10.

    Ascent on CE by SGD, lr 0.01, momentum 0.9, decay 5e-4; then masks of the unlearned model fall
    along 0.2 * CE, lr 0.2, momentum 0.9, in [0, 1]; then gamma of the model as it was is 0 where
    the mask is at most tau. Two steps of each.
    """
    method = Rnp(
        select="fixed",
        tau=0.9975,
        forgotten=0.0,
        forgetting={**WHOLE, "epochs": 2},
        schedule={**WHOLE, "epochs": 2, "lr": 0.2},
    )
    model = plain.classifier(seed=2)
    outcome = method(model, data, rng=torch.Generator())
    x, s, sgd = plain.pixels(data.images), state(model), Sgd(lr=0.01, momentum=0.9, decay=5e-4)
    for _ in range(2):
        scores = logits(s, x, training=True)
        assert (scores.argmax(1) == data.labels).any(), "nothing right: it would stop here"
        sgd.step(s, slopes(-cross_entropy(scores, data.labels), trained(s)))
    m, sgd = {"m": torch.ones(sum(SIZES), requires_grad=True)}, Sgd(lr=0.2, momentum=0.9)
    for _ in range(2):
        scores = logits(s, x, training=True, masks=factors(m["m"]))
        sgd.step(m, slopes(0.2 * cross_entropy(scores, data.labels), m))
        with torch.no_grad():
            m["m"].clamp_(0, 1)
    masks = m["m"].detach()
    found = torch.cat([outcome.tensors[f"mask.{name}"] for name in NORMS])
    torch.testing.assert_close(found, masks, **plain.CLOSE)
    weak = dict(zip(NORMS, (masks <= 0.9975).split(SIZES), strict=True))
    assert 0 < (masks <= 0.9975).sum() < sum(SIZES)
    silenced(outcome.model, state(model), ["weight"], weak)


def outliers(scores, u):
    """Return the channels above mean + u * (unbiased) deviation, layer by layer."""
    limits = {}
    for name, score in scores.items():
        mean = score.mean()
        spread = ((score - mean) ** 2).sum() / (len(score) - 1)
        limits[name] = score > mean + u * spread**0.5
    assert 0 < sum(int(found.sum()) for found in limits.values()) < sum(SIZES)
    return limits


def test_clp(model, data):
    """Zheng et al. 2022 (CLP), eq. 8 and alg. 1, and BackdoorBench; defenses.md C8.

    sigma_max of W_k as (inputs, kernel positions), times |gamma_k / sqrt(var_k + 1e-5)|; gamma and
    beta are 0 where it is above mean + u * deviation of its layer.
    """
    outcome = Clp(u=0.8)(model, data, rng=torch.Generator())
    s, scores = state(model), {}
    for norm in NORMS:
        kernels = s[norm[:-1] + "0.weight"].detach().flatten(2)
        square = kernels @ kernels.transpose(1, 2)  # its eigenvalues are the squared sigmas
        sigma = torch.linalg.eigvalsh(square).amax(1) ** 0.5
        scale = s[f"{norm}.weight"].detach() / (s[f"{norm}.running_var"] + 1e-5) ** 0.5
        scores[norm] = sigma * scale.abs()
        found = outcome.tensors[f"score.{norm}"]
        torch.testing.assert_close(found, scores[norm], **plain.CLOSE)
    silenced(outcome.model, s, ["weight", "bias"], outliers(scores, 0.8))


@pytest.mark.parametrize("exact", [False, True])
def test_bnp(exact, model, data):
    """Zheng et al. 2022 (BNP), eq. 6, and BackdoorBench; defenses.md C9.

    log(v2 / v1) + (v1 + (mu1 - mu2)^2) / (2 v2) - 1/2, of the input of batch norm: mu1, v1 of a
    clean batch in eval mode, mu2, v2 the running ones, 1e-5 added to both variances; the exact
    divergence has 1/2 on the logarithm. gamma and beta are 0 above mean + u * deviation.
    """
    outcome = Bnp(u=0.8, kl_exact=exact)(model, data, rng=torch.Generator())
    s, x = state(model), plain.normalised(plain.pixels(data.images))
    maps = [x, *plain.feature_maps(s, x, training=False)]
    scores = {}
    for block, norm in enumerate(NORMS):
        weight = s[f"backbone.{block}.0.weight"].detach()
        stride = plain.STRIDES[block]
        into = torch.nn.functional.conv2d(maps[block].detach(), weight, stride=stride, padding=1)
        values = into.transpose(0, 1).flatten(1)
        mu1 = values.mean(1)
        v1 = ((values - mu1[:, None]) ** 2).sum(1) / (values.shape[1] - 1) + EPS
        mu2, v2 = s[f"{norm}.running_mean"], s[f"{norm}.running_var"] + EPS
        spread = (0.5 if exact else 1) * (v2 / v1).log()
        scores[norm] = spread + (v1 + (mu1 - mu2) ** 2) / (2 * v2) - 0.5
        found = outcome.tensors[f"score.{norm}"]
        torch.testing.assert_close(found, scores[norm], **plain.CLOSE)
    silenced(outcome.model, s, ["weight", "bias"], outliers(scores, 0.8))
