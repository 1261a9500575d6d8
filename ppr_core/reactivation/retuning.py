"""RA: fine-tune a purified model on a few poisoned samples among clean ones."""

from typing import ClassVar

import torch
from torch import nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet, augmented
from ppr_core.data.splits import draw
from ppr_core.errors import DataError, need
from ppr_core.method import Method, Outcome, fork
from ppr_core.training.fit import Schedule, fit

# Poisoned samples by attack. Source: Min et al. 2024, sec. B.2 (CIFAR-10); the number is set where
# the clean model still stays low. An attack that is not listed takes the field's default.
PAPER_COUNTS = {"badnet": 5, "blended": 1, "ssba": 10, "lc": 2}


class Retuning(Method):
    """Fine-tune a model on a small share of the training set that holds a few poisoned samples.

    As in the authors' code, augmentation is drawn once and reused in every epoch, and the poisoned
    samples are not augmented. With no poisoned samples this is fine-tuning on clean samples.
    """

    source: ClassVar[str] = "Min et al. 2024, arXiv:2410.09838, sec. 3.2, B.2"
    privileges: ClassVar[str] = "attacker: training poisons, target label"

    share: float = Field(0.02, gt=0, le=1, description="samples in all, share of the training set")
    poisoned: int = Field(5, ge=0, description="poisoned samples among them")
    any_class: bool = Field(
        False, description="also draw poisons whose true class is the target (authors' code)"
    )
    frozen: bool = Field(True, description="augment once; else every epoch, poisons included")
    schedule: Schedule = Field(Schedule(epochs=5, lr=0.01), description="of the tuning")

    def run(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, poisons: ImageSet
    ) -> Outcome:
        """Tune on the mixture of clean samples and poisons.

        Args:
            model: purified, clean or backdoored.
            data: the clean training images that the attacker draws from.
            rng: of the draws and the shuffles.
            poisons: stamped training images, labelled with the target.

        Raises:
            DataError: fewer poisons or clean images than asked for.
        """
        mixture, schedule = self.mixture(data, poisons, rng)
        shuffles = fork(rng, "shuffle")
        history = fit(model, mixture, schedule, rng=shuffles, resume="retuning", evaluate=True)
        return Outcome(model, history, {"samples": len(mixture), "poisoned": self.poisoned})

    def need_samples(self, images: int, poisons: int) -> int:
        """Return the number of samples in all, of so many training images.

        Raises:
            DataError: fewer samples, or fewer poisons to draw from, than poisons asked for.
        """
        total = round(self.share * images)
        need(
            self.poisoned <= min(total, poisons),
            f"expected at most {min(total, poisons)} poisoned samples ({total} samples in "
            f"all, {poisons} poisons to draw from), got {self.poisoned}",
            DataError,
        )
        return total

    def mixture(
        self, data: ImageSet, poisons: ImageSet, rng: torch.Generator
    ) -> tuple[ImageSet, Schedule]:
        """Return the samples to tune on, and the schedule with what augmentation is left to do.

        The draws begin alike for every number of poisons: more of them are those of a smaller
        number and others.

        Raises:
            DataError: fewer poisons or clean images than asked for.
        """
        total = self.need_samples(len(data), len(poisons))
        clean = draw(data, total - self.poisoned, fork(rng, "clean"))
        schedule = self.schedule
        if self.frozen:
            draws = fork(rng, "augment")
            clean = augmented(clean, crop=schedule.crop, flip=schedule.flip, rng=draws)
            schedule = schedule.replace(crop=0, flip=False)
        return clean + draw(poisons, self.poisoned, fork(rng, "poisons")), schedule
