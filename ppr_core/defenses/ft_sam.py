"""FT-SAM: fine-tuning by sharpness-aware minimization."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.defenses.finetune import smoothed
from ppr_core.method import Outcome, fork
from ppr_core.sharpness import sam_gradient
from ppr_core.training.fit import Schedule, fit

TUNING = Schedule(
    epochs=20, lr=0.01, weight_decay=5e-4, batch_size=256, decay="cosine", decay_by="step"
)


class FtSam(Defense):
    """Step all weights by the gradient taken at a nearby point of higher loss.

    Batch-norm statistics follow the first pass only. The paper gives rho, rate and epochs, but not
    whether its move is adaptive; BackdoorBench's is, so it is here.

    Differs from the authors' code: BackdoorBench lets the rate swing with a half wave of 100 steps
    (`schedule: {half_wave: 100}`); here the cosine ends with the training.
    """

    source: ClassVar[str] = "Zhu et al. 2023, arXiv:2304.11823; Min et al. 2024, sec. B.2"

    rho: float = Field(1.0, ge=0, description="L2 length of the move, over all weights")
    adaptive: bool = Field(True, description="measure the move relative to each weight's size")
    smoothing: float = Field(0.1, ge=0, le=0.5, description="probability moved to other labels")
    balanced: bool = Field(
        False, description="tune on as many images of each class as the rarest one has"
    )
    schedule: Schedule = Field(TUNING, description="tuning")

    def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Tune all weights; two forward and two backward passes a step."""
        if self.balanced:
            data = data.subset(balanced(data.labels, fork(rng, "balance")))
        history = fit(
            model,
            data,
            self.schedule,
            rng=fork(rng, "tune"),
            loss=smoothed(model, self.smoothing, data.num_classes),
            gradient=sam_gradient(
                model.parameters(), self.rho, adaptive=self.adaptive, freeze_bn_model=model
            ),
            capturable=True,
            resume="tune",
        )
        return Outcome(model, history, {"images": len(data)})


def balanced(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Draw as many indices of each class that is present as the rarest of them has."""
    order = torch.randperm(len(labels), generator=rng)
    shuffled = labels.cpu()[order]
    fewest = shuffled.bincount()[shuffled.unique()].min()
    return torch.cat([order[shuffled == label][:fewest] for label in shuffled.unique()])
