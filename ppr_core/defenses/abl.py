"""ABL: isolate what is learnt first, train on the rest, and unlearn what was isolated."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Build, TrainingDefense
from ppr_core.defenses.parts.anew import renew
from ppr_core.method import Outcome, fork
from ppr_core.metrics import logits
from ppr_core.runtime import Record
from ppr_core.training.fit import Loss, Schedule, fit, make_optimizer

BENCH = Schedule(epochs=20, lr=0.01, weight_decay=1e-4, batch_size=256)


class Abl(TrainingDefense):
    """Hold every batch's loss at a level, isolate the lowest losses, train on, then ascend on them.

    Momentum is Nesterov's; it starts anew after isolation, and goes on from tuning to unlearning.

    Differs from the paper: rates and lengths are BackdoorBench's, which trains at lr 0.01 from the
    start, and unlearns at 1e-4.

    Differs from the authors' code: batches of isolation are shuffled, where theirs come in order.
    """

    source: ClassVar[str] = "Li et al. 2021, arXiv:2110.11571, sec. 3; and BackdoorBench"

    level: float = Field(0.5, ge=0, description="cross-entropy of a batch that isolation holds")
    way: Literal["flooding", "ascent"] = Field(
        "flooding", description="isolation's loss: |L - level| + level, or sign(L - level) * L"
    )
    share: float = Field(0.01, gt=0, lt=1, description="of the training set that is isolated")
    isolation: Schedule = Field(
        BENCH.replace(crop=0, flip=False), description="of all images, as they are, at a held loss"
    )
    tuning: Schedule = Field(BENCH.replace(epochs=40), description="of what was not isolated")
    settling: Schedule = Field(BENCH.replace(lr=0.001), description="the same, at a lower rate")
    unlearning: Schedule = Field(BENCH.replace(lr=1e-4), description="ascent on what was isolated")

    def run(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, build: Build
    ) -> Outcome:
        """Isolate, tune, unlearn."""
        renew(model, build, rng)
        held = {"loss": holding(model, self.level, self.way), "capturable": True}
        history = self.train(model, data, self.isolation, rng, "isolate", **held)
        count = max(2, int(self.share * len(data)))  # batch norm has no variance of one image
        lowest = losses(model, data).argsort()[:count].cpu()
        kept = torch.ones(len(data), dtype=torch.bool)
        kept[lowest] = False
        rest, optimizer = data.subset(kept), self.optimizer(model, self.tuning)
        for name, schedule in {"tune": self.tuning, "settle": self.settling}.items():
            history += self.train(model, rest, schedule, rng, name, optimizer=optimizer)
        away = {"loss": lambda *batch: -F.cross_entropy(model(batch[0]), batch[1])}
        isolated = data.subset(lowest)
        history += self.train(
            model, isolated, self.unlearning, rng, "unlearn", optimizer=optimizer, **away
        )
        records = [{**record, "epoch": done} for done, record in enumerate(history, 1)]
        flagged = lowest.sort().values
        return Outcome(model, records, {"flagged": len(flagged)}, {"flagged": flagged})

    def optimizer(self, model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
        """Return SGD with Nesterov's momentum."""
        made = make_optimizer(model.parameters(), schedule)
        for group in made.param_groups:
            if "momentum" in group:
                group["nesterov"] = True
        return made

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        schedule: Schedule,
        rng: torch.Generator,
        name: str,
        **how: Any,
    ) -> list[Record]:
        """Run one part."""
        how.setdefault("optimizer", self.optimizer(model, schedule))
        return fit(model, data, schedule, rng=fork(rng, name), resume=name, **how)


def losses(model: nn.Module, data: ImageSet) -> Tensor:
    """Return the cross-entropy of every image as it is, in eval mode."""
    return F.cross_entropy(logits(model, data.images), data.labels, reduction="none")


def holding(model: nn.Module, level: float, way: str = "flooding") -> Loss:
    """Return a loss that keeps a batch's mean cross-entropy at a level: what is easy goes below.

    Source: Li et al. 2021, eq. 3 ("ascent"); Ishida et al. 2020, arXiv:2002.08709 ("flooding").
    """

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        value = F.cross_entropy(model(images), labels)
        if way == "flooding":
            return (value - level).abs() + level
        return torch.sign(value.detach() - level) * value

    return loss
