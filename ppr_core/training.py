"""The one loop that steps an optimizer over a data set."""

import logging
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field, Settings
from ppr_core.data.images import Augment, ImageSet, batches
from ppr_core.errors import CheckpointError, need
from ppr_core.models import check_same_shapes
from ppr_core.runtime import Record, Session, autocast, current

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
Gradient = Callable[[Callable[[], Tensor]], Tensor]


class Schedule(Settings):
    """How long, how fast and on what batches to train."""

    epochs: int = Field(10, ge=0, description="passes over the data")
    steps: int | None = Field(None, ge=0, description="optimizer steps; replaces epochs")
    batch_size: int = Field(128, ge=1, description="images a step")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="update rule")
    lr: float = Field(0.01, ge=0, description="initial learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on all parameters")
    amsgrad: bool = Field(False, description="Adam's AMSGrad variant")
    decay: Literal["constant", "cosine"] = Field("constant", description="cosine: to zero")
    decay_by: Literal["epoch", "step"] = Field("epoch", description="when the rate changes")
    half_wave: int | None = Field(
        None, ge=1, description="cosine: steps from the full rate to zero; none: the whole training"
    )
    crop: int = Field(4, ge=0, description="zero padding of the random crop, pixels a side")
    flip: bool = Field(True, description="flip half of the images left to right")
    drop_last: bool = Field(False, description="leave out the last batch if it is not full")

    def epoch_steps(self, count: int) -> int:
        """Return the optimizer steps of one epoch over `count` images."""
        full, rest = divmod(count, self.batch_size)
        return full + (1 if rest and not (self.drop_last and full) else 0)

    def total_steps(self, count: int) -> int:
        """Return the optimizer steps of the whole schedule over `count` images."""
        return self.epochs * self.epoch_steps(count) if self.steps is None else self.steps

    def epoch_by_epoch(self, count: int) -> Iterator[Self]:
        """Yield one schedule an epoch, each at the initial rate, for what may stop early."""
        per_epoch = self.epoch_steps(count)
        for done in range(0, self.total_steps(count), per_epoch):
            steps = min(per_epoch, self.total_steps(count) - done)
            yield self.replace(steps=steps, decay="constant")

    def rate(self, step: int, epoch_steps: int, total: int) -> float:
        """Return the learning rate at a step (0-based) of `total`."""
        if self.decay == "constant":
            return self.lr
        done = step if self.decay_by == "step" else step // epoch_steps * epoch_steps
        return self.lr * 0.5 * (1 + math.cos(math.pi * done / (self.half_wave or total)))


def make_optimizer(parameters: Iterable[Tensor], schedule: Schedule) -> torch.optim.Optimizer:
    """Build the schedule's optimizer; fused, and with its rate on the device, on CUDA."""
    parameters = [p for p in parameters if p.requires_grad]
    need(parameters, "expected at least one trainable parameter, got none")
    cuda = parameters[0].is_cuda
    lr = torch.tensor(schedule.lr, device=parameters[0].device) if cuda else schedule.lr
    common = {"lr": lr, "weight_decay": schedule.weight_decay, "fused": cuda or None}
    if schedule.optimizer == "adam":
        extra = {"amsgrad": schedule.amsgrad, "capturable": cuda}
        return torch.optim.Adam(parameters, **common, **extra)
    return torch.optim.SGD(parameters, momentum=schedule.momentum, **common)


def cross_entropy(model: nn.Module, smoothing: float = 0.0) -> Loss:
    """Return the mean cross-entropy of the model's logits, as a loss of a batch."""
    return lambda images, labels: F.cross_entropy(model(images), labels, label_smoothing=smoothing)


def plain_gradient(loss: Callable[[], Tensor]) -> Tensor:
    """Fill the gradients of one loss; the default way to step."""
    value = loss()
    value.backward()
    return value.detach()


