"""MESA: model the distribution of patch triggers, and unlearn samples of it."""

from typing import ClassVar

from pydantic import SerializeAsAny

from ppr_core.config import Field
from ppr_core.defenses.parts.unlearning import Unlearning
from ppr_core.defenses.sources.base import TriggerSource
from ppr_core.defenses.sources.patches import PatchDistribution
from ppr_core.training.fit import Schedule


class Mesa(Unlearning):
    """Tune on images of which a few carry sampled patches and their true labels; for patch attacks.

    Differs from the paper: each batch carries int(share * B + 1) patches, where theirs draws
    every image with that probability.
    """

    source: ClassVar[str] = "Qiao et al. 2019, arXiv:1910.04749"
    privileges: ClassVar[str] = (
        "the patch's size, and with inversion.corner its corner, which no defender is told; "
        "the target label is estimated"
    )

    inversion: SerializeAsAny[TriggerSource] = Field(
        PatchDistribution(), description="source of triggers; in a file its name and settings"
    )
    tuning: Schedule = Field(Schedule(epochs=10, lr=1e-3), description="of the classifier")
    reversed_share: float = Field(
        0.01, ge=0, le=1, description="triggered images, share of a batch"
    )
    rounds: int = Field(1, ge=1, description="rounds of modelling and tuning")
