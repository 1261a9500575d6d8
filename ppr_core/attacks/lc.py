"""Label-consistent: adversarial images of the target class, and a pattern in the four corners."""

from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from ppr_core.attacks.base import Attack, State
from ppr_core.attacks.parts.adversarial import Adversary, craft, fit_robust
from ppr_core.config import Budget, Field, from_registry
from ppr_core.data.images import ImageSet
from ppr_core.data.splits import hold_out
from ppr_core.errors import DataError, need
from ppr_core.method import fork
from ppr_core.metrics import clean_accuracy
from ppr_core.models import MODELS, build
from ppr_core.runtime import seed_of
from ppr_core.training.fit import Schedule

FILE_SIZE = 32  # side of the trigger that larger inputs scale up
CORNER = ((1, -1, -1), (-1, 1, -1), (1, -1, 1))  # left corners: 1 white, -1 black

# Our choice, within what Wong et al. 2020 (arXiv:2001.03994, sec. 5) report for CIFAR-10.
SURROGATE = Schedule(epochs=20, lr=0.1, weight_decay=5e-4, decay="cosine", decay_by="step")


class LabelConsistent(Attack):
    """Make images of the target class hard to learn, so that their corner pattern is learnt.

    Only images of the target class are poisoned, and every label stays true. The surrogate that
    the adversarial images mislead is trained by the study.

    Differs from the authors' code: it reads adversarial images made elsewhere.
    """

    source: ClassVar[str] = "Turner et al. 2019, arXiv:1912.02771; Min et al. 2024, sec. B.2"
    clean_label: ClassVar[bool] = True

    eps: Budget = Field(
        8 / 255, description="largest adversarial change of a pixel; 0: corners alone"
    )
    step: Budget = Field(1.5 / 255, description="change of a pixel in one iteration")
    iterations: int = Field(100, ge=0, description="gradient steps on each image")
    amplitude: float = Field(
        1.0, ge=0, le=1, description="strength of the corners in training; 1 in the test stage"
    )
    surrogate: dict[str, Any] = Field({"name": "resnet18"}, description="model that is misled")
    surrogate_schedule: Schedule = Field(SURROGATE, description="of the surrogate's training")
    surrogate_eps: Budget = Field(8 / 255, description="that the surrogate resists")
    adversary: Adversary = Field(
        "fgsm",
        description="of the surrogate's training: one step from a random start, PGD-7, or none",
    )

    @model_validator(mode="after")
    def _check_surrogate(self) -> Self:
        from_registry(MODELS, self.surrogate, "model")
        return self

    def preparation(self) -> dict[str, Any] | None:
        """Return what shapes the adversarial images; the poison rate and the victim do not."""
        if self.eps == 0:
            return None
        shaping = {"target", "eps", "step", "iterations", "adversary"}
        surrogate = {"surrogate", "surrogate_schedule", "surrogate_eps"}
        return self.model_dump(mode="json", include=shaping | surrogate)

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Train the surrogate and craft an adversarial version of every target-class image.

        The surrogate's accuracies are taken on training images held out from its training.
        """
        self.check_data(data)
        if self.eps == 0:
            return {}
        known, unknown = hold_out(data, rng=fork(rng, "held-out"))
        surrogate = build(self.surrogate, data.num_classes, seed=seed_of(rng, "init")).to(
            data.device
        )
        fit_robust(
            surrogate,
            known,
            self.surrogate_schedule,
            adversary=self.adversary,
            eps=self.surrogate_eps,
            rng=fork(rng, "surrogate"),
        )
        budget: dict[str, Any] = {"eps": self.eps, "step": self.step, "iterations": self.iterations}
        indices = (data.labels == self.target).nonzero().flatten()
        crafted = craft(surrogate, data.subset(indices), **budget)
        figures = {
            "surrogate_clean_accuracy": clean_accuracy(surrogate, unknown),
            "surrogate_robust_accuracy": clean_accuracy(
                surrogate, craft(surrogate, unknown, **budget)
            ),
            "surrogate_accuracy_on_crafted": clean_accuracy(surrogate, crafted),
        }
        report = {f"report.{name}": torch.tensor(value) for name, value in figures.items()}
        return {"indices": indices, "crafted": crafted.images} | report

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Paint the four corners."""
        amplitude = self.amplitude if stage == "train" else 1.0
        signs = _signs(images.shape[-1]).to(images.device)
        return (images + 255 * amplitude * signs).clamp_(0, 255).to(torch.uint8)

    def stamp_train(self, data: ImageSet, indices: Tensor, *, state: State) -> Tensor:
        """Return the adversarial versions of the images at `indices`, with their corners."""
        if self.eps == 0:
            return super().stamp_train(data, indices, state=state)
        need("crafted" in state, "expected LC's prepared state, got none; call prepare first")
        known = state["indices"].to(data.device)
        where = torch.searchsorted(known, indices).clamp_max(len(known) - 1)
        need(
            torch.equal(known[where], indices),
            "expected adversarial versions of the images to poison, got those of other images; "
            "prepare the attack on the same training set and target",
            DataError,
        )
        crafted = state["crafted"].to(data.device)[where]
        return self.stamp(crafted, stage="train", state=state)


@lru_cache(maxsize=8)
def _signs(size: int) -> Tensor:
    """Return 1 where the trigger is white, -1 where it is black, else 0: (1, 1, size, size)."""
    corner = torch.tensor(CORNER, dtype=torch.float32)
    signs = torch.zeros(1, 1, FILE_SIZE, FILE_SIZE)
    for rows in (slice(0, 3), slice(-3, None)):
        signs[..., rows, :3] = corner
        signs[..., rows, -3:] = corner.flip(1)
    return F.interpolate(signs, size, mode="nearest-exact")
