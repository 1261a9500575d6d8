"""SAU: shared adversarial unlearning."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Budget, Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.method import Outcome, fork
from ppr_core.metrics import evaluating
from ppr_core.models.base import clone
from ppr_core.training.fit import Loss, Schedule, fit

TUNING = Schedule(
    epochs=100, optimizer="adam", lr=1e-4, amsgrad=True, batch_size=256, crop=0, flip=False
)


class Sau(Defense):
    """Unlearn the adversarial examples that the model shares with its backdoored self.

    Where a perturbation makes the backdoored model change its answer, the tuned one shall not
    answer alike. Perturbed images may leave the range of pixels.
    """

    version: ClassVar[int] = 2
    source: ClassVar[str] = "Wei et al. 2023, arXiv:2307.10562, alg. 1"

    bound: Budget = Field(0.2, description="of the perturbation, L-inf, pixels in [0, 1]")
    step_size: float = Field(0.2, ge=0, description="of each sign step")
    search_steps: int = Field(5, ge=0, description="sign steps of the perturbation")
    fooling: float = Field(0.01, ge=0, description="perturbation: weight of fooling either model")
    sharing: float = Field(1.0, ge=0, description="perturbation: weight of answering alike")
    clean: float = Field(1.0, ge=0, description="tuning: weight of the clean loss")
    robust: float = Field(0.0, ge=0, description="tuning: weight of the loss on perturbed images")
    shared: float = Field(1.0, ge=0, description="tuning: weight of the shared risk")
    train_mode: bool = Field(False, description="let batch-norm statistics follow the tuning")
    schedule: Schedule = Field(TUNING, description="tuning")

    def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Look for shared adversarial examples of each batch, then take a step against them."""
        history = fit(
            model,
            data,
            self.schedule,
            rng=fork(rng, "tune"),
            loss=self.loss(model, clone(model).eval().requires_grad_(False)),
            train_mode=self.train_mode,
            resume="tune",
        )
        return Outcome(model, history)

    def loss(self, model: nn.Module, old: nn.Module) -> Loss:
        """Return the tuning's loss against the backdoored model `old`."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            perturbed = images + self.perturb(model, old, images, labels)
            with torch.no_grad():
                before, after = old(images).argmax(1), old(perturbed).argmax(1)
            risky = (after != labels) & (after != before)
            # One pass: where batch norm trains, it sees clean and perturbed images together.
            clean, logits = model(torch.cat((images, perturbed))).float().split(len(images))
            value = self.shared * (risky * unlike(logits, after)).mean()
            if self.robust:
                value = value + self.robust * F.cross_entropy(logits, labels)
            return value + self.clean * F.cross_entropy(clean, labels)

        return loss

    def perturb(self, model: nn.Module, old: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return perturbations that fool both models, into the same answer; in eval mode."""
        delta = torch.full_like(images, self.bound)
        with evaluating(model):
            with torch.no_grad():
                answers = model(images).argmax(1), old(images).argmax(1)
            for _ in range(self.search_steps):
                delta.requires_grad_()
                logits = model(images + delta).float(), old(images + delta).float()
                (slope,) = torch.autograd.grad(self.search_loss(*logits, labels, answers), delta)
                moved = delta.detach() - self.step_size * slope.sign()
                delta = moved.clamp(-self.bound, self.bound)
        return delta

    def search_loss(
        self, logits: Tensor, old: Tensor, labels: Tensor, answers: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return what the perturbations minimise.

        An image fools a model when it changes the answer that this model gave to the clean image.
        Images that fool a model, or both models into the same answer, are done and left out.

        Args:
            logits: (N, classes) of the tuned model.
            old: of the backdoored model.
            labels: true ones.
            answers: each model's classes (N,) of the clean images, in the same order.
        """
        both = logits.argmax(1) == old.argmax(1)
        wrong: Tensor | float = 0.0
        for scores, answer in zip((logits, old), answers, strict=True):
            fooled = scores.argmax(1) != answer
            each = F.cross_entropy(scores, labels, reduction="none")
            wrong = wrong - 0.5 * (~fooled * each).mean()
            both = both & fooled
        apart = (~both * jensen_shannon(logits, old)).mean()
        return self.fooling * wrong + self.sharing * apart


def jensen_shannon(logits: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (N,) of two softmaxes, in nats."""
    p, q = logits.log_softmax(1), other.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.tensor(2.0).log()
    first, second = ((x.exp() * (x - middle)).sum(1) for x in (p, q))
    return 0.5 * (first + second)


def unlike(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log(1 + 1e-6 - p) (N,) of the labels' probabilities p.

    A probability below 0.001 counts as 0.001: it is not pushed any lower. 1 - p is the sum of the
    other probabilities, which float32 keeps where p is near 1.
    """
    rest = logits.softmax(1).scatter(1, labels[:, None], 0).sum(1)
    return -(rest.clamp(max=0.999) + 1e-6).log()
