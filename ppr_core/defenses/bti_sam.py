"""BTI+SAM: unlearn the inverted trigger by sharpness-aware steps."""

from typing import Any, ClassVar

import torch
from torch import nn

from ppr_core.config import Field
from ppr_core.defenses.parts.unlearning import Mix, Stepping
from ppr_core.sharpness import sam_gradient


class BtiSam(Stepping):
    """Tune on reversed images by SAM: what PAM does, in the direction of the loss's ascent.

    Neither paper nor code gives its rate, momentum, rounds or rho: they are PAM's, and rho is the
    middle of the grid 0.05, 0.1, 0.5 that it is chosen from where `rho_grid` is set.
    """

    source: ClassVar[str] = "Min et al. 2024, arXiv:2410.09838, Table 11; Foret et al. 2021"

    rho: float = Field(0.1, ge=0, description="L2 length of the ascent, over all weights")

    def hooks(self, model: nn.Module, mix: Mix, rng: torch.Generator) -> dict[str, Any]:
        """Return SAM's gradient; both passes update the batch-norm statistics."""
        return {"on_batch": mix, "gradient": sam_gradient(model.parameters(), self.rho)}
