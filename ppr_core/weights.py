"""Arithmetic on weights: the moves of SAM and PAM, and the paths of mode connectivity."""

import contextlib
import hashlib
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ppr_core.errors import CheckpointError, need
from ppr_core.models import MODELS
from ppr_core.models.base import batch_norms, check_same_shapes
from ppr_core.models.names import renamed, unwrapped
from ppr_core.models.nearest import classes_of, proposal

State = dict[str, Tensor]

# What reading any file at all as weights may raise: the unpickler takes a text for its opcodes.
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError),
    *(AttributeError, LookupError, TypeError, ValueError),
)

# Under which training scripts put the weights beside epoch, optimizer and the like.
KEYS = ("state_dict", "model_state_dict", "model", "net")


def snapshot(model: nn.Module) -> State:
    """Return a copy of parameters and buffers by name; changing the model leaves it alone."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def under(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


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
    return list(torch._foreach_mul(list(direction), factor))


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


def sha256(path: Path) -> str:
    """Return a file's sha256, as hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read(path: Path, model: nn.Module) -> State:
    """Read the weights of a model that was made elsewhere.

    Names may be this project's, those of its stages ("model."), of a data-parallel wrapper
    ("module."), or torchvision's (conv1, bn1, layer1, fc). Where normalisation is missing, it is
    the model's own.

    Args:
        path: a safetensors file, or a state_dict that torch saved (read without running code).
        model: of the architecture; left as it is.

    Raises:
        CheckpointError: unreadable, a pickle that would run code, other names or other shapes.
    """
    return matched(tensors(path), model, path)


def tensors(path: Path) -> State:
    """Read weights under the names that their file gives them, without running code.

    Raises:
        CheckpointError: unreadable, or a pickle that would run code.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"expected weights in {path} (safetensors, or a state_dict of tensors alone), got: "
            f"{type(error).__name__}: {unread(error)}"
        ) from None
    found = found if isinstance(found, dict) else {}
    found = next((found[key] for key in KEYS if isinstance(found.get(key), Mapping)), found)
    state = {name: t for name, t in found.items() if isinstance(t, Tensor)}
    need_plain(state, path)
    if any(name.startswith("model.") for name in state):  # a stage keeps other tensors beside
        state = {name: t for name, t in state.items() if name.startswith("model.")}
    return state


def unread(error: BaseException) -> str:
    """Say in one line why a file was not read, without torch's advice to read it unsafely."""
    named, text = runs(error), str(error)
    if named:
        return f"it would run {named} when loaded; only tensors, numbers and text are taken"
    told = re.search(r"WeightsUnpickler error: ([^\n]*)", text)
    if told:
        return f"no pickle of tensors alone ({told[1].strip()})"
    first = text.partition("\n")[0] or "it is empty, or ends too early"
    return "no pickle of tensors alone" if "weights_only" in text else first


def runs(error: BaseException) -> str:
    """Return what a pickle would have run, or an empty text."""
    named = re.search(r"(?:GLOBAL|global) ([\w.]+\.[\w.]+)", str(error))
    return named[1] if named and isinstance(error, pickle.UnpicklingError) else ""


def need_plain(state: Mapping[Any, Tensor], path: Path) -> None:
    """Raise CheckpointError unless all are tensors of real numbers by name, none of them sparse."""
    for name, tensor in state.items():
        need(
            isinstance(name, str),
            f"expected tensors by name in {path}, got {name!r} ({type(name).__name__}) as a name; "
            "save model.state_dict()",
            CheckpointError,
        )
        kind = next((word for word, so in _odd(tensor).items() if so), "")
        need(
            not kind,
            f"expected dense tensors of real numbers in {path}, got a {kind} one for {name}; "
            "convert it before saving",
            CheckpointError,
        )


def _odd(tensor: Tensor) -> dict[str, bool]:
    return {
        "quantized": tensor.is_quantized,
        "nested": tensor.is_nested,
        "sparse": tensor.layout != torch.strided,
        "complex": tensor.is_complex(),
    }


def matched(state: Mapping[str, Tensor], model: nn.Module, path: Path) -> State:
    """Return weights under the names that a model has for them.

    Args:
        state: weights by any of the names that `read` takes.
        model: of the architecture; left as it is.
        path: where they come from, for messages.

    Raises:
        CheckpointError: none, other names or shapes, or values that are not finite.
    """
    need(state, f"expected tensors by name in {path}, got none", CheckpointError)
    own = model.state_dict()
    if pair := stats_names(state):
        _check_stats(model, [state[name] for name in pair], path)
        state = {name: tensor for name, tensor in state.items() if name not in pair}
    fixed = {name: t for name, t in own.items() if name.startswith("normalise.")}
    for names in (state, unwrapped(state)):
        found = fixed | {renamed(name, own, model): tensor for name, tensor in names.items()}
        if found.keys() == own.keys():
            break
    try:
        check_same_shapes(found, own)
    except CheckpointError as error:
        wanted, got = classes_of(own), classes_of(state)
        told = f"expected {wanted} classes, as the data have, got {got}; " if wanted != got else ""
        raise CheckpointError(
            f"{path} does not fit the model: {told}{error}; {proposal(MODELS, state)}"
        ) from None
    need_finite(found, path)
    return found


def need_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError where a weight is NaN or infinite."""
    for name, tensor in state.items():
        need(
            tensor.is_meta or not tensor.is_floating_point() or bool(tensor.isfinite().all()),
            f"expected finite weights in {path}, got NaN or infinity in {name}",
            CheckpointError,
        )


def stats_names(state: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the names of mean and spread where a file holds those of its model's first layer."""
    for name, tensor in state.items():
        other = f"{name.removesuffix('mean')}std"
        alike = name.rpartition(".")[2] == "mean" and other in state and tensor.numel() in (1, 3)
        if alike and state[other].numel() == tensor.numel():
            return name, other
    return None


def stats_of(state: Mapping[str, Tensor]) -> tuple[list[float], list[float]] | None:
    """Return mean and spread, channel by channel, where a file holds them; see `stats_names`."""
    if (names := stats_names(state)) is None:
        return None
    mean, std = (state[name].flatten().tolist() * (3 // state[name].numel()) for name in names)
    return mean, std


def _check_stats(model: nn.Module, stats: list[Tensor], path: Path) -> None:
    """Raise CheckpointError where a file normalises otherwise than its model here does."""
    layer = getattr(model, "normalise", None)
    for name, theirs in zip(("mean", "std"), stats, strict=True):
        ours = getattr(layer, name, None)
        if ours is None or ours.is_meta or theirs.is_meta:
            continue
        told = f"{ours.flatten().tolist()} of the model; set mean and std as the file has them"
        same = torch.broadcast_to(theirs.flatten().float(), (3,)) - ours.flatten().cpu()
        need(
            bool(same.abs().max() < 1e-3),
            f"{path} holds {name} {theirs.flatten().tolist()} of its input, which is not {told}",
            CheckpointError,
        )
