"""Unlearn the clean task by gradient ascent; what RNP and TSBD begin with."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.data.images import ImageSet
from ppr_core.metrics import clean_accuracy
from ppr_core.runtime import Record
from ppr_core.training.fit import Gradient, Schedule, fit, make_optimizer


def forget(
    model: nn.Module,
    data: ImageSet,
    schedule: Schedule,
    *,
    floor: float,
    judged: Literal["training", "eval"],
    rng: torch.Generator,
    decay_epoch: int | None = None,
    clip: float = 0.0,
) -> list[Record]:
    """Raise the cross-entropy of clean images until hardly any is classified correctly.

    Args:
        model: changed in place.
        data: clean images.
        schedule: the longest that it may take; its rate is constant but for `decay_epoch`.
        floor: accuracy at which to stop after an epoch, percent.
        judged: accuracy of the epoch's batches as they were trained on; or of all images after
            the epoch, in eval mode.
        rng: of the shuffles and crops.
        decay_epoch: epoch (from 1) after which the rate is a tenth.
        clip: bound of the gradient's norm; 0: none.

    Returns:
        One record an epoch: its loss (rising) and accuracy in percent.
    """
    hits = torch.zeros((), device=data.device)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        hits.add_((logits.argmax(1) == labels).sum())
        return -F.cross_entropy(logits, labels)

    optimizer, history = make_optimizer(model.parameters(), schedule), []
    hooks: dict[str, Any] = {"loss": loss, "gradient": _clipped(model, clip)}
    for number, epoch in enumerate(schedule.epoch_by_epoch(len(data)), 1):
        late = decay_epoch is not None and number > decay_epoch
        epoch = epoch.replace(lr=schedule.lr * (0.1 if late else 1.0))
        hits.zero_()
        (record,) = fit(model, data, epoch, rng=rng, optimizer=optimizer, **hooks)
        seen = min(epoch.total_steps(len(data)) * epoch.batch_size, len(data))
        accuracy = 100 * float(hits) / seen if judged == "training" else clean_accuracy(model, data)
        history.append({"epoch": number, "loss": -record["loss"], "accuracy": accuracy})
        if accuracy <= floor:
            break
    return history


def _clipped(model: nn.Module, bound: float) -> Gradient:
    def gradient(loss: Callable[[], Tensor]) -> Tensor:
        value = loss()
        value.backward()
        if bound:
            nn.utils.clip_grad_norm_(model.parameters(), bound)
        return value.detach()

    return gradient
