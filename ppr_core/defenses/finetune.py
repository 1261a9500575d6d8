"""Plain fine-tuning on clean images, of all weights or of a part: FT, LP, FT-init, FE-tuning."""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.method import Outcome, fork
from ppr_core.models.base import Classifier
from ppr_core.training.fit import Loss, Schedule, cross_entropy, fit

# Source: BackdoorBench, the tuning of most defenses that it has.
BENCH = Schedule(epochs=100, lr=0.01, weight_decay=5e-4, batch_size=256, decay="cosine")


class _FineTuning(Defense):
    """What the four ways share; they differ in what is drawn anew and in what is trained.

    The whole network is in train mode, so batch-norm statistics follow the tuning data even where
    the weights before them are fixed.

    Differs from the authors' code: it puts the head's weight back to its first norm after every
    step in all modes; here that is part of FST alone, and an option elsewhere.
    """

    fresh: ClassVar[bool] = False  # draw the head anew first
    fixed: ClassVar[str] = ""  # the part that is not trained

    smoothing: float = Field(0.0, ge=0, le=0.5, description="probability moved to other labels")
    rescale_all: bool = Field(
        False, description="keep the norm of the head's weight in this mode, too (authors' code)"
    )
    schedule: Schedule = Field(Schedule(epochs=10, lr=0.01, decay="cosine"), description="tuning")

    def needed(self) -> tuple[str, ...]:
        """Return the parts that this mode singles out."""
        return self.needs or (("linear",) if self.rescale_all else ())

    def run(self, model: Classifier, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Draw the head anew where the mode says so, then train the part that is not fixed."""
        keep = keep_norm(model.linear.weight) if self.rescale_all else None
        if self.fresh:
            draw_head(model.linear, fork(rng, "head"))
        if self.fixed:
            model.get_submodule(self.fixed).requires_grad_(False)
        history = fit(
            model,
            data,
            self.schedule,
            rng=fork(rng, "tune"),
            loss=smoothed(model, self.smoothing, data.num_classes),
            after_step=keep,
            capturable=True,
            resume="tune",
        )
        return Outcome(model, history)


class Ft(_FineTuning):
    """Fine-tune all weights."""

    source: ClassVar[str] = "Min et al. 2023, arXiv:2310.01875, sec. 3.1"


class Lp(_FineTuning):
    """Linear probing: train the head only."""

    source: ClassVar[str] = "Min et al. 2023, arXiv:2310.01875, sec. 3.1"
    fixed: ClassVar[str] = "backbone"
    needs: ClassVar[tuple[str, ...]] = ("backbone", "linear")


class FtInit(_FineTuning):
    """Draw the head anew, then train all weights."""

    source: ClassVar[str] = "Min et al. 2023, arXiv:2310.01875, sec. 3.2"
    fresh: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("linear",)


class FeTuning(_FineTuning):
    """Draw the head anew, leave it as drawn, and train everything before it."""

    source: ClassVar[str] = "Min et al. 2023, arXiv:2310.01875, sec. 3.2"
    fresh: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("linear",)
    fixed: ClassVar[str] = "linear"


@torch.no_grad()
def draw_head(linear: nn.Linear, rng: torch.Generator) -> None:
    """Draw weight and bias from U(-1/sqrt(d), 1/sqrt(d)), d the layer's input width."""
    bound = 1 / math.sqrt(linear.in_features)
    for tensor in linear.parameters():
        # Drawn on the CPU, so that one seed gives the same head on every device.
        tensor.copy_((2 * torch.rand(tensor.shape, generator=rng) - 1) * bound)


def keep_norm(weight: Tensor) -> Callable[[], None]:
    """Return a projection that scales `weight` back to the norm that it has now."""
    length = torch.linalg.vector_norm(weight.detach())

    @torch.no_grad()
    def project() -> None:
        weight.mul_(length / torch.linalg.vector_norm(weight))

    return project


def smoothed(model: nn.Module, smoothing: float, num_classes: int) -> Loss | None:
    """Return cross-entropy with labels of 1 - s, the others s / (C - 1); None without smoothing.

    torch spreads its share over all C classes, the true one included: hence the factor.
    """
    if not smoothing:
        return None  # the default loss of `fit`
    return cross_entropy(model, smoothing * num_classes / (num_classes - 1))
