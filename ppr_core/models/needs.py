"""What a method can need of a model, by name: lists show it, and a study refuses early."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppr_core.errors import need
from ppr_core.models.base import (
    Network,
    batch_norms,
    comparable,
    convolutions,
    normalised_convolutions,
)


class Need(NamedTuple):
    """How to see that a model has something, and what to do where it has not."""

    met: Callable[[nn.Module], bool]
    mend: str


def _part(*names: str) -> Callable[[nn.Module], bool]:
    return lambda model: all(callable(getattr(model, name, None)) for name in names)


def _any(found: Callable[[nn.Module], Iterable[object]]) -> Callable[[nn.Module], bool]:
    return lambda model: any(True for _ in found(model))


CUT = (
    "give it two attributes, features (pixels -> map) and head (map -> logits), or wrap it "
    "(models.wrap cuts a network whose last nn.Linear is its head)"
)
NAME = "wrap it (models.wrap finds the last nn.Linear; head= names another), or name that attribute"
OTHER = "choose another defense for it"
NEEDS: dict[str, Need] = {
    "features and head": Need(_part("features", "head"), CUT),
    "linear": Need(lambda model: isinstance(getattr(model, "linear", None), nn.Linear), NAME),
    "backbone": Need(_part("backbone"), NAME),
    "convolutions": Need(_any(convolutions), OTHER),
    "batch norm": Need(_any(lambda model: [m for _, m in batch_norms(model) if m.affine]), OTHER),
    "batch norm with statistics": Need(_any(comparable), OTHER),
    "batch norm right behind convolutions": Need(_any(normalised_convolutions), OTHER),
}


def need_all(model: nn.Module, names: Iterable[str], user: str) -> None:
    """Raise ConfigError, naming the first thing that a model lacks.

    Args:
        model: may lie on the meta device.
        names: keys of NEEDS.
        user: who needs it, for the message.
    """
    for name in names:
        need(
            NEEDS[name].met(model),
            f"{user}: expected a model with {name}, got a {type(model).__name__} without; "
            f"{NEEDS[name].mend}",
        )


@torch.no_grad()
def need_true_cut(model: Any, pixels: Tensor) -> None:
    """Raise ConfigError where head(features(x)) is not what the model says of x.

    torchvision and others give parts these names that do not fit together.
    """
    if isinstance(model, Network) or pixels.is_meta or next(model.parameters()).is_meta:
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        same = torch.allclose(model.head(model.features(pixels)), model(pixels), 1e-3, 1e-4)
    except (RuntimeError, TypeError, ValueError):
        same = False
    finally:
        for module, mode in modes:
            module.training = mode
    need(same, f"expected head(features(x)) to be the answer of the {type(model).__name__}; {CUT}")
