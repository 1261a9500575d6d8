"""The one loop that steps an optimizer over a data set."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field, Settings
from ppr_core.data.images import Augment, ImageSet, look_up, picks
from ppr_core.errors import need
from ppr_core.runtime import Record, current
from ppr_core.training.capture import Batch, Gradient, Loss, Step
from ppr_core.training.checkpoint import Checkpoint


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
        """Return the optimizer steps of one epoch over `count` images.

        Differs from the authors' code: a last batch of a single image is left out. Batch norm
        has no variance to take from it: torch refuses one on a map of 1x1, as of DenseNet-161 at
        32 pixels. The shuffle leaves out another image each epoch.
        """
        full, rest = divmod(count, self.batch_size)
        kept = rest >= (self.batch_size if self.drop_last else 2)
        return full + kept or min(count, 1)  # a set smaller than a batch is one

    def total_steps(self, count: int) -> int:
        """Return the optimizer steps of the whole schedule over `count` images."""
        return self.epochs * self.epoch_steps(count) if self.steps is None else self.steps

    def epoch_by_epoch(self, count: int) -> Iterator[Self]:
        """Yield one schedule an epoch, each at the initial rate, for what may stop early."""
        per_epoch = self.epoch_steps(count)
        for done in range(0, self.total_steps(count), per_epoch):
            steps = min(per_epoch, self.total_steps(count) - done)
            yield self.replace(steps=steps, decay="constant")

    def augment(self, data: ImageSet) -> Augment | None:
        """Return the random crops and flips of the images; None where there are none."""
        if self.crop or self.flip:
            return Augment(data, crop=self.crop, flip=self.flip)
        return None

    def rate(self, step: int, epoch_steps: int, total: int) -> float:
        """Return the learning rate at a step (0-based) of `total`."""
        if self.decay == "constant":
            return self.lr
        done = step if self.decay_by == "step" else step // epoch_steps * epoch_steps
        return self.lr * 0.5 * (1 + math.cos(math.pi * done / (self.half_wave or total)))


# Source: the authors' code for CIFAR-10 (specified as the recipe of every victim model).
VICTIM = Schedule(
    epochs=100, batch_size=128, lr=0.1, weight_decay=5e-4, decay="cosine", drop_last=True
)


def make_optimizer(parameters: Iterable[Tensor], schedule: Schedule) -> torch.optim.Optimizer:
    """Build the schedule's optimizer; fused, and with its rate on the device, on CUDA."""
    parameters = [p for p in parameters if p.requires_grad]
    need(parameters, "expected at least one trainable parameter, got none")
    cuda = parameters[0].is_cuda
    lr = torch.tensor(schedule.lr, device=parameters[0].device) if cuda else schedule.lr
    decay = schedule.weight_decay
    common: dict[str, Any] = {"lr": lr, "weight_decay": decay, "fused": cuda or None}
    if schedule.optimizer == "adam":
        return torch.optim.Adam(parameters, **common, amsgrad=schedule.amsgrad, capturable=cuda)
    return torch.optim.SGD(parameters, momentum=schedule.momentum, **common)


def cross_entropy(model: nn.Module, smoothing: float = 0.0) -> Loss:
    """Return the mean cross-entropy of the model's logits, as a loss of a batch."""
    return lambda images, labels: F.cross_entropy(model(images), labels, label_smoothing=smoothing)


