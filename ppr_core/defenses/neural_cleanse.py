"""Neural Cleanse: flag the class that a small patch reaches, and unlearn that patch."""

from typing import ClassVar

from pydantic import SerializeAsAny

from ppr_core.config import Field
from ppr_core.defenses.finetune import BENCH
from ppr_core.defenses.parts.unlearning import Unlearning
from ppr_core.defenses.sources.base import TriggerSource
from ppr_core.defenses.sources.cleanse import Cleanse
from ppr_core.training.fit import Schedule


class NeuralCleanse(Unlearning):
    """Tune on images that carry the patches found and true labels; do nothing if none stands out.

    Differs from the authors' code: BackdoorBench puts the patches on the same fifth of the images
    throughout; here they go on a fifth of each batch.
    """

    source: ClassVar[str] = "Wang et al. 2019, IEEE S&P, Neural Cleanse"

    inversion: SerializeAsAny[TriggerSource] = Field(
        Cleanse(), description="source of triggers; in a file its name and settings"
    )
    tuning: Schedule = Field(BENCH, description="of the classifier")
    reversed_share: float = Field(0.2, ge=0, le=1, description="triggered images, share of a batch")
    rounds: int = Field(1, ge=1, description="rounds of search and tuning")