def fit(
    model: nn.Module,
    data: ImageSet,
    schedule: Schedule,
    *,
    rng: torch.Generator,
    loss: Loss | None = None,
    gradient: Gradient = plain_gradient,
    on_batch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    after_step: Callable[[], None] | None = None,
    parameters: Iterable[Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    train_mode: bool = True,
    name: str = "",
) -> list[Record]:
    """Train in place; every training, tuning and generator fit of the package runs here.

    Args:
        model: what is trained; put into train mode, left in eval mode.
        data: images and labels, on the model's device.
        schedule: budget, optimizer, batches and augmentation.
        rng: CPU generator of the shuffles and crops.
        loss: (float images in [0, 1], labels) -> scalar; cross-entropy of `model` if not given.
        gradient: fills `.grad` by calling the closure it is given as often as it likes
            (SAM: twice; PAM: once, at moved weights), and returns the loss to record.
        on_batch: changes each augmented batch before the loss.
        after_step: called after each optimizer step, such as a projection.
        parameters: what the optimizer steps; the model's if not given.
        optimizer: keep this optimizer and its state instead of making a new one.
        train_mode: False keeps the model in eval mode (batch-norm buffers untouched).
        name: names a long training: it is evaluated each epoch, and can be resumed.

    Returns:
        One record an epoch: epoch (from 1), loss, seconds, and what the session evaluates.

    Raises:
        ConfigError: an empty set, or a loss that is not finite at the end of an epoch.
    """
    need(len(data) > 0, "expected at least one image to train on, got an empty set")
    now = current()
    trained = list(model.parameters() if parameters is None else parameters)
    optimizer = optimizer or make_optimizer(trained, schedule)
    static = loss is None and gradient is plain_gradient and after_step is None
    step = _Step(model, loss or cross_entropy(model), gradient, optimizer, static)
    per_epoch = schedule.epoch_steps(len(data))
    total = schedule.total_steps(len(data))
    epochs = -(-total // per_epoch)
    plain = schedule.crop == 0 and not schedule.flip
    augment = None if plain else Augment(data, crop=schedule.crop, flip=schedule.flip)
    checkpoint = _Checkpoint(now, name, model, optimizer, rng)
    history = checkpoint.resume()
    for epoch in range(len(history), epochs):
        model.train(train_mode)
        clock, summed = time.perf_counter(), torch.zeros((), device=data.device)
        budget = min(per_epoch, total - epoch * per_epoch)
        shuffled = batches(data, schedule, rng=rng, augment=augment)
        for index, batch in enumerate(islice(shuffled, budget), epoch * per_epoch):
            images, labels = on_batch(*batch) if on_batch else batch
            summed += step(images, labels, schedule.rate(index, per_epoch, total))
            if after_step:
                after_step()
        record = {"epoch": epoch + 1, "loss": float(summed) / budget}
        record["seconds"] = time.perf_counter() - clock
        _check_finite(record, name, schedule)
        model.eval()
        if name and now.evaluate:
            record |= now.evaluate(model)
        history.append(record)
        checkpoint.save(history, done=epoch + 1 == epochs)
        if now.report:
            now.report(name, history, epochs)
    model.eval()
    return history


def _check_finite(record: Record, name: str, schedule: Schedule) -> None:
    need(
        math.isfinite(record["loss"]),
        f"expected a finite loss, got {record['loss']} in epoch {record['epoch']} of "
        f"{name or 'a tuning'}; lower its lr (now {schedule.lr})",
    )


class _Step:
    """One optimizer step; on CUDA a static one is captured as a graph and replayed.

    At the field's batch of 128 a small network is bound by kernel launches, not by arithmetic;
    replaying a graph launches once.
    """

    warmup = 3  # steps on a side stream before the capture, as CUDA graphs ask for

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        gradient: Gradient,
        optimizer: torch.optim.Optimizer,
        static: bool,
    ) -> None:
        self.model, self.loss, self.gradient, self.optimizer = model, loss, gradient, optimizer
        self.static = static
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if not (self.static and images.is_cuda):
            return self._eager(images, labels)
        if self.graph is None:
            self._capture(images, labels)
        if images.shape != self.images.shape:  # the last, smaller batch of an epoch
            return self._eager(images, labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.value

    def _eager(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=self.graph is None)
        with autocast(images.device):
            value = self.gradient(lambda: self.loss(images, labels))
        self.optimizer.step()
        return value

    def _state(self) -> list[Tensor]:
        slots = [v for s in self.optimizer.state.values() for v in s.values()]
        return [*self.model.state_dict().values(), *(v for v in slots if isinstance(v, Tensor))]

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        """Warm up, put every weight and buffer back, then record one step."""
        self.images, self.labels = images.clone(), labels.clone()
        fresh = not self.optimizer.state
        before = [tensor.clone() for tensor in self._state()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.warmup):
                self._eager(self.images, self.labels)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for index, tensor in enumerate(self._state()):
                # Slots that the warm-up made start from zero, as they would have.
                tensor.zero_() if fresh and index >= len(before) else tensor.copy_(before[index])
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.value = self._eager(self.images, self.labels)
        self.graph = graph


class _Checkpoint:
    """The last finished epoch of a named training, in one file that is replaced atomically."""

    interval_s = 2.0  # a checkpoint costs milliseconds; one every other second loses little

    def __init__(
        self,
        now: Session,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> None:
        self.path = now.checkpoint / f"{name}.pt" if now.checkpoint and name else None
        self.model, self.optimizer, self.rng = model, optimizer, rng
        self.saved = time.monotonic()

    def resume(self) -> list[Record]:
        """Restore the last saved epoch, if there is one; return the records so far."""
        if self.path is None or not self.path.is_file():
            return []
        try:  # tensors and plain values only: a pickle that runs code is refused
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(
                f"expected an epoch checkpoint in {self.path}, got: {reason}; delete that file to "
                "train from the start"
            ) from None
        check_same_shapes(state["model"], self.model.state_dict())
        self.model.load_state_dict(state["model"])
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the loaded one lies on the CPU; the schedule sets it anyway
        self.rng.set_state(state["rng"])
        log.info("resuming %s after epoch %d", self.path.stem, len(state["history"]))
        return state["history"]

    def save(self, history: list[Record], *, done: bool) -> None:
        """Save this epoch, unless the last save was a moment ago."""
        if self.path is None or (time.monotonic() - self.saved < self.interval_s and not done):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{self.path}.part")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "history": history,
        }
        torch.save(state, part)
        part.replace(self.path)
        self.saved = time.monotonic()
