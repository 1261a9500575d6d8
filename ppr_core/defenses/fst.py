"""FST: feature shift tuning, which pushes the head away from its backdoored weights."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.finetune import draw_head, keep_norm
from ppr_core.defenses.parts.selection import ChoosingByFloor
from ppr_core.method import Outcome, fork
from ppr_core.models.base import Classifier
from ppr_core.runtime import Record
from ppr_core.training.fit import Loss, Schedule, fit


class Fst(ChoosingByFloor):
    """Draw the head anew and tune all weights under a penalty on its inner product with the old.

    After every step the head's weight (not its bias) is scaled back to the norm that it had in
    the backdoored model.

    Differs from the paper: where alpha is chosen, the accuracy it must keep is a drop from what the
    model had, unless `c_acc_floor` is set to the paper's 92 %.
    """

    source: ClassVar[str] = "Min et al. 2023, arXiv:2310.01875, alg. 1; Min et al. 2024, sec. B.2"
    needs: ClassVar[tuple[str, ...]] = ("linear",)
    chosen: ClassVar[str] = "alpha"

    alpha: float = Field(0.1, ge=0, description="weight of the penalty")
    alpha_grid: list[Annotated[float, Field(ge=0)]] = Field(
        [], description="grid to choose alpha from, by validation C-Acc; empty: take alpha"
    )
    schedule: Schedule = Field(Schedule(epochs=10, lr=0.01, decay="cosine"), description="tuning")

    def run(
        self,
        model: Classifier,
        data: ImageSet,
        *,
        rng: torch.Generator,
        validation: ImageSet | None = None,
    ) -> Outcome:
        """Tune, at one alpha or at the largest of a grid that keeps the accuracy."""
        history, info = self.choose(
            model, validation, lambda alpha: self._tune(model, data, alpha, rng)
        )
        return Outcome(model, history, info)

    def _tune(
        self, model: Classifier, data: ImageSet, alpha: float, rng: torch.Generator
    ) -> list[Record]:
        head = model.linear
        old, keep = head.weight.detach().clone(), keep_norm(head.weight)
        draw_head(head, fork(rng, "head"))
        return fit(
            model,
            data,
            self.schedule,
            rng=fork(rng, "tune"),
            loss=shift_loss(model, old, alpha),
            after_step=keep,
            capturable=True,
            resume="tune",
        )


def shift_loss(model: Classifier, old: Tensor, alpha: float) -> Loss:
    """Return cross-entropy plus alpha times the inner product of the head's weight with `old`."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        shift = (model.linear.weight * old).sum()
        return F.cross_entropy(model(images), labels) + alpha * shift

    return loss
