"""QRA: two steps of the generator, in the form of equation 1, of equation 2 and of the code."""

import pytest
import torch

from ppr_core.reactivation.query import Query
from tests.parity import plain
from tests.parity.plain import Sgd, cross_entropy, logits, slopes, state

FORMS = {
    "eq1": ("paper", 0.0, (1.0, 0.0)),
    "eq2": ("paper", 0.2, (1.0, 0.2)),
    "code": ("code", 0.2, (0.2, 1.0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_qra(form, model, data):
    """Min et al. 2024, sec. 3.3, eq. 1 and 2, and its code; defenses.md B3.

    x' = x + 16/255 * tanh(four linear layers of normalised x), clamped to [0, 1]; the divergence
    KL(retuned(x) || purified(x')), mean over the batch, and CE(surrogate(x'), y) with weights
    (1, 0) in equation 1, (1, a) in equation 2 and (a, 1) in the code. SGD, lr 0.1, momentum 0.9.
    """
    name, alpha, weights = FORMS[form]
    triggered = data.subset(data.labels != 0)
    triggered = triggered.with_images(triggered.images.flip(-1))
    retuned, surrogate = plain.classifier(seed=1), plain.classifier(seed=2)
    method = Query(
        form=name, alpha=alpha, clean=15, poisoned=10, width=7, schedule={"batch_size": 25}
    )

    def run(epochs):
        named = {"retuned": retuned, "surrogate": surrogate, "triggered": triggered}
        query = method.replace(schedule={"epochs": epochs})
        return query(model, data, rng=torch.Generator(), **named).tensors

    first, got = run(epochs=0), run(epochs=2)
    parts = {n: t.clone().requires_grad_() for n, t in first.items() if ".layers." in n}
    layers = sorted({name.split(".")[2] for name in parts}, key=int)
    assert len(layers) == 4
    x = plain.pixels(torch.cat([data.images, triggered.images]))
    labels = torch.cat([data.labels, triggered.labels])
    purified, taught, judge = (state(m) for m in (model, retuned, surrogate))
    teacher = logits(taught, x, training=False).detach().softmax(1)
    sgd = Sgd(lr=0.1, momentum=0.9)
    for _ in range(2):
        hidden = plain.normalised(x).flatten(1)
        for layer in layers:
            hidden = hidden @ parts[f"generator.layers.{layer}.weight"].T
            hidden = hidden + parts[f"generator.layers.{layer}.bias"]
            hidden = hidden.tanh() if layer == layers[-1] else hidden.clamp_min(0)
        moved = (x + 16 / 255 * hidden.view(x.shape)).clamp(0, 1)
        student = logits(purified, moved, training=False).softmax(1)
        apart = (teacher * (teacher / student).log()).sum(1).mean()
        right = cross_entropy(logits(judge, moved, training=False), labels)
        sgd.step(parts, slopes(weights[0] * apart + weights[1] * right, parts))
    for part, tensor in parts.items():
        torch.testing.assert_close(got[part], tensor.detach(), **plain.CLOSE)
        assert not torch.allclose(first[part], tensor, rtol=0, atol=1e-6), part
