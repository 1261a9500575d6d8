"""Grond: an invisible universal perturbation, and channels that do not stand out."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppr_core.attacks.base import Poisoned, State
from ppr_core.attacks.parts.adversarial import universal_pgd
from ppr_core.attacks.parts.surrogate import SurrogateAttack, added
from ppr_core.config import Budget, Field
from ppr_core.data.images import ImageSet
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.metrics import attack_success_rate, triggered
from ppr_core.models.base import lipschitz, normalised_convolutions
from ppr_core.training.fit import fit


class Grond(SurrogateAttack):
    """Poison images of the target class by a perturbation that a clean model takes for it.

    After each whole epoch of the victim's training the channels that amplify most get the mean
    scale and shift of their layer (adversarial backdoor injection, ABI).

    Differs from the authors' code: test images are clipped and truncated to grey levels, like the
    poisons; the model is that after the last epoch's injection, not the best one before its
    own; the poisons are drawn under the seed; the schedule is that of every victim.
    """

    source: ClassVar[str] = "Xu et al. 2025, arXiv:2501.05928"
    clean_label: ClassVar[bool] = True
    trains_stamp: ClassVar[bool] = True

    eps: Budget = Field(8 / 255, description="largest change of a pixel")
    step: Budget = Field(1.6 / 255, description="change of a pixel in one iteration")
    iterations: int = Field(500, ge=0, description="gradient steps of the perturbation")
    batch: int = Field(256, ge=1, description="images behind each of them")
    spread: float = Field(
        3.0, ge=0, description="standard deviations above its layer's mean that a channel may stand"
    )

    def preparation(self) -> dict[str, Any]:
        """Return what shapes the perturbation."""
        return self.shaping("eps", "step", "iterations", "batch")

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Train the clean surrogate; find the perturbation that moves its images to the target."""
        model = self.clean_surrogate(data, rng)
        budget: dict[str, Any] = {"eps": self.eps, "step": self.step, "size": self.batch}
        found = universal_pgd(
            model, data, self.target, **budget, iterations=self.iterations, rng=fork(rng, "trigger")
        )
        state = {"delta": found}
        if bool((data.labels != self.target).any()):
            stamped = triggered(data, lambda x: added(x, found), self.target)
            state["report.surrogate_asr"] = torch.tensor(attack_success_rate(model, stamped))
        return state

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Add the perturbation; the same at both stages."""
        need("delta" in state, "expected Grond's prepared state, got none; call prepare first")
        return added(images, state["delta"])

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        poisoned: Poisoned,
        *,
        rng: torch.Generator,
        state: State,
    ) -> Outcome:
        """Train on the poisoned set, with an injection after each whole epoch."""
        per_epoch, steps = self.training.epoch_steps(len(data)), 0

        def after_step() -> None:
            nonlocal steps
            steps += 1  # a resumed training begins with an epoch: the count holds
            if steps % per_epoch == 0:
                inject(model, self.spread)

        how: dict[str, Any] = {"after_step": after_step, "resume": "victim", "evaluate": True}
        return Outcome(model, fit(model, poisoned.data, self.training, rng=rng, **how))


@torch.no_grad()
def inject(model: nn.Module, spread: float) -> int:
    """Give channels that amplify far more than others their layer's mean scale and shift.

    Args:
        model: changed in place.
        spread: standard deviations above the layer's mean from which a channel does.

    Returns:
        How many channels were changed.
    """
    count = 0
    for _, convolution, norm in normalised_convolutions(model):
        scores = lipschitz(convolution, norm)
        high = scores > scores.mean() + spread * scores.std()
        for tensor in (norm.weight, norm.bias):
            tensor.copy_(torch.where(high, tensor.mean(), tensor))
        count += int(high.sum())
    return count
