"""RA without a poisoned sample: what fine-tuning alone brings back."""

from typing import ClassVar

from ppr_core.lab.measures.base import Column
from ppr_core.lab.measures.retuning import Retuning


class CleanRetuning(Retuning):
    """Retune on clean samples alone, with the other settings of RA."""

    kind: ClassVar[str] = ""
    like: ClassVar[str] = "retuning"
    fixed: ClassVar[dict[str, int]] = {"poisoned": 0}
    of_variants: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = (
        Column("clean_retuned_asr", "p_asr", "clean RA", better="lower"),
    )
