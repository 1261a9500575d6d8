"""One optimizer step, captured as a CUDA graph where that can be done."""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppr_core.runtime import autocast, counted, current

log = logging.getLogger(__name__)

Batch = tuple[Tensor, ...]
# (float images in [0, 1], labels) -> the scalar loss of a batch.
Loss = Callable[[Tensor, Tensor], Tensor]
# Fills the parameters' `.grad` by calling the closure that it is given, which evaluates the loss
# of the batch at the weights as they then are; returns the loss to record.
Gradient = Callable[[Callable[[], Tensor]], Tensor]


class Step:
    """One optimizer step; on CUDA it may be captured as a graph, once, and replayed.

    Where the session asks for it, the backbone is compiled: in what is captured, and on a CPU for
    the batches of the first one's size (the last of an epoch is smaller: not worth a second time).

    At the field's batch of 128 a small network is bound by kernel launches, not by arithmetic;
    replaying a graph launches once: the look-up and augmentation of the batch, the loss, its
    gradient and the update. A step that cannot be captured runs eagerly, to the same numbers.

    Args:
        model: whose buffers the step may write.
        loss: of a batch.
        gradient: fills `.grad` from the loss.
        optimizer: applies `.grad`.
        load: makes (images, labels) of what the step is called with.
        capturable: neither load nor loss nor gradient reads from the host or draws on it.
        compilable: the training is long enough to compile the backbone on a CPU.
        writes: the tensors that they write beside those of the model and of the optimizer.
    """

    worth = 32  # steps below which warming up and capturing cost more than they save
    worth_compiling = 1000  # likewise on a CPU, where compiling takes half a minute

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        gradient: Gradient,
        optimizer: torch.optim.Optimizer,
        *,
        load: Callable[..., Batch],
        capturable: bool,
        compilable: bool = False,
        writes: Sequence[Tensor] = (),
    ) -> None:
        self._model, self._loss, self._gradient, self._optimizer = model, loss, gradient, optimizer
        self._load, self._writes, self._capturable = load, writes, capturable
        self._compilable = compilable
        self._replay: Callable[[], None] | None = None
        self._compiled_for: list[torch.Size] | None = None

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Step on one batch at this learning rate; return the loss."""
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self._capturable and _can_capture(self._optimizer, batch):
            self._capture(batch)
        if self._compilable and not batch[0].is_cuda:
            self._compiled_for = [tensor.shape for tensor in batch]
        # One attempt: if it failed, the next would, too.
        self._compilable = self._capturable = False
        if self._replay is None or any(
            held.shape != new.shape for held, new in zip(self._held, batch, strict=True)
        ):  # such as the last, smaller batch of an epoch
            if self._compiled_for == [tensor.shape for tensor in batch]:
                return self._work_compiled(*batch)
            return self._work(*batch)
        for held, new in zip(self._held, batch, strict=True):
            held.copy_(new)
        self._replay()
        for cost, passes in self._passes:
            cost.passes = tuple(map(sum, zip(cost.passes, passes, strict=True)))
        return self._value

    def _work(self, *batch: Tensor) -> Tensor:
        images, labels = self._load(*batch)
        self._optimizer.zero_grad()
        with autocast(images.device):
            value = self._gradient(lambda: self._loss(images, labels))
        self._optimizer.step()
        return value

    def _work_compiled(self, *batch: Tensor) -> Tensor:
        try:
            with _compiled(self._model):
                return self._work(*batch)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # takes a second to import

            if not isinstance(error, TorchDynamoException):
                raise
            self._compiled_for = None
            log.warning("training without compiling: %s", str(error).partition("\n")[0])
            return self._work(*batch)

    def _state(self) -> list[Tensor]:
        """Return what a step writes, the optimizer's slots last: a warm-up may make them."""
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        slots = [v for s in self._optimizer.state.values() for v in s.values()]
        slots = [v for v in slots if isinstance(v, Tensor)]
        return [*self._model.buffers(), *trained, *self._writes, *slots]

    def _capture(self, batch: Batch) -> None:
        """Capture one step on a copy of the batch; afterwards nothing has been stepped."""
        self._held = tuple(tensor.clone() for tensor in batch)
        costs = [(cost, cost.passes) for cost in counted.get()]
        before = [tensor.clone() for tensor in self._state()]
        fresh = not self._optimizer.state

        @torch.no_grad()
        def put_back() -> None:
            self._optimizer.zero_grad()
            for index, tensor in enumerate(self._state()):
                # Slots that the warm-up made start from zero, as they would have.
                tensor.zero_() if fresh and index >= len(before) else tensor.copy_(before[index])
            for cost, passes in costs:
                cost.passes = passes

        try:
            with _compiled(self._model):
                self._value, self._replay = _captured(lambda: self._work(*self._held), put_back)
        except RuntimeError as error:  # the step as it stands does the same, more slowly
            put_back()
            log.warning("training without a CUDA graph: %s", str(error).partition("\n")[0])
            return
        # A replay calls no hooks, so it adds what they counted while the step was captured.
        self._passes = [
            (cost, tuple(b - a for a, b in zip(passes, cost.passes, strict=True)))
            for cost, passes in costs
        ]
        for cost, passes in costs:
            cost.passes = passes


def _can_capture(optimizer: torch.optim.Optimizer, batch: Batch) -> bool:
    """Say whether a step can be captured: on CUDA, with a learning rate that replays read anew."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return batch[0].is_cuda and all(isinstance(rate, Tensor) and rate.is_cuda for rate in rates)


_capturing = threading.Lock()  # CUDA makes one capture at a time in a process


def _captured(
    work: Callable[[], Tensor], put_back: Callable[[], None]
) -> tuple[Tensor, Callable[[], None]]:
    """Warm `work` up, undo that, and capture it.

    Returns:
        The tensor that holds the result after each replay, and the function that replays.
    """
    here, stream, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    try:
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            for _ in range(3):  # on a side stream, as CUDA graphs ask for
                work()
        here.wait_stream(stream)
        put_back()
        # Other threads may go on: only this one must not do what cannot be captured. torch would
        # capture on a stream of its own, one for all graphs: they would share the scratch memory
        # that cuBLAS has for a stream, and the first to be freed would take it from the others.
        place: dict[str, Any] = {"stream": stream, "capture_error_mode": "thread_local"}
        with _capturing, torch.cuda.graph(graph, **place):
            value = work()
    finally:
        torch.cuda.set_stream(here)  # a capture that failed may leave its own stream current
    return value, graph.replay


@functools.cache
def _compiler() -> Callable[[nn.Module, Tensor], Tensor]:
    """Return one compiled forward pass for all networks: those of one structure share its code."""
    return torch.compile(lambda network, maps: type(network).forward(network, maps), dynamic=False)


@contextlib.contextmanager
def _compiled(model: nn.Module) -> Iterator[None]:
    """Compile a classifier's backbone for a while, if the session asks; hooks on it still run."""
    backbone = getattr(model, "backbone", None) if current().compile else None
    if backbone is None:
        yield
        return
    backbone.forward = functools.partial(_compiler(), backbone)
    try:
        yield
    finally:
        del backbone.forward
