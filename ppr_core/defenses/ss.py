"""SS: spectral signatures, then training anew without the images that have them."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Build, TrainingDefense
from ppr_core.defenses.parts.anew import penultimate, retrain
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.models.base import Classifier
from ppr_core.training.fit import VICTIM, Schedule


class Ss(TrainingDefense):
    """Flag the images of each class that lie farthest along its features' main direction.

    The features are those before the last linear layer, of the images as they are. As many of a
    class are flagged as the rule says, poisoned or not; where poisons are more, the rest stays.

    Differs from the paper: a percentile of every class is flagged, as in BackdoorBench, for the
    paper's count asks for the poison rate (`remove: by_rate`).

    Differs from the authors' code: features are centred, as in the paper (`centred: false`).
    """

    source: ClassVar[str] = "Tran et al. 2018, arXiv:1811.00636, alg. 1"
    needs: ClassVar[tuple[str, ...]] = ("linear",)
    privileges: ClassVar[str] = (
        f"{TrainingDefense.privileges}; with remove by_rate: the poison rate"
    )

    centred: bool = Field(True, description="take the class's mean off first, and square the score")
    remove: Literal["percentile", "by_rate"] = Field(
        "percentile", description="how many of a class: those above `percentile`; 1.5 poison rates"
    )
    percentile: float = Field(85.0, gt=0, lt=100, description="of the scores of a class")
    poison_rate: float | None = Field(
        None, gt=0, lt=1, description="share of the whole training set; by_rate needs it"
    )
    training: Schedule = Field(VICTIM, description="of the new network; a study's own by default")

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        need(
            self.remove == "percentile" or self.poison_rate,
            "expected a poison_rate for remove: by_rate, got none",
        )
        return self

    @property
    def oracle(self) -> bool:
        """Only where it is told the poison rate."""
        return self.remove == "by_rate"

    def run(
        self, model: Classifier, data: ImageSet, *, rng: torch.Generator, build: Build
    ) -> Outcome:
        """Flag, then train anew."""
        flagged = self.flag(penultimate(model, data), data.labels.cpu())
        train = fork(rng, "train")
        history = retrain(model, data, flagged, self.training, build=build, rng=train)
        return Outcome(model, history, {"flagged": len(flagged)}, {"flagged": flagged})

    def flag(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the indices of the images whose scores are highest in their classes, sorted."""
        found = [torch.empty(0, dtype=torch.int64)]
        for label in labels.unique():
            own = (labels == label).nonzero().squeeze(1)
            score = self.score(features[own].double())
            if self.remove == "percentile":
                found.append(own[score > score.quantile(self.percentile / 100)])
                continue
            most = min(int(1.5 * (self.poison_rate or 0) * len(labels)), len(own) // 2)
            found.append(own[score.topk(most).indices])
        return torch.cat(found).sort().values

    def score(self, features: Tensor) -> Tensor:
        """Return how far each row lies along the direction in which they spread most."""
        rows = features - features.mean(0) if self.centred else features
        _, _, directions = torch.linalg.svd(rows, full_matrices=False)
        along = rows @ directions[0]
        return along.square() if self.centred else along.abs()