def plain_gradient(loss: Callable[[], Tensor]) -> Tensor:
    """Fill the gradients of the loss at the current weights, and return its value."""
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
    on_batch: Callable[[Tensor, Tensor], Batch] | None = None,
    after_step: Callable[[], None] | None = None,
    parameters: Iterable[Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    train_mode: bool = True,
    capturable: bool = False,
    writes: Sequence[Tensor | torch.Generator] = (),
    resume: str = "",
    evaluate: bool = False,
) -> list[Record]:
    """Train in place; every training, tuning and generator fit of the package runs here.

    Args:
        model: what is trained; put into train mode, left in eval mode.
        data: images and labels, on the model's device.
        schedule: budget, optimizer, batches and augmentation.
        rng: CPU generator of the shuffles and crops.
        loss: (float images in [0, 1], labels) -> scalar; the model's cross-entropy if not given.
        gradient: fills `.grad` by calling the closure that it is given as often as it needs to
            (SAM: twice; PAM: once, at moved weights), and returns the loss to record.
        on_batch: changes each augmented batch before the loss.
        after_step: called after each optimizer step, such as a projection.
        parameters: what the optimizer steps; the model's if not given.
        optimizer: keep this optimizer and its state instead of making a new one.
        train_mode: False keeps the model in eval mode, so that batch-norm statistics stay.
        capturable: the step (loss, gradient and on_batch) makes no host reads or draws, so it may
            be captured as a CUDA graph. The default loss and gradient may be captured anyway, and
            on_batch is then called outside of the graph.
        writes: what steps and hooks change beside model, optimizer and rng: tensors, and
            generators that they draw from; a capturable step's tensors must all be named.
        resume: name of a long training, which is to go on from its last saved epoch after a kill;
            no two trainings of one session may have the same name.
        evaluate: add what the session's `evaluate` says of the model to every epoch's record.

    Returns:
        One record an epoch: epoch (from 1), loss, seconds, and what the session evaluates.

    Raises:
        ConfigError: an empty set, a name that was resumed by before, or a loss that is not finite
            at the end of an epoch.
    """
    need(len(data) > 0, "expected at least one image to train on, got an empty set")
    now = current()
    trained = list(model.parameters() if parameters is None else parameters)
    optimizer = optimizer or make_optimizer(trained, schedule)
    per_epoch, total = schedule.epoch_steps(len(data)), schedule.total_steps(len(data))
    epochs = -(-total // per_epoch)
    augment = schedule.augment(data)
    load = _loader(data, augment, on_batch)
    within = capturable or on_batch is None  # whether the step itself loads its batch
    default = loss is None and gradient is plain_gradient
    step = Step(
        model,
        loss or cross_entropy(model),
        gradient,
        optimizer,
        load=load if within else _unchanged,
        capturable=(capturable or default) and now.capture and total >= Step.worth,
        compilable=total >= Step.worth_compiling,
        writes=[other for other in writes if isinstance(other, Tensor)],
    )
    checkpoint = Checkpoint(resume, model, optimizer, rng, [*_not_of(model, trained), *writes])
    history = checkpoint.load()
    for epoch in range(len(history), epochs):
        model.train(train_mode)
        clock, summed = time.perf_counter(), torch.zeros((), device=data.device)
        budget = min(per_epoch, total - epoch * per_epoch)
        shuffled = picks(data, schedule.batch_size, rng=rng, augment=augment)
        for index, picked in enumerate(islice(shuffled, budget), epoch * per_epoch):
            batch = picked if within else load(*picked)
            summed += step(batch, schedule.rate(index, per_epoch, total))
            if after_step:
                after_step()
        record = {"epoch": epoch + 1, "loss": float(summed) / budget}
        record["seconds"] = time.perf_counter() - clock
        _check_finite(record, resume, schedule)
        model.eval()
        history.append(record | (now.evaluate(model) if evaluate and now.evaluate else {}))
        checkpoint.save(history, done=epoch + 1 == epochs)
        if now.report:
            now.report(resume, history, epochs)
    model.eval()
    return history


def _loader(
    data: ImageSet, augment: Augment | None, change: Callable[[Tensor, Tensor], Batch] | None
) -> Callable[..., Batch]:
    """Return what makes a batch of what `picks` has picked."""
    pictures = look_up(data, augment)
    if change is None:
        return pictures
    return lambda *picked: change(*pictures(*picked))


def _not_of(model: nn.Module, trained: Iterable[Tensor]) -> list[Tensor]:
    """Return those of the trained tensors that are no parameters of the model."""
    own = {id(parameter) for parameter in model.parameters()}
    return [tensor for tensor in trained if id(tensor) not in own]


def _check_finite(record: Record, name: str, schedule: Schedule) -> None:
    need(
        math.isfinite(record["loss"]),
        f"expected a finite loss, got {record['loss']} in epoch {record['epoch']} of "
        f"{name or 'a tuning'}; lower its lr (now {schedule.lr})",
    )


def _unchanged(images: Tensor, labels: Tensor) -> Batch:
    return images, labels
