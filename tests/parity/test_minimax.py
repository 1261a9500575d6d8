"""I-BAU: the perturbation's step, and the weights' step by the implicit hypergradient."""

import pytest
import torch

from ppr_core.data.images import to_float
from ppr_core.defenses import IBau, ibau
from tests.parity import plain
from tests.parity.plain import Sgd, cross_entropy, slopes, state, trained


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_ibau(iterations, model, data, monkeypatch):
    """Zeng et al. 2022, alg. 1 and eq. 4 to 6, and BackdoorBench; defenses.md A3.

    delta starts at 0 and takes one SGD step of rate 10 against -CE(f(x + delta), f's own answer) +
    0.001 |delta|^2. Then, of L1 = CE(f(x + delta), y) and L2 = -CE(f(x + delta), y) +
    0.001 |delta|^2, with Phi = delta - 0.1 dL2/ddelta: v is the sum of (dPhi/ddelta)^T to the
    powers 0 to K - 1 of dL1/ddelta, and the weights step by dL1/dw + (dPhi/dw)^T v. In eval mode,
    in normalised space. The weights step by plain SGD here, which shows the hypergradient as it is.
    """
    monkeypatch.setattr(ibau, "to_float", lambda images: to_float(images).double())
    plainly = {"batch_size": 15, "crop": 0, "flip": False, "optimizer": "sgd", "momentum": 0.0}
    schedule = {**plainly, "epochs": 1, "lr": 0.5}
    method = IBau(iterations=iterations, portion=1.0, schedule=schedule)
    outcome = method(model, data, rng=torch.Generator())
    x, s = plain.normalised(plain.pixels(data.images)), state(model)
    shape = (1, 3, 8, 8)

    def answers(delta):
        return plain.head(s, plain.feature_maps(s, x + delta.view(shape), training=False)[-1])

    delta = torch.zeros(shape).flatten().requires_grad_()
    own = answers(delta).argmax(1)
    loss = -cross_entropy(answers(delta), own) + 0.001 * (delta**2).sum()
    (slope,) = torch.autograd.grad(loss, delta)
    delta = (-10 * slope).requires_grad_()
    found = outcome.tensors["perturbation"].flatten()
    torch.testing.assert_close(found, delta.detach(), **plain.CLOSE)

    def inner(shift):
        return -cross_entropy(answers(shift), data.labels) + 0.001 * (shift**2).sum()

    outer = slopes(cross_entropy(answers(delta), data.labels), {"delta": delta, **trained(s)})
    jacobian = torch.eye(len(delta)) - 0.1 * torch.autograd.functional.hessian(inner, delta)
    term, v = outer.pop("delta"), torch.zeros(len(delta))
    for _ in range(iterations):
        v, term = v + term, jacobian.T @ term
    (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    mixed = torch.autograd.grad((slope @ v), list(trained(s).values()), materialize_grads=True)
    step = {n: outer[n] - 0.1 * g for n, g in zip(outer, mixed, strict=True)}
    Sgd(lr=0.5).step(s, step)
    plain.check(outcome.model, s)
