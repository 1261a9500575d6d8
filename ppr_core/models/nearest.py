"""Which architectures, at which settings, could hold given weights."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ppr_core.config import Settings
from ppr_core.errors import ConfigError
from ppr_core.models.base import Architecture
from ppr_core.models.names import renamed, unwrapped


class Fit(NamedTuple):
    """An architecture, the settings that differ from its own, and the tensors that do not fit."""

    name: str
    settings: dict[str, Any]
    odd: list[str]

    def __str__(self) -> str:
        told = " and ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name} with {told}" if told else self.name


def fitting(registry: Mapping[str, type[Architecture]], state: Mapping[str, Tensor]) -> list[Fit]:
    """Return the architectures by how many tensors do not fit, the best first.

    Names and shapes decide, on the meta device: two that differ in what has no weights, such as
    pooling or normalisation, fit equally well.

    Args:
        registry: the architectures by name.
        state: weights by name, as any of them or their publishers call them.
    """
    weights, found = unwrapped(state), []
    classes = classes_of(weights)
    if not classes:
        return []
    for name, architecture in registry.items():
        tried = [
            Fit(name, settings, _odd(made, weights, classes))
            for settings, made in _candidates(architecture, weights)
        ]
        found += sorted(tried, key=_badness)[:1]
    return sorted(found, key=_badness)


def proposal(registry: Mapping[str, type[Architecture]], state: Mapping[str, Tensor]) -> str:
    """Return a sentence that names the nearest setting, or the several that fit."""
    fits = fitting(registry, state)
    if not fits:
        return "no registered architecture has such tensors"
    perfect = [str(fit) for fit in fits if not fit.odd]
    of = f"of {classes_of(state)} classes"
    if len(perfect) > 1:
        return (
            f"fits {', and '.join(perfect)}, {of}: they differ in what has no weights, so that "
            "only the answers tell them apart (state the C-Acc that you expect)"
        )
    if perfect:
        return f"fits {perfect[0]}, {of}"
    best = fits[0]
    return f"nearest: {best}, where {len(best.odd)} tensors do not fit, such as {best.odd[0]}"


def classes_of(weights: Mapping[str, Tensor]) -> int:
    """Return the number of rows of the last matrix; 0: there is none."""
    return next((len(t) for t in reversed(list(weights.values())) if t.ndim == 2), 0)


def _badness(fit: Fit) -> tuple[int, int]:
    return len(fit.odd), len(fit.settings)


def _candidates(
    architecture: type[Architecture], weights: Mapping[str, Tensor]
) -> Iterator[tuple[dict[str, Any], Architecture]]:
    """Yield settings worth a try: widths that the first convolution tells, blocks, stems."""
    first = next((t for t in weights.values() if t.ndim == 4 and t.shape[1] in (1, 3)), None)
    fields, base = architecture.model_fields, {}
    if "pretrained" in fields:
        base["pretrained"] = False
    widths: list[Any] = [None]
    if "width" in fields and first is not None:
        channels = first.shape[0]
        widths = [None, channels, channels // 2, channels / 16]
    for width in widths:
        for blocks in (None, 1) if "blocks" in fields else (None,):
            for stem in (None, 3) if "stem" in fields else (None,):
                tried = {"width": width, "blocks": blocks, "stem": stem}
                tried = {key: value for key, value in tried.items() if value is not None}
                try:
                    made = architecture(**base, **tried)
                except (ConfigError, ValueError):
                    continue
                plain = {k: v for k, v in tried.items() if v != _default(architecture, k)}
                if plain == tried:  # otherwise it is another candidate once more
                    yield plain, made


def _default(architecture: type[Settings], key: str) -> Any:
    return architecture.model_fields[key].default


def _odd(made: Architecture, weights: Mapping[str, Tensor], classes: int) -> list[str]:
    """Return the names of the tensors that only one side has, or that differ in shape."""
    try:
        model = made.skeleton(classes)
    except (ConfigError, ValueError, RuntimeError):  # such as a width that it cannot have
        return list(weights)
    own = model.state_dict()
    theirs = {renamed(name, own, model): (name, tensor) for name, tensor in weights.items()}
    odd = [name for name in own if name not in theirs]
    for name, (called, tensor) in theirs.items():
        if name not in own or own[name].shape != tensor.shape:
            odd.append(called)
    return odd
