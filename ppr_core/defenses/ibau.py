"""I-BAU: unlearn adversarial perturbations by minimax with an implicit hypergradient."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppr_core.config import Field
from ppr_core.data.images import ImageSet, augmented, to_float
from ppr_core.defenses.base import Defense
from ppr_core.method import Outcome, fork
from ppr_core.models.activations import twice_differentiable
from ppr_core.models.base import logits_of, normalise_of
from ppr_core.training.fit import Schedule, fit

TUNING = Schedule(epochs=20, optimizer="adam", lr=1e-4, amsgrad=True, batch_size=256)


class IBau(Defense):
    """Find one perturbation that changes most predictions, then tune it away; round by round.

    The weights' gradient counts how the perturbation would answer a change of them. The model
    stays in eval mode. Perturbations are in normalised space, unbounded but for their penalty.

    Differs from the authors' code: its stored batches keep their images from round to round; here
    the stored images are shuffled.
    """

    source: ClassVar[str] = "Zeng et al. 2022, arXiv:2110.03735, alg. 1; Min et al. 2024, sec. B.2"

    iterations: int = Field(5, ge=0, description="fixed-point iterations of the hypergradient")
    inner_lr: float = Field(0.1, gt=0, description="rate of the step that they differentiate")
    perturbation_lr: float = Field(10.0, ge=0, description="rate of the perturbation's own SGD")
    penalty: float = Field(0.001, ge=0, description="weight of the perturbation's squared norm")
    portion: float = Field(0.01, ge=0, le=1, description="images perturbed, share of a batch")
    at_least_one: bool = Field(
        True, description="perturb an image also where the portion rounds down to none"
    )
    schedule: Schedule = Field(TUNING, description="of the weights; an epoch is a round")

    def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Alternate one pass for the perturbation and one for the weights."""
        rng, weights = fork(rng, "tune"), list(model.parameters())
        delta = torch.zeros_like(to_float(data.images[:1]), requires_grad=True)
        crop, flip, size = self.schedule.crop, self.schedule.flip, self.schedule.batch_size
        stored = augmented(data, crop=crop, flip=flip, rng=rng)
        first, labelled = to_float(stored.images[:size]), stored.labels[:size]
        rounds, per_round = count(), self.schedule.epoch_steps(len(data))

        def begin(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            if next(rounds) % per_round == 0:
                self._perturb(model, data, delta, rng)
            return images, labels

        def outer(images: Tensor, labels: Tensor) -> Tensor:
            chosen = self._choose(len(images), rng).to(images.device)
            return F.cross_entropy(shifted(model, images, chosen * delta), labels)

        def gradient(loss: Callable[[], Tensor]) -> Tensor:
            # Second derivatives gain next to nothing from bf16, so they are taken in full; fused
            # attention and torch's hard sigmoid have none.
            plain, gates = sdpa_kernel(SDPBackend.MATH), twice_differentiable(model)
            with torch.autocast(data.device.type, enabled=False), plain, gates:
                value = loss()
                inner = self.inner(model, first, labelled, delta)
                slopes = hypergradient(
                    value, inner, delta, weights, iterations=self.iterations, lr=self.inner_lr
                )
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = slope
            return value.detach()

        history = fit(
            model,
            stored,
            self.schedule.replace(crop=0, flip=False),
            rng=rng,
            loss=outer,
            gradient=gradient,
            on_batch=begin,
            train_mode=False,
            resume="tune",
        )
        return Outcome(model, history, tensors={"perturbation": delta.detach()})

    def inner(self, model: nn.Module, images: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
        """Return the loss that the perturbation minimises: wrong answers, at a small norm."""
        wrong = -F.cross_entropy(shifted(model, images, delta), labels)
        return wrong + self.penalty * delta.square().sum()

    def _perturb(
        self, model: nn.Module, data: ImageSet, delta: Tensor, rng: torch.Generator
    ) -> None:
        """Start from zero and take one step a batch against the model's own predictions."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                predicted = model(images).argmax(1)
            return self.inner(model, images, predicted, delta)

        schedule = Schedule(
            epochs=1,
            batch_size=self.schedule.batch_size,
            lr=self.perturbation_lr,
            momentum=0.0,
            crop=self.schedule.crop,
            flip=self.schedule.flip,
        )
        model.requires_grad_(False)
        with torch.no_grad():
            delta.zero_()
        fit(model, data, schedule, rng=rng, loss=loss, parameters=[delta], train_mode=False)
        model.requires_grad_(True)

    def _choose(self, size: int, rng: torch.Generator) -> Tensor:
        """Draw the images of a batch to perturb: (size, 1, 1, 1), 1 or 0."""
        number = max(int(self.portion * size), int(self.at_least_one))
        chosen = torch.zeros(size)
        chosen[torch.randperm(size, generator=rng)[:number]] = 1
        return chosen.view(-1, 1, 1, 1)


def shifted(model: nn.Module, images: Tensor, by: Tensor) -> Tensor:
    """Return the logits of images (pixels in [0, 1]) that are shifted in normalised space."""
    return logits_of(model, normalise_of(model)(images) + by)


def hypergradient(
    outer: Tensor,
    inner: Tensor,
    delta: Tensor,
    weights: Sequence[Tensor],
    *,
    iterations: int,
    lr: float,
) -> list[Tensor]:
    """Return the gradient of `outer` by the weights, delta being a fixed point that follows them.

    The fixed point is of Phi(delta, w) = delta - lr * d inner / d delta. The implicit function
    theorem's inverse is expanded: v <- (dPhi/ddelta)^T v + d outer / d delta, from zero.

    Source: Zeng et al. 2022, arXiv:2110.03735, alg. 1; Grazzi et al. 2020, arXiv:2006.16218.

    Args:
        outer: scalar that depends on delta and weights; its graph is used up.
        inner: scalar, likewise.
        delta: the inner variable.
        weights: the outer variables.
        iterations: of v; none leaves the direct gradient alone.
        lr: of Phi.
    """
    constant, *direct = torch.autograd.grad(outer, [delta, *weights], materialize_grads=True)
    if not iterations:
        return direct
    (slope,) = torch.autograd.grad(inner, delta, create_graph=True)
    v = constant  # the first iteration, from zero
    for _ in range(iterations - 1):
        (curved,) = torch.autograd.grad(slope, delta, v, retain_graph=True)
        v = v - lr * curved + constant
    mixed = torch.autograd.grad(slope, weights, v, materialize_grads=True)
    return [along - lr * across for along, across in zip(direct, mixed, strict=True)]
