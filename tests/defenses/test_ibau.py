import copy

import pytest
import torch
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses.ibau import IBau, hypergradient, shifted
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule, fit

ONE = torch.ones(1, 1, 1, 1)
PLAIN = {"crop": 0, "flip": False, "batch_size": 48}


def quadratic():
    """inner = d'Ad/2 + d'Bw, outer = |d|^2/2 + c'w; so d*(w) = -inverse(A) B w."""
    rng = torch.Generator().manual_seed(1)
    root, b = (torch.randn(n, generator=rng, dtype=torch.float64) for n in ((3, 3), (3, 2)))
    a, c = root @ root.T + torch.eye(3, dtype=torch.float64), torch.tensor([1.0, -2.0]).double()
    w = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    d = torch.tensor([1.0, -1.0, 3.0], dtype=torch.float64, requires_grad=True)
    outer = d @ d / 2 + c @ w
    inner = d @ a @ d / 2 + d @ b @ w
    return a, b, c, d, w, outer, inner


def test_the_hypergradient_meets_the_analytic_one():
    a, b, c, d, w, outer, inner = quadratic()
    lr = 1 / float(torch.linalg.eigvalsh(a).max())  # Phi is then contractive
    (got,) = hypergradient(outer, inner, d, [w], iterations=2000, lr=lr)
    implicit = c - b.T @ torch.linalg.solve(a, d.detach())
    torch.testing.assert_close(got, implicit, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_the_first_iterations_by_hand(iterations):
    a, b, c, d, w, outer, inner = quadratic()
    v = torch.zeros(3, dtype=torch.float64)
    for _ in range(iterations):
        v = v - 0.1 * a.T @ v + d.detach()
    (got,) = hypergradient(outer, inner, d, [w], iterations=iterations, lr=0.1)
    torch.testing.assert_close(got, c - 0.1 * b.T @ v)


def test_without_a_perturbed_image_it_is_plain_tuning_in_eval_mode(model, data, rng):
    model.double()
    schedule = Schedule(epochs=3, optimizer="adam", lr=1e-3, amsgrad=True, **PLAIN)
    with session(precision="fp32"):
        got = IBau(portion=0.01, at_least_one=False, schedule=schedule)(model, data, rng=rng).model
        expected = copy.deepcopy(model)
        fit(expected, data, schedule, rng=rng, train_mode=False)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], tensor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("iterations", [0, 5])
def test_batch_norm_statistics_stay(iterations, model, data, rng):
    method = IBau(iterations=iterations, schedule={"epochs": 2, "batch_size": 16})
    outcome = method(model, data, rng=rng).model
    buffers = dict(model.named_buffers())
    assert "backbone.1.running_mean" in buffers
    for name, buffer in buffers.items():
        assert torch.equal(buffer, outcome.get_buffer(name))
    assert not torch.equal(model.linear.weight, outcome.linear.weight)


def test_every_pass_is_in_eval_mode(model, data, rng):
    modes = []
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: modes.append(module.training))
    IBau(schedule={"epochs": 1, "batch_size": 16}).run(model, data, rng=rng)
    assert modes and not any(modes)
    assert not any(module.training for module in model.modules())


def test_the_iterations_matter(model, data, rng):
    def weights(iterations):
        schedule = {"epochs": 1, "batch_size": 16, "lr": 0.01}
        method = IBau(iterations=iterations, portion=0.5, schedule=schedule)
        return method(model, data, rng=rng).model.linear.weight

    assert not torch.equal(weights(0), weights(1))
    assert not torch.equal(weights(1), weights(5))


def test_the_perturbation_is_one_step_a_batch_from_zero(model, data, rng):
    model.double()
    method = IBau(perturbation_lr=3.0, schedule={**PLAIN, "epochs": 2, "lr": 0.0})
    with session(precision="fp32"):
        got = method(model, data, rng=rng).tensors["perturbation"]
    pixels = to_float(data.images)
    delta = torch.zeros(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    logits = model(pixels.double())
    loss = F.cross_entropy(shifted(model, pixels, delta), logits.argmax(1))
    (slope,) = torch.autograd.grad(loss, delta)
    torch.testing.assert_close(got.double(), 3.0 * slope, rtol=1e-4, atol=1e-7)


def test_the_penalty_is_of_the_squared_norm(model, data):
    delta = torch.full((1, 3, 16, 16), 0.5)
    images, labels = to_float(data.images), data.labels
    free = IBau(penalty=0.0).inner(model, images, labels, delta)
    held = IBau(penalty=0.1).inner(model, images, labels, delta)
    torch.testing.assert_close(held - free, torch.tensor(0.1 * 768 * 0.25))


@pytest.mark.parametrize(
    ("size", "at_least_one", "count"), [(256, True, 2), (99, True, 1), (99, False, 0), (1, True, 1)]
)
def test_how_many_images_are_perturbed(size, at_least_one, count, rng):
    chosen = IBau(at_least_one=at_least_one)._choose(size, rng)
    assert chosen.shape == (size, 1, 1, 1)
    assert int(chosen.sum()) == count


def test_each_round_looks_for_a_new_perturbation(model, data, rng, monkeypatch):
    steps = []
    monkeypatch.setattr(IBau, "_perturb", lambda *args: steps.append("perturb"))
    monkeypatch.setattr(IBau, "_choose", lambda self, size, rng: steps.append(size) or 0 * ONE)
    IBau(schedule={"epochs": 2, "batch_size": 32})(model, data, rng=rng)
    assert steps == ["perturb", 32, 16, "perturb", 32, 16]


def test_weights_are_trainable_again_after_a_perturbation(model, data, rng):
    delta = torch.zeros(1, 3, 16, 16, requires_grad=True)
    IBau(schedule={"batch_size": 16})._perturb(model, data, delta, rng)
    assert delta.abs().sum() > 0
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
