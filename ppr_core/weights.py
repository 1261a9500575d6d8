"""Arithmetic on weights: the moves of SAM and PAM, and the paths of mode connectivity."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ppr_core.models import batch_norms, check_same_shapes

State = dict[str, Tensor]


def snapshot(model: nn.Module) -> State:
    """Return a copy of parameters and buffers by name; changing the model leaves it alone."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm over all elements of all tensors: a scalar, left on the device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


@contextlib.contextmanager
def moved(parameters: Sequence[Tensor], by: Sequence[Tensor]) -> Iterator[None]:
    """Add `by` to the parameters in place; on leaving, the saved values come back bit for bit."""
    parameters = list(parameters)
    with torch.no_grad():
        saved = [p.detach().clone() for p in parameters]
        torch._foreach_add_(parameters, list(by))
    # Autocast keeps the casts of the weights that it saw, and does not notice a change in place.
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, saved)
        torch.clear_autocast_cache()


def scaled_to(direction: Sequence[Tensor], length: float | Tensor) -> list[Tensor]:
    """Return `direction` with one global L2 norm of `length`; a zero direction stays zero."""
    factor = length / (norm(direction) + 1e-12)
    return torch._foreach_mul(list(direction), factor)


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], t: float) -> State:
    """Return (1 - t) * start + t * end; t = 0 and t = 1 give the end points' own values.

    Batch-norm means and variances are interpolated like weights; integer counters come from `end`.

    Raises:
        CheckpointError: the two states differ in names or shapes.
    """
    check_same_shapes(start, end)
    if t in (0, 1):
        return {name: tensor.clone() for name, tensor in (end if t else start).items()}
    return {
        name: torch.lerp(start[name], tensor, t) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in end.items()
    }


def distance(start: Mapping[str, Tensor], end: Mapping[str, Tensor], names: Sequence[str]) -> float:
    """Return the L2 distance over the tensors named (the parameters, not the buffers)."""
    return float(norm([start[name] - end[name] for name in names]))


def recalibrate(model: nn.Module, forward: Callable[[], None]) -> None:
    """Reset batch-norm statistics and take their cumulative average over `forward()`'s passes."""
    layers = [layer for _, layer in batch_norms(model)]
    momenta = [layer.momentum for layer in layers]
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's sign for the cumulative average
            layer.train()
        with torch.no_grad():
            forward()
    finally:
        for layer, momentum, mode in zip(layers, momenta, modes, strict=True):
            layer.momentum = momentum
            layer.train(mode)
