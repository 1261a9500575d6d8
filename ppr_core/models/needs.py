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
from ppr_core.runtime import in_bf16


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


def need_channels(model: nn.Module, data: Tensor) -> None:
    """Raise ConfigError where a model's normalisation is of other channels than the images.

    Args:
        model: whose first layer may be `normalise`.
        data: images (N, C, H, W).
    """
    layer = getattr(model, "normalise", None)
    ours = getattr(layer, "mean", None)
    need(
        not isinstance(ours, Tensor) or ours.numel() in (1, data.shape[1]),
        f"expected mean and std of one number, or of {data.shape[1]} as the images have channels, "
        f"got {ours.numel() if isinstance(ours, Tensor) else 0}; see --mean and --std",
    )


@torch.no_grad()
def need_map_sizes(bare: nn.Module, size: int, device: torch.device) -> None:
    """Raise ConfigError where a training on small images would get wrong gradients.

    On the CPU in bf16, oneDNN (torch 2.14) leaves part of the gradient of a convolution's weights
    unwritten where it takes a stride on a map of one pixel: whatever the memory held, at times nan.

    Args:
        bare: the model on the meta device (`Architecture.skeleton`); another one passes.
        size: side of the images, pixels.
        device: that the model is to be trained on, under the session's precision.
    """
    on_meta = all(parameter.is_meta for parameter in bare.parameters())
    if (
        device.type != "cpu"
        or not in_bf16(device)
        or not on_meta
        or not _strides_on_one(bare, size)
    ):
        return
    enough = next((s for s in (16, 32, 64, 128, 224) if not _strides_on_one(bare, s)), None)
    need(
        False,
        f"expected images of {enough or 'more'} pixels or more for this model on this CPU in bf16, "
        f"got {size}: a stride on a map of one pixel has wrong gradients there; set precision: "
        "fp32, or resize the images",
    )


def _strides_on_one(bare: nn.Module, size: int) -> bool:
    """Say whether a convolution of more than one pixel takes a stride on a map of one."""
    found: list[bool] = []

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0].shape[-2:] == (1, 1))

    hooks = [
        module.register_forward_pre_hook(look)
        for module in bare.modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and max(module.kernel_size) > 1
    ]
    mode = bare.training
    try:
        bare.eval()(torch.empty(2, 3, size, size, device="meta"))
    except (RuntimeError, NotImplementedError):  # such as code that asks a tensor for its values
        return False
    finally:
        bare.train(mode)
        for hook in hooks:
            hook.remove()
    return any(found)


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
