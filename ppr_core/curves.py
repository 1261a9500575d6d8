"""Quadratic paths between two networks: mode connectivity."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ppr_core.data.images import ImageSet, to_float
from ppr_core.metrics import EVAL_BATCH
from ppr_core.models.base import check_same_shapes, clone
from ppr_core.runtime import Record, autocast
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import State, interpolate, recalibrate, snapshot

# Source: TSC's released code, for CIFAR-10.
CURVE = Schedule(epochs=200, lr=0.02, weight_decay=5e-4, batch_size=256, decay="cosine")


def bezier(
    start: Mapping[str, Tensor], middle: Mapping[str, Tensor], end: Mapping[str, Tensor], t: float
) -> State:
    """Return (1-t)^2 start + 2t(1-t) middle + t^2 end; at t = 0 and t = 1 the ends' own values.

    Source: Garipov et al. 2018, arXiv:1802.10026, sec. 3.2. Batch-norm statistics go along like
    weights; integer counters come from `end`.

    Raises:
        CheckpointError: the three differ in names or shapes.
    """
    check_same_shapes(middle, end)
    straight = interpolate(start, end, t)
    if t in (0, 1):
        return straight
    bent = {n: last for n, last in end.items() if last.is_floating_point()}
    return straight | {n: _at(t, start[n], middle[n], last) for n, last in bent.items()}


def fit_curve(
    model: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    data: ImageSet,
    schedule: Schedule,
    *,
    rng: torch.Generator,
    decay: float = 0.0,
    resume: str = "",
) -> list[Record]:
    """Train the middle of a quadratic path, so that losses along it are low.

    Each step draws t from U(0, 1), and steps the middle by the gradient of the cross-entropy at
    that point of the path. The middle starts halfway between the ends.

    Source: Garipov et al. 2018, arXiv:1802.10026, sec. 3.3.

    Args:
        model: becomes the middle.
        start: weights at t = 0.
        end: weights at t = 1.
        data: images to train on.
        schedule: of the middle.
        rng: of the shuffles, the crops and the positions.
        decay: weight of half the square of the weights at the point, added to the loss.
        resume: as of `fit`.
    """
    model.load_state_dict(interpolate(start, end, 0.5))
    middle = dict(model.named_parameters())
    draw = drawn_anew(rng)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        t = float(torch.rand((), generator=draw()))
        at = {n: _at(t, start[n], weight, end[n]) for n, weight in middle.items()}
        value = F.cross_entropy(functional_call(model, at, (images,)), labels)
        if decay:
            value = value + decay / 2 * sum(weight.square().sum() for weight in at.values())
        return value

    return fit(model, data, schedule, rng=rng, loss=loss, resume=resume)


def _at(t: float, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end


def drawn_anew(rng: torch.Generator) -> Callable[[], torch.Generator]:
    """Return what gives a generator for the draws of a step, which a resumed training repeats.

    `fit` draws all of an epoch before its first batch: `rng` then stands still, and its state
    names the epoch, also after a resume.
    """
    now, own = torch.zeros(0), rng

    def draw() -> torch.Generator:
        nonlocal now, own
        state = rng.get_state()
        if not torch.equal(state, now):
            now, copy = state, torch.Generator()
            copy.set_state(state)
            own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=copy)))
        return own

    return draw


def recalibrated(model: nn.Module, state: Mapping[str, Tensor], clean: ImageSet) -> State:
    """Return weights with batch-norm statistics taken anew from images; the model is left alone."""
    moved = clone(model)
    moved.load_state_dict(state)

    def forward() -> None:
        with autocast(clean.device):
            for part in clean.images.split(EVAL_BATCH):
                moved(to_float(part))

    recalibrate(moved, forward)
    return snapshot(moved)
