"""The gradient of sharpness-aware minimization, and batch norm that stops tracking."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ppr_core.models.base import batch_norms
from ppr_core.training.fit import Gradient
from ppr_core.weights import moved, norm, scaled_to


def ascent(
    parameters: Sequence[Tensor], rho: float, *, adaptive: bool = False, per_tensor: bool = False
) -> list[Tensor]:
    """Return the move to the point where SAM evaluates its gradient; `.grad` is filled before.

    Source: Foret et al. 2021, arXiv:2010.01412; adaptive: Kwon et al. 2021,
    arXiv:2102.11600, with T the absolute weights and without their small eta.

    Args:
        parameters: each with its gradient.
        rho: L2 length of the move over all parameters; adaptive: of the move divided by |w|.
        adaptive: scale the move by the weights, so that it does not depend on their scale.
        per_tensor: move every tensor by rho, each along its own gradient.
    """
    gradients, weights = gradients_of(parameters), [p.detach() for p in parameters]
    if per_tensor:
        return [scaled_to([gradient], rho)[0] for gradient in gradients]
    if not adaptive:
        return scaled_to(gradients, rho)
    scaled = torch._foreach_mul(gradients, weights)
    factor = rho / (norm(scaled) + 1e-12)
    return list(torch._foreach_mul(torch._foreach_mul(scaled, weights), factor))


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters that have one."""
    return [p.grad for p in parameters if p.grad is not None]


def sam_gradient(
    parameters: Iterable[Tensor],
    rho: float,
    *,
    adaptive: bool = False,
    per_tensor: bool = False,
    share: float = 1.0,
    freeze_bn_model: nn.Module | None = None,
) -> Gradient:
    """Return SAM's gradient for `fit`: that of the loss at the weights moved by `ascent`.

    It takes two forward and backward passes a step. A parameter that the loss does not reach is
    neither moved nor stepped.

    Args:
        parameters: what is moved, and put back bit for bit.
        rho: L2 length of the move.
        adaptive: see `ascent`.
        per_tensor: see `ascent`.
        share: of the gradient at that point; the rest is the gradient where the weights are.
        freeze_bn_model: a model whose batch-norm statistics the second pass shall not track.
    """
    trained = list(parameters)

    def gradient(loss: Callable[[], Tensor]) -> Tensor:
        value = loss()
        value.backward()
        reached = [p for p in trained if p.grad is not None]
        move = ascent(reached, rho, adaptive=adaptive, per_tensor=per_tensor)
        here = gradients_of(reached)
        for parameter in reached:
            parameter.grad = None
        with moved(reached, move), frozen_statistics(freeze_bn_model):
            loss().backward()
        if share < 1:
            for p, slope, there in zip(reached, here, gradients_of(reached), strict=True):
                p.grad = torch.lerp(slope, there, share)
        return value.detach()

    return gradient


@contextlib.contextmanager
def frozen_statistics(model: nn.Module | None) -> Iterator[None]:
    """Keep running means and variances as they are; batches are normalised as before.

    `num_batches_tracked` goes on counting. Without a model this does nothing.
    """
    layers = [layer for _, layer in batch_norms(model)] if model is not None else []
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
