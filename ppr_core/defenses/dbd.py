"""DBD: features without labels, then labels for the images that these features make easy."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.curves import drawn_anew
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Build, TrainingDefense
from ppr_core.defenses.parts.anew import renew
from ppr_core.defenses.parts.contrastive import learn_features
from ppr_core.defenses.parts.mixmatch import Unlabelled, mix_loss
from ppr_core.method import Outcome, fork
from ppr_core.metrics import logits
from ppr_core.models.base import Classifier
from ppr_core.runtime import Record
from ppr_core.training.fit import Schedule, fit, make_optimizer

FEATURES = Schedule(epochs=100, lr=0.4, weight_decay=1e-4, batch_size=512, crop=0, flip=False)


class Dbd(TrainingDefense):
    """Learn features by SimCLR, a head on all labels, then all of it on the easier half's labels.

    The head is trained by symmetric cross-entropy. Each round of MixMatch takes the labels of the
    images whose symmetric cross-entropy is lowest, and forgets those of the others.

    Differs from the paper: 100 epochs of features and 100 rounds, as in BackdoorBench, where the
    paper has 1000 and 190 (`features: {epochs: 1000}`, `rounds: 190`).

    Differs from the authors' code: the rate of the features stays where it is, where theirs falls
    by a fortieth in the first 100 of 1000 epochs; images are scored as they are, where
    BackdoorBench augments them.
    """

    source: ClassVar[str] = "Huang et al. 2022, arXiv:2202.03423, sec. 4; and BackdoorBench"
    needs: ClassVar[tuple[str, ...]] = ("linear",)

    features: Schedule = Field(
        FEATURES, description="of the features, without labels; views crop and flip by themselves"
    )
    temperature: float = Field(0.5, gt=0, description="that similarities of views are divided by")
    projection: int = Field(128, ge=1, description="size of what views are compared in")
    warm_up: Schedule = Field(
        Schedule(epochs=10, optimizer="adam", lr=0.002), description="of the head, on all labels"
    )
    plain_weight: float = Field(0.1, ge=0, description="of cross-entropy in the symmetric one")
    reverse_weight: float = Field(1.0, ge=0, description="of reverse cross-entropy in it")
    rounds: int = Field(100, ge=1, description="of choosing whose labels to keep, and MixMatch")
    kept: float = Field(0.5, gt=0, lt=1, description="share of the images that keep their labels")
    mixing: Schedule = Field(
        Schedule(steps=1024, optimizer="adam", lr=0.002, batch_size=64),
        description="of each round; as many images without labels a step",
    )
    sharpening: float = Field(0.5, gt=0, description="temperature of guessed labels")
    beta: float = Field(0.75, gt=0, description="of the Beta distribution that mixes images")
    guessed_weight: float = Field(15.0, ge=0, description="of guessed labels, at its full height")
    ramp: int = Field(190, ge=1, description="warm-up's epochs and rounds until that height")

    def run(
        self, model: Classifier, data: ImageSet, *, rng: torch.Generator, build: Build
    ) -> Outcome:
        """Learn features, then the head, then all of it."""
        renew(model, build, rng)
        history = learn_features(
            model,
            data,
            self.features,
            temperature=self.temperature,
            size=self.projection,
            rng=fork(rng, "features"),
        )
        history += self.head(model, data, rng)
        optimizer = make_optimizer(model.parameters(), self.mixing)
        given = torch.zeros(0, dtype=torch.bool)
        for number in range(1, self.rounds + 1):
            given = self.easier(model, data)
            history += self.mixed(model, data, given, number, optimizer, fork(rng, "mix", number))
        records = [{**record, "epoch": done} for done, record in enumerate(history, 1)]
        flagged = (~given).nonzero().squeeze(1)
        return Outcome(model, records, {"flagged": len(flagged)}, {"flagged": flagged})

    def head(self, model: Classifier, data: ImageSet, rng: torch.Generator) -> list[Record]:
        """Train the last layer alone; batch-norm statistics before it follow."""
        model.requires_grad_(False)
        model.linear.requires_grad_(True)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return self.symmetric(model(images), labels).mean()

        history = fit(
            model,
            data,
            self.warm_up,
            rng=fork(rng, "head"),
            loss=loss,
            parameters=model.linear.parameters(),
            resume="head",
        )
        model.requires_grad_(True)
        return history

    def easier(self, model: Classifier, data: ImageSet) -> Tensor:
        """Return which images keep their labels: (N,) bool, on the CPU."""
        scores = self.symmetric(logits(model, data.images), data.labels)
        given = torch.zeros(len(data), dtype=torch.bool)
        given[scores.argsort()[: max(1, int(self.kept * len(data)))].cpu()] = True
        return given

    def mixed(
        self,
        model: Classifier,
        data: ImageSet,
        given: Tensor,
        number: int,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> list[Record]:
        """Run one round of MixMatch."""
        epochs = self.warm_up.epochs + number - 1
        how: dict[str, Any] = {"classes": data.num_classes, "sharpening": self.sharpening}
        weight = self.guessed_weight * min(1.0, epochs / self.ramp)
        crop, flip = self.mixing.crop, self.mixing.flip
        others = Unlabelled(data.subset(~given), crop=crop, flip=flip, draw=drawn_anew(rng))

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            drawn = others(len(images), self.beta)
            return mix_loss(model, images, labels, *drawn, **how, weight=weight)

        labelled = data.subset(given)
        return fit(model, labelled, self.mixing, rng=rng, loss=loss, optimizer=optimizer)

    def symmetric(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the symmetric cross-entropy of each image.

        Source: Wang et al. 2019, arXiv:1908.06112, eq. 4 to 6.
        """
        said = scores.float().softmax(1).clamp(1e-7, 1)
        asked = F.one_hot(labels, scores.shape[1]).float().clamp(1e-4, 1)
        reverse = -(said * asked.log()).sum(1)
        plain = F.cross_entropy(scores.float(), labels, reduction="none")
        return self.plain_weight * plain + self.reverse_weight * reverse
