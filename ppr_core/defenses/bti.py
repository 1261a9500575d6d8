"""BTI: unlearn the inverted trigger by tuning on reversed images with their true labels."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.defenses.parts.unlearning import Mix, Unlearning
from ppr_core.models.base import Cut
from ppr_core.training.fit import Schedule


class Bti(Unlearning):
    """BTI-DBF (U): tune for true labels, and for features that a trigger does not move.

    Differs from the authors' code: the first images of a shuffled batch are triggered, where
    theirs draws as many.
    """

    version: ClassVar[int] = 2
    source: ClassVar[str] = "Xu et al. 2024, ICLR, OpenReview Tw9wemV6cb; Min et al. 2024, sec. C"
    needs: ClassVar[tuple[str, ...]] = ("features and head",)

    tuning: Schedule = Field(
        Schedule(epochs=30, optimizer="adam", lr=1e-4), description="of the classifier, each round"
    )

    def hooks(self, model: Cut, mix: Mix, rng: torch.Generator) -> dict[str, Any]:
        """Return the loss; both passes train and update the statistics, the plain images first."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            plain = model.features(images)
            features = model.features(mix(images, labels)[0])
            moved = F.mse_loss(features.float(), plain.float())
            return F.cross_entropy(model.head(features), labels) + moved

        return {"loss": loss}
