"""Dist-Reg: tune on clean images, and away from the backdoored weights."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.defenses.weight_distortion import UNLEARNING
from ppr_core.method import Outcome, fork
from ppr_core.metrics import clean_accuracy
from ppr_core.runtime import Record
from ppr_core.training.fit import Schedule, fit, make_optimizer
from ppr_core.weights import snapshot

TOO_FAST = (
    "unready rate: the first epoch costs too much accuracy, so that nothing was changed; lower "
    "schedule.lr"
)


class DistReg(Defense):
    """Minimise cross-entropy less the root mean square distance from the start.

    The gradient of that distance is zero at the start, and at most alpha / sqrt(weights) long: it
    acts through Adam, which divides each weight's step by its size, and next to nothing with SGD.

    Differs from the paper: it unlearns examples, of which some are left out of a full training
    set; here the clean reserve stands for what is retained. Tuning ends before the epoch that
    costs more accuracy than allowed on held-out images, where there are any.
    """

    version: ClassVar[int] = 2
    source: ClassVar[str] = "Siddiqui et al. 2025, arXiv:2505.22310, and its released code"

    alpha: float = Field(1.0, ge=0, description="weight of the distance")
    c_acc_drop: float = Field(
        10.0, ge=0, description="validation accuracy at whose loss it stops, points"
    )
    schedule: Schedule = Field(UNLEARNING, description="tuning")

    def run(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        rng: torch.Generator,
        validation: ImageSet | None = None,
    ) -> Outcome:
        """Tune epoch by epoch, and undo the one that costs too much."""
        weights = list(model.parameters())
        start = [weight.detach().clone() for weight in weights]
        optimizer, history = make_optimizer(weights, self.schedule), list[Record]()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            distance = rms_distance(weights, start)
            return F.cross_entropy(model(images), labels) - self.alpha * distance

        floor, info = -1.0, dict[str, Any](stopped=False)
        if validation is not None and len(validation):
            floor = clean_accuracy(model, validation) - self.c_acc_drop
        for number, schedule in enumerate(self.schedule.epoch_by_epoch(len(data)), 1):
            before = snapshot(model)
            [record] = fit(
                model,
                data,
                schedule,
                rng=fork(rng, "tune", number),
                loss=loss,
                optimizer=optimizer,
                capturable=True,
            )
            if floor >= 0 and validation and clean_accuracy(model, validation) < floor:
                model.load_state_dict(before)
                info["stopped"] = True
                if number == 1:
                    info["warnings"] = [TOO_FAST]
                break
            history.append({**record, "epoch": number})
        return Outcome(model, history, info)


def rms_distance(weights: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Return sqrt(mean of squared differences + 1e-8), the mean over all weights at once."""
    apart = [(w - s).square().sum() for w, s in zip(weights, start, strict=True)]
    count = sum(weight.numel() for weight in weights)
    return (torch.stack(apart).sum() / count + 1e-8).sqrt()
