"""Activations that torch has not, or not with a second derivative."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def soft_mask(values: Tensor) -> Tensor:
    """Map any values into (0, 1): the sigmoid of twice the values, held off 0 and 1 by 5e-8.

    Source: the published code of Neural Cleanse, BTI-DBF and Input-Aware, which all write it so.
    """
    return torch.tanh(values) / (2 + 1e-7) + 0.5


class Gate(nn.Module):
    """The hard sigmoid from parts that have second derivatives: torch's own (2.14) has none."""

    def forward(self, values: Tensor) -> Tensor:
        """Map -3 and less to 0, 3 and more to 1, and what is between them in a line."""
        return F.relu6(values + 3) / 6


@contextlib.contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Put `Gate` in the place of every hard sigmoid; on leaving, each comes back."""
    found = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Hardsigmoid)
    ]
    try:
        for module, name, _ in found:
            setattr(module, name, Gate())
        yield
    finally:
        for module, name, child in found:
            setattr(module, name, child)
