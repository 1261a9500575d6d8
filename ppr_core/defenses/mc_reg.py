"""MC-reg: tune on clean images, and raise a barrier halfway to the backdoored weights."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.defenses.parts.unlearning import Mix, Unlearning
from ppr_core.defenses.weight_distortion import UNLEARNING
from ppr_core.metrics import evaluating
from ppr_core.models.base import clone
from ppr_core.training.fit import Schedule


class McReg(Unlearning):
    """Minimise cross-entropy less a bounded share of that of the weights halfway to the start.

    The network halfway answers clean images and triggered ones, the latter by what the backdoored
    model says of them: its errors there are the barrier. Its statistics are halfway, too.

    Differs from the paper: it unlearns given examples; here the trigger that an inversion finds
    makes them, and they enter by the barrier alone, as there.
    """

    source: ClassVar[str] = "Siddiqui et al. 2025, arXiv:2505.22310, and its released code"

    alpha: float = Field(1e-3, ge=0, description="weight of the barrier")
    gamma: float = Field(50.0, ge=0, description="cross-entropy from which a barrier is enough")
    tuning: Schedule = Field(UNLEARNING, description="of the classifier")
    reversed_share: float = Field(0.1, ge=0, le=1, description="triggered images, share of a batch")
    rounds: int = Field(1, ge=1, description="rounds of inversion and tuning")

    def hooks(self, model: nn.Module, mix: Mix, rng: torch.Generator) -> dict[str, Any]:
        """Return the loss."""
        start = clone(model).eval().requires_grad_(False)
        theirs = dict(start.named_parameters()) | dict(start.named_buffers())

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            mixed, given = mix(images, labels)
            count = int(self.reversed_share * len(images) + 1)
            with torch.no_grad():
                said = start(mixed[:count]).argmax(1)
            asked = torch.cat([said, given[count:]])
            ours = dict(model.named_parameters()) | dict(model.named_buffers())
            halfway = {n: halved(ours[n], tensor) for n, tensor in theirs.items()}
            plain = F.cross_entropy(model(images), labels)
            with evaluating(model):
                errors = F.cross_entropy(functional_call(model, halfway, (mixed,)), asked)
            return plain - self.alpha * errors.clamp_max(self.gamma)

        return {"loss": loss}


def halved(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean of two tensors; of counters, the first."""
    return (ours + theirs) / 2 if ours.is_floating_point() else ours
