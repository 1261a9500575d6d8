"""NAB: beat a backdoor by a benign one, planted in the images that are learnt first."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.abl import holding, losses
from ppr_core.defenses.base import Build, TrainingDefense
from ppr_core.defenses.dbd import FEATURES
from ppr_core.defenses.parts.anew import penultimate, renew
from ppr_core.defenses.parts.contrastive import learn_features
from ppr_core.method import Outcome, fork
from ppr_core.models.base import Classifier, Normalise
from ppr_core.runtime import Record
from ppr_core.training.fit import VICTIM, Schedule, fit

SIDE = 2  # of the stamp, pixels


class Nab(TrainingDefense):
    """Relabel the images that are learnt first, and stamp those whose label this changes.

    Features without labels say what these images look like: they take the class whose mean
    features are nearest. The network that is returned stamps every image that it is given, so that
    the stamp asks for what an image looks like where a trigger asks for the target.

    Differs from the authors' code: batches of isolation are shuffled; BackdoorBench steps the rate
    of another training, so that the last one's stays, where here it follows its schedule.
    """

    source: ClassVar[str] = "Liu et al. 2023, arXiv:2307.15539; and BackdoorBench"
    needs: ClassVar[tuple[str, ...]] = ("linear",)

    features: Schedule = Field(FEATURES, description="of the features, without labels")
    temperature: float = Field(0.5, gt=0, description="that similarities of views are divided by")
    projection: int = Field(128, ge=1, description="size of what views are compared in")
    level: float = Field(0.5, ge=0, description="cross-entropy of a batch that isolation holds")
    isolation: Schedule = Field(
        Schedule(epochs=20, lr=0.01, weight_decay=5e-4, batch_size=64),
        description="of all images, at a held loss",
    )
    share: float = Field(0.1, gt=0, lt=1, description="of the images that is relabelled")
    doubted: float = Field(0.2, ge=0, lt=1, description="share that mean features leave out")
    training: Schedule = Field(VICTIM, description="of the new network; a study's own by default")

    def run(
        self, model: Classifier, data: ImageSet, *, rng: torch.Generator, build: Build
    ) -> Outcome:
        """Learn features, isolate, relabel, and train with stamps."""
        found, history = self.looks(model, data, rng, build)
        renew(model, build, fork(rng, "isolate"))
        how: dict[str, Any] = {"loss": holding(model, self.level), "resume": "isolate"}
        history += fit(model, data, self.isolation, rng=fork(rng, "isolate"), **how)
        order = losses(model, data).argsort().cpu()
        flagged = order[: max(1, int(self.share * len(data)))].sort().values
        means = order[int(self.doubted * len(data)) :]
        labels = data.labels.cpu().clone()
        labels[flagged] = nearest_class(found, labels, means)[flagged]
        changed = labels != data.labels.cpu()
        renew(model, build, fork(rng, "retrain"))
        history += self.train(model, data.with_labels(labels.to(data.device)), changed, rng)
        records = [{**record, "epoch": done} for done, record in enumerate(history, 1)]
        info = {"flagged": len(flagged), "stamped": int(changed.sum())}
        return Outcome(self.extend(model), records, info, {"flagged": flagged})

    def looks(
        self, model: Classifier, data: ImageSet, rng: torch.Generator, build: Build
    ) -> tuple[Tensor, list[Record]]:
        """Return features of all images that no label has shaped."""
        own = fork(rng, "features")
        renew(model, build, own)
        history = learn_features(
            model,
            data,
            self.features,
            temperature=self.temperature,
            size=self.projection,
            rng=own,
        )
        return penultimate(model, data), history

    def train(
        self, model: Classifier, data: ImageSet, changed: Tensor, rng: torch.Generator
    ) -> list[Record]:
        """Train on the labels, with a stamp on the images whose label changed."""
        marked, mean = changed.to(data.device), model.normalise.mean

        def stamp(images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            images = images.clone()
            chosen = marked[numbers].view(-1, 1, 1, 1)
            corner = images[..., :SIDE, :SIDE]
            images[..., :SIDE, :SIDE] = torch.where(chosen, mean.expand_as(corner), corner)
            return images, data.labels[numbers]

        numbered = data.with_labels(torch.arange(len(data), device=data.device))
        how: dict[str, Any] = {"on_batch": stamp, "resume": "retrain"}
        return fit(model, numbered, self.training, rng=fork(rng, "retrain"), **how)

    def extend(self, model: nn.Module) -> nn.Module:
        """Have a model stamp what it is given: its first layer does, and has no weights."""
        network: Any = model
        if not isinstance(network.normalise, Stamping):
            network.normalise = Stamping(network.normalise)
        return model


class Stamping(Normalise):
    """Normalise, and put zeros into the first corner."""

    def __init__(self, layer: Normalise) -> None:
        super().__init__(layer.mean.flatten().tolist(), layer.std.flatten().tolist())
        self.to(layer.mean)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape, normalised and stamped."""
        found = super().forward(pixels)
        zeros = torch.zeros_like(found)
        kept = torch.ones_like(found[:1, :1], dtype=torch.bool)
        kept[..., :SIDE, :SIDE] = False
        return torch.where(kept, found, zeros)


def nearest_class(features: Tensor, labels: Tensor, trusted: Tensor) -> Tensor:
    """Return the class, of those present, whose mean features are nearest: (N,) int64.

    Args:
        features: (N, D).
        labels: as given.
        trusted: indices of the images that the means are taken of.
    """
    known = labels[trusted]
    present = known.unique()
    means = torch.stack([features[trusted[known == label]].mean(0) for label in present])
    return present[torch.cdist(features, means).argmin(1)]
