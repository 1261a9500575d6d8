"""What every attack shares: selection, relabelling, training, and the trigger as a value."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.base import Split
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need
from ppr_core.method import Method, Outcome, fork
from ppr_core.runtime import seed_of
from ppr_core.training.fit import VICTIM, Schedule, fit

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        data: all images, the selected ones stamped (and relabelled by a dirty-label attack).
        indices: which images were stamped: int64, sorted.
        original: the true labels of those images.
        covers: other images that were stamped and keep their labels: int64, sorted.
    """

    data: ImageSet
    indices: Tensor
    original: Tensor
    covers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class Attack(Method):
    """Poison a training set, then train on it. Subclasses write `stamp`.

    Calling it (`attack(model, train, rng=rng)`) trains a fresh model on the poisoned set. A
    generator seeded with the run's seed makes the published selection: seed 0 poisons image 11841
    of CIFAR-10 first.
    """

    clean_label: ClassVar[bool] = False  # poisons only images of the target class
    learns_trigger: ClassVar[bool] = False  # known only after training (`Outcome.tensors`)
    trains_stamp: ClassVar[bool] = False  # `prepare` trains what stamps: another one each time

    poison_rate: float = Field(0.05, ge=0, le=1, description="share of the whole training set")
    target: int = Field(0, ge=0, description="target label")
    training: Schedule = Field(VICTIM, description="of the backdoored model")

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Train or generate what `stamp` needs, from training images only; saved as a stage.

        Keys that begin with "report." are scalars to log; the others belong to the attack.
        """
        return {}

    def preparation(self) -> dict | None:
        """Return the settings that `prepare` depends on; None: there is nothing to prepare."""
        return None

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Put the trigger on images, without changing them in place.

        Args:
            images: (N, C, H, W) uint8; any device.
            stage: "train" or "test"; some attacks are stronger at test time.
            state: what `prepare` returned.

        Returns:
            (N, C, H, W) uint8, on the same device.
        """
        raise NotImplementedError(f"{type(self).__name__}.stamp")

    def stampable(self, data: ImageSet, *, state: State) -> ImageSet:
        """Return the images that the trigger can be put on: all, but where images are replayed."""
        return data

    def stamp_train(self, data: ImageSet, indices: Tensor, *, state: State) -> Tensor:
        """Return the poisoned version of the training images at `indices`."""
        return self.stamp(data.images[indices], stage="train", state=state)

    def select(self, labels: Tensor, *, seed: int) -> Tensor:
        """Draw the images to poison: round(rate * N) of the candidates, without replacement.

        Source: Min et al. 2024 follow BackdoorBench: NumPy's legacy generator under the run's seed.

        Raises:
            DataError: the candidates are fewer than the rate asks for.
        """
        count = round(self.poison_rate * len(labels))
        candidates = np.arange(len(labels))
        if self.clean_label:
            candidates = candidates[(labels == self.target).cpu().numpy()]
        need(
            count <= len(candidates),
            f"{type(self).__name__} poisons only the {len(candidates)} images of class "
            f"{self.target}, so it cannot serve poison_rate {self.poison_rate} ({count} of "
            f"{len(labels)} images); expected at most {len(candidates) / len(labels):.4g}",
            DataError,
        )
        drawn = np.random.RandomState(seed % 2**32).choice(candidates, count, replace=False)
        return torch.from_numpy(np.sort(drawn))

    def retunable(self, labels: Tensor, indices: Tensor, *, any_class: bool = False) -> Tensor:
        """Return those of the poisons that RA draws from: outside the target class.

        Args:
            labels: the true ones of the training set.
            indices: of the poisons.
            any_class: keep those whose true class is the target; a clean-label attack has no
                others.
        """
        indices = indices.to(labels.device)
        if any_class or self.clean_label:
            return indices
        return indices[labels[indices] != self.target]

    def poison(self, data: ImageSet, *, seed: int, state: State) -> Poisoned:
        """Draw the images to poison, and return the poisoned training set."""
        self.check_data(data)
        return self.poison_at(data, self.select(data.labels, seed=seed), state=state)

    def poison_at(self, data: ImageSet, indices: Tensor, *, state: State) -> Poisoned:
        """Return the training set with these images poisoned; all others stay bit-identical.

        Args:
            data: the training set.
            indices: what `select` drew: a victim's Outcome holds it as "poison_indices", so that
                whoever needs the poisons later reads that draw.
            state: what `prepare` returned, and what the attack has learnt since.
        """
        indices = indices.to(data.device)
        images, labels = data.images.clone(), data.labels.clone()
        original = labels[indices]
        if len(indices):
            images[indices] = self.stamp_train(data, indices, state=state)
            labels[indices] = self.target
        return Poisoned(data.with_images(images).with_labels(labels), indices, original)

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError at once where the target or the rate cannot be served."""
        need(
            self.target < data.num_classes,
            f"expected a target label below {data.num_classes}, got {self.target}",
            DataError,
        )
        self.select(data.labels, seed=0)

    def run(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, state: State | None = None
    ) -> Outcome:
        """Poison the data and train the model on it.

        What an attack that `learns_trigger` has learnt stands in the Outcome's tensors under
        "trigger." and a name: that name's entry of the state, from then on.
        """
        poisoned = self.poison(data, seed=seed_of(rng), state=state or {})
        outcome = self.train(model, data, poisoned, rng=fork(rng, "train"), state=state or {})
        outcome.info |= {"poisoned": len(poisoned.indices), "poison_rate": self.poison_rate}
        outcome.tensors["poison_indices"] = poisoned.indices
        outcome.tensors["poison_original"] = poisoned.original
        return outcome

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        poisoned: Poisoned,
        *,
        rng: torch.Generator,
        state: State,
    ) -> Outcome:
        """Train on the poisoned set; an attack that controls training hooks into `fit` here."""
        how: dict[str, Any] = {"resume": "victim", "evaluate": True}
        return Outcome(model, fit(model, poisoned.data, self.training, rng=rng, **how))


def prepared(attack: Attack, images: Split, *, rng: torch.Generator) -> dict[str, Tensor]:
    """Return what an attack prepares.

    One whose `prepare` names `test` is handed the test images as well: stored triggered images are
    told apart by the clean ones that they were made from.
    """
    named = inspect.signature(attack.prepare).parameters
    test = {"test": images.test} if "test" in named else {}
    return attack.prepare(images.train, rng=rng, **test)


class Clean(Attack):
    """Poison nothing: the never-poisoned model, trained like every victim."""

    source: ClassVar[str] = "Min et al. 2024, arXiv:2410.09838, sec. 3.1 (control)"
    poison_rate: float = Field(0.0, ge=0, le=0, description="nothing is poisoned")

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Return the images as they are."""
        return images.clone()


