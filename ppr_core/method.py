"""What every attack, defense and reactivation is: hyper-parameters that can be called."""

import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

import psutil
import torch
from torch import Tensor, nn

from ppr_core.config import Settings
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need
from ppr_core.models.base import clone
from ppr_core.models.needs import need_all, need_true_cut
from ppr_core.runtime import Cost, Record, counted, seed_of, seeded

if sys.platform != "win32":
    import resource


@dataclass
class Outcome:
    """What a method returns.

    Attributes:
        model: the new model, in eval mode; the one passed in is never changed.
        history: one record an epoch.
        info: findings worth a row: labels detected, settings chosen, ...; under "warnings" what the
            method doubts: with one that says saturated, uncertain or unready a row has no verdict.
        tensors: further results to keep, such as masks, by name.
        cost: passes, seconds and memory; filled by the base class.
    """

    model: nn.Module
    history: list[Record] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


@dataclass
class Result:
    """What a stage of a study leaves behind.

    Attributes:
        tensors: weights, masks, prepared triggers, by name.
        info: settings chosen, labels detected, counts: anything that is JSON.
        metrics: the figures a person compares, by name.
        history: one record an epoch.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    metrics: Record = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)

    @classmethod
    def of(cls, outcome: Outcome) -> "Result":
        """Return what is kept of an outcome: the model's weights are the tensors "model."."""
        weights = {f"model.{name}": t for name, t in outcome.model.state_dict().items()}
        cost = {f"cost_{name}": float(value) for name, value in vars(outcome.cost).items()}
        tensors = {**outcome.tensors, **weights}
        return cls(tensors, outcome.info, cost, list(outcome.history))


class Method(Settings):
    """A frozen group of hyper-parameters, called as `method(model, data, rng=rng)`.

    It holds no model, tensor, device or path. `run` receives a copy of the model, may change it,
    and returns an Outcome. What else a method needs stands, by name and keyword-only, in its own
    `run`; the signature is the threat model.
    """

    version: ClassVar[int] = 1  # raise it when results change: cached stages are then recomputed
    privileges: ClassVar[str] = "none"  # the information used besides model and clean reserve
    needs: ClassVar[tuple[str, ...]] = ()  # of the model, besides forward and parameters
    asks: ClassVar[str] = ""  # what its own `check` asks of a model beyond that, for lists

    @property
    def oracle(self) -> bool:
        """Whether, so configured, it uses what a real defender cannot have."""
        return False

    @property
    def uses(self) -> str:
        """The information that it uses, so configured, besides model and clean reserve."""
        return self.privileges

    if TYPE_CHECKING:  # (model, data, *, rng) and, by name, what else a method asks for
        run: ClassVar[Callable[..., Outcome]]
    else:

        def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
            """Do the work on a model that may be changed."""
            raise NotImplementedError(f"{type(self).__name__}.run")

    def needed(self) -> tuple[str, ...]:
        """Return what, so configured, it needs of a model: keys of `models.needs.NEEDS`."""
        return self.needs

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise ConfigError or DataError at once where this method cannot serve model or data.

        The model may lie on the meta device (`Architecture.skeleton`), before anything runs.
        """
        need_all(model, self.needed(), type(self).__name__)
        if "features and head" in self.needed():
            need_true_cut(model, data.images[:2].float() / 255)

    @final
    def __call__(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, **named: Any
    ) -> Outcome:
        """Check, copy the model, run, measure.

        Args:
            model: left untouched.
            data: uint8 images and labels on the model's device.
            rng: CPU generator, the only source of randomness.
            named: what this method's own `run` asks for by name, and nothing else.

        Raises:
            TypeError: a name that `run` does not have, or one that it misses.
            DataError: no data, or data on another device than the model.
            ConfigError: this method cannot serve this model.
        """
        inspect.signature(self.run).bind(model, data, rng=rng, **named)
        device = next(model.parameters()).device
        need(len(data) > 0, f"{type(self).__name__}: expected images, got an empty set", DataError)
        need(data.device == device, f"expected data on {device}, got {data.device}", DataError)
        self.check(model, data)
        copy, cost = clone(model), Cost()
        # Dropout draws from the global generator: it, too, shall follow this method's own.
        with measuring(copy, cost), seeded(seed_of(rng, "layers")):
            outcome = self.run(copy, data, rng=rng, **named)
        outcome.cost = cost
        outcome.model.eval().requires_grad_(True)
        return outcome


@contextlib.contextmanager
def measuring(model: nn.Module, cost: Cost) -> Iterator[None]:
    """Count what happens to a model into `cost`: passes, images, seconds, peak memory."""
    device = next(model.parameters()).device
    hooks = _count_passes(model, cost)
    token = counted.set((*counted.get(), cost))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clock = time.perf_counter()
    try:
        yield
    finally:
        counted.reset(token)
        for hook in hooks:
            hook.remove()
    cost.seconds = time.perf_counter() - clock
    cost.peak_bytes = _peak_bytes(device)


def fork(rng: torch.Generator, *names: str | int) -> torch.Generator:
    """Return an rng of its own for one part of a method; see `runtime.seed_of`."""
    return torch.Generator().manual_seed(seed_of(rng, *names))


def _peak_bytes(device: torch.device) -> int:
    """Return the peak memory: of this call on CUDA, of the whole process so far on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _count_passes(model: nn.Module, cost: Cost) -> list[torch.utils.hooks.RemovableHandle]:
    """Count passes through the classifier's backbone (through the model where it has none)."""

    def backward(gradient: Tensor) -> None:
        cost.backward += 1

    def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        cost.forward += 1
        cost.images += output.shape[0]
        if output.requires_grad:
            output.register_hook(backward)

    return [getattr(model, "backbone", model).register_forward_hook(forward)]
