import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.runtime import session
from ppr_core.sharpness import ascent, frozen_statistics, sam_gradient
from ppr_core.training.fit import Schedule, cross_entropy, fit, make_optimizer, plain_gradient
from tests.conftest import tiny_model

BATCHES = Schedule(steps=5, batch_size=16, lr=0.05, momentum=0.1)


def with_gradients(seed=0):
    rng = torch.Generator().manual_seed(seed)
    made = [torch.randn(s, generator=rng, dtype=torch.float64) for s in ((3, 2), (4,))]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return made


def length(tensors):
    return torch.cat([t.flatten() for t in tensors]).norm()


def statistics(model):
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name.endswith(("running_mean", "running_var"))
    }


def test_the_move_is_along_the_gradient_and_rho_long():
    parameters = with_gradients()
    move = ascent(parameters, 0.7)
    torch.testing.assert_close(length(move), torch.tensor(0.7, dtype=torch.float64))
    ratio = move[0] / parameters[0].grad
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[0, 0].item()))
    torch.testing.assert_close(move[1] / parameters[1].grad, ratio[0, 0].expand(4))


def test_the_adaptive_move_is_rho_long_relative_to_the_weights():
    parameters = with_gradients()
    move = ascent(parameters, 0.7, adaptive=True)
    relative = [e / p.abs() for e, p in zip(move, parameters, strict=True)]
    torch.testing.assert_close(length(relative), torch.tensor(0.7, dtype=torch.float64))
    scaled = length([p * p.grad for p in parameters])
    expected = [0.7 * p**2 * p.grad / scaled for p in parameters]
    torch.testing.assert_close(move, expected)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_step_on_a_quadratic_is_the_closed_form(adaptive):
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    matrix, start = root @ root.T, torch.randn(4, generator=rng, dtype=torch.float64)
    w = start.clone().requires_grad_()
    loss = sam_gradient([w], 0.3, adaptive=adaptive)(lambda: 0.5 * w @ matrix @ w)
    scale = start.abs() if adaptive else torch.ones_like(start)
    gradient = matrix @ start
    move = 0.3 * scale**2 * gradient / (scale * gradient).norm()
    torch.testing.assert_close(w.grad, matrix @ (start + move))
    torch.testing.assert_close(loss, 0.5 * start @ matrix @ start)
    assert torch.equal(w.detach(), start)


def test_rho_zero_is_plain_sgd_bit_for_bit(data):
    plain, sam = tiny_model(), tiny_model()
    for model, gradient in ((plain, plain_gradient), (sam, None)):
        gradient = gradient or sam_gradient(model.parameters(), 0.0, freeze_bn_model=model)
        rng = torch.Generator().manual_seed(3)
        with session(precision="fp32"):
            fit(model, data, BATCHES, rng=rng, gradient=gradient)
    for a, b in zip(plain.parameters(), sam.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_takes_two_forward_and_two_backward_passes_a_step(model, data, rng):
    passes = {"forward": 0, "backward": 0}

    def count(module, args, output):
        passes["forward"] += 1
        output.register_hook(lambda g: passes.update(backward=passes["backward"] + 1))

    model.backbone.register_forward_hook(count)
    fit(model, data, BATCHES, rng=rng, gradient=sam_gradient(model.parameters(), 0.1))
    assert passes == {"forward": 10, "backward": 10}


def test_weights_come_back_exactly_also_after_an_error(model, data):
    before = [p.detach().clone() for p in model.parameters()]
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    calls = []

    def loss():
        calls.append(1)
        if len(calls) == 2:
            assert not torch.equal(model.linear.weight, before[-2])
            raise RuntimeError("in the second pass")
        return F.cross_entropy(model(images), labels)

    with pytest.raises(RuntimeError, match="second pass"):
        sam_gradient(model.parameters(), 0.1)(loss)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_frozen_statistics_follow_the_first_pass_only(model, data, rng):
    once, frozen, both = tiny_model(), tiny_model(), tiny_model()
    ways = [
        (once, plain_gradient),
        (frozen, sam_gradient(frozen.parameters(), 0.5, freeze_bn_model=frozen)),
        (both, sam_gradient(both.parameters(), 0.5)),
    ]
    for one, gradient in ways:
        still = BATCHES.replace(steps=1, lr=0.0)
        fit(one, data, still, rng=torch.Generator().manual_seed(0), gradient=gradient)
    expected, got, other = statistics(once), statistics(frozen), statistics(both)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert any(not torch.equal(expected[name], other[name]) for name in expected)
    assert int(frozen.backbone[1].num_batches_tracked) == 2
    assert frozen.backbone[1].momentum == 0.1


def test_statistics_stay_while_batches_still_normalise():
    layer = nn.BatchNorm2d(2)
    images = torch.rand(8, 2, 4, 4) * 5
    with frozen_statistics(layer):
        out = layer(images)
    assert out.mean().abs() < 1e-6
    assert torch.equal(layer.running_mean, torch.zeros(2))
    assert int(layer.num_batches_tracked) == 1


def test_the_second_pass_sees_the_moved_weights_in_bf16_too(model):
    # Autocast keeps the casts of weights; with a stale one SAM would be plain SGD.
    images, labels = torch.rand(16, 3, 16, 16), torch.arange(16) % 4
    values = []

    def loss():
        values.append(cross_entropy(model)(images, labels))
        return values[-1]

    with session(precision="bf16"), torch.autocast("cpu", torch.bfloat16):
        sam_gradient(model.parameters(), 3.0)(loss)
    assert values[1] > values[0] + 0.1


def test_a_parameter_out_of_reach_is_neither_moved_nor_stepped():
    used, unused = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = make_optimizer([used, unused], BATCHES)
    sam_gradient([used, unused], 0.5)(lambda: (used**2).sum())
    assert unused.grad is None
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert not torch.equal(used, torch.ones(3))