@dataclass(frozen=True)
class Trigger:
    """An attack's stamp with all that it needs: what the attacker, and nobody else, holds."""

    attack: Attack
    state: State

    def __call__(self, images: Tensor, *, stage: str = "test") -> Tensor:
        """(N, C, H, W) uint8 -> the triggered images, same shape and device."""
        return self.attack.stamp(images, stage=stage, state=self.state)

    @property
    def target(self) -> int:
        """The label that the trigger asks for."""
        return self.attack.target

    def poisons(self, data: ImageSet, indices: Tensor, *, any_class: bool = False) -> ImageSet:
        """Return the stamped training images that RA draws from, labelled with the target.

        Args:
            data: the training set.
            indices: of a victim's poisons, from its Outcome's "poison_indices".
            any_class: keep those whose true class is the target; a clean-label attack has no
                others.
        """
        poisoned = self.attack.poison_at(data, indices, state=self.state)
        kept = self.attack.retunable(data.labels, poisoned.indices, any_class=any_class)
        return poisoned.data.subset(kept)

    def query_images(self, data: ImageSet, indices: Tensor) -> ImageSet:
        """Return the triggered training images that QRA draws from, with their true labels.

        They are the victim's poisons whose true class is not the target.

        Differs from the authors' code: a clean-label attack has no such poisons, and they take test
        images; here it is training images with the test-time trigger.
        """
        if self.attack.clean_label:
            others = data.subset(data.labels != self.target)
            return others.with_images(self(others.images))
        poisoned = self.attack.poison_at(data, indices, state=self.state)
        kept = poisoned.original != self.target
        return poisoned.data.subset(poisoned.indices[kept]).with_labels(poisoned.original[kept])
