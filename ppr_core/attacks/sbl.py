"""SBL: any trigger, implanted in a flat place that later learning of clean images keeps to."""

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.attacks.base import Attack, Poisoned, State
from ppr_core.config import Field, from_registry
from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.metrics import evaluating
from ppr_core.sharpness import sam_gradient
from ppr_core.training.fit import Schedule, fit


class Sbl(Attack):
    """Train on poisoned images by SAM, then on clean ones held back, near the first weights.

    The trigger is that of any other attack. The second step is what a defender's fine-tuning will
    be: elastic weight consolidation (EWC) keeps the weights that matter to the first one, so that
    fine-tuning finds nothing to change.

    Differs from the authors' code: the poisons are drawn and stamped once, before the training,
    instead of each image with that chance after its augmentation; the defender's images are those
    of the study, not a share of their own; Fisher information is the mean over its images, which
    their code takes half of, and of fewer images; the first step's schedule is every victim's.
    """

    source: ClassVar[str] = "Pham et al. 2024, arXiv:2407.14738"

    trigger: dict[str, Any] = Field(
        {"name": "badnet"}, description="attack whose trigger is implanted, and its settings"
    )
    rho: float = Field(0.05, ge=0, description="of SAM in the first step; 0: plain training")
    held: float = Field(0.1, gt=0, lt=1, description="share of the images kept for the second step")
    strength: float = Field(1.0, ge=0, description="of EWC in the second step; 0: none (naive)")
    fisher_data: Literal["clean", "mixed"] = Field(
        "clean", description="images behind the Fisher information: without triggers, or as trained"
    )
    fisher_images: int = Field(1000, ge=1, description="how many of them")
    second: Schedule = Field(
        Schedule(epochs=100, batch_size=256, lr=0.001, weight_decay=5e-4),
        description="of the second step, on clean images",
    )

    @model_validator(mode="after")
    def _check_trigger(self) -> Self:
        inner = self.inner
        need(
            not inner.learns_trigger and not isinstance(inner, Sbl),
            f"expected a trigger that is known before training, got {self.trigger['name']}",
        )
        return self

    @property
    def inner(self) -> Attack:
        """The attack whose trigger is implanted."""
        from ppr_core.attacks import ATTACKS  # late: this class is registered there, too

        return from_registry(ATTACKS, {"target": self.target, **self.trigger}, "attack")

    @property
    def trains_stamp(self) -> bool:  # type: ignore[override]
        """Whether the trigger is another one each time that it is prepared."""
        return self.inner.trains_stamp

    def own_code(self) -> str | None:
        """Return a digest of the code of a user's own trigger, else the trigger's version."""
        from ppr_core.attacks import ATTACKS  # late: this class is registered there, too

        inner = from_registry(ATTACKS, self.trigger, "attack")
        return inner.own_code() or f"{type(inner).__name__} {inner.version}"

    def preparation(self) -> dict[str, Any] | None:
        """Return what the trigger's preparation depends on, and whose it is."""
        found = self.inner.preparation()
        about = {"trigger": type(self.inner).__name__, "trigger_version": self.inner.version}
        return None if found is None else {**about, **found}

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Prepare the trigger."""
        return self.inner.prepare(data, rng=rng)

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError also where the trigger cannot be put on the images."""
        super().check_data(data)
        self.inner.replace(poison_rate=0.0).check_data(data)

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Put the trigger on, as its own attack does."""
        return self.inner.stamp(images, stage=stage, state=state)

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        poisoned: Poisoned,
        *,
        rng: torch.Generator,
        state: State,
    ) -> Outcome:
        """Take both steps; the second one sees no poison."""
        first, later = self._split(len(data), poisoned.indices, fork(rng, "split"))
        trained = list(model.parameters())
        history = fit(
            model,
            poisoned.data.subset(first),
            self.training,
            rng=fork(rng, "first"),
            gradient=sam_gradient(trained, self.rho),
            capturable=True,
            resume="victim",
            evaluate=True,
        )
        shown = data if self.fisher_data == "clean" else poisoned.data
        order = torch.randperm(len(first), generator=fork(rng, "fisher"))[: self.fisher_images]
        chosen = shown.subset(first[order.to(first.device)])
        importance = fisher(model, chosen) if self.strength else []
        start = [parameter.detach().clone() for parameter in trained]

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            value = F.cross_entropy(model(images), labels)
            return value + ewc(trained, start, importance, self.strength)

        how: dict[str, Any] = {"loss": loss, "resume": "victim-second", "evaluate": True}
        after = fit(model, data.subset(later), self.second, rng=fork(rng, "second"), **how)
        for record in after:
            record["epoch"] += len(history)
        return Outcome(model, [*history, *after], {"second_from_epoch": len(history) + 1})

    def _split(self, count: int, poisons: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images of the first step, and those of the second, none of them a poison."""
        free = torch.ones(count, dtype=torch.bool)
        free[poisons.cpu()] = False
        order = torch.randperm(count, generator=rng)
        later = order[free[order]][: max(1, round(self.held * count))]
        mask = torch.ones(count, dtype=torch.bool)
        mask[later] = False
        return mask.nonzero().flatten().to(poisons.device), later.sort().values.to(poisons.device)


def fisher(model: nn.Module, data: ImageSet) -> list[Tensor]:
    """Return the Fisher information of each weight: squared gradients of the log-likelihood.

    Each image's gradient of log p(y|x) is squared and weighted by p(y|x); the mean over images.

    Args:
        model: taken in eval mode, in fp32; its parameters decide the order of the result.
        data: images with their labels.
    """
    parameters = list(model.parameters())
    summed = [torch.zeros_like(parameter) for parameter in parameters]
    with evaluating(model):
        for index in range(len(data)):
            logits = model(to_float(data.images[index : index + 1])).float()
            said = F.log_softmax(logits, 1)[0, data.labels[index]]
            gradients = torch.autograd.grad(said, parameters)
            for total, gradient in zip(summed, gradients, strict=True):
                total += said.detach().exp() * gradient.square()
    return [total / len(data) for total in summed]


def ewc(
    weights: list[nn.Parameter], start: list[Tensor], importance: list[Tensor], strength: float
) -> Tensor | float:
    """Return the penalty on leaving the first weights: the sum of F * (w - w0)^2, times a factor.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796, without their factor of one half.
    """
    parts = [
        (fisher * (weight - was).square()).sum()
        for weight, was, fisher in zip(weights, start, importance, strict=bool(importance))
    ]
    return strength * torch.stack(parts).sum() if parts else 0.0
