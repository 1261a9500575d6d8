"""What the battery says of one model, and of the models of several seeds."""

import statistics
from collections.abc import Sequence
from typing import Annotated

from pydantic import Strict

from ppr_core.config import Field, Settings
from ppr_core.reactivation.cells import Setting
from ppr_core.reactivation.verdicts import Limits, QueryResult, Verdict, verdict

Count = Annotated[tuple[int, float], Strict(False)]  # JSON has no tuples


class Figures(Settings):
    """What the battery says of one model."""

    o_asr: float = Field(description="ASR of the model as it came, percent")
    c_acc: float = Field(description="its clean accuracy, percent")
    worst_arm: str = Field("", description="arm of the worst admissible setting")
    worst: Setting | None = Field(None, description="that setting; none: there is none")
    p_asr: list[float] = Field([], description="P-ASR there, a value a fresh draw, percent")
    clean_p_asr: list[float] = Field([], description="the clean models' mean, draw by draw")
    ep_p_asr: list[float] = Field([], description="EP's, draw by draw")
    wake_count: float | None = Field(None, description="n50; none: more than any tried")
    clean_wake_count: float | None = Field(None, description="n50 of the clean models, the lowest")
    counts: list[Count] = Field([], description="(poisons, median P-ASR); empty: not purified")
    clean_counts: list[Count] = Field([], description="likewise, mean of clean models")
    paper_poisons: int = Field(0, description="poisons of RA at the paper's strength")
    paper_p_asr: float | None = Field(None, description="median P-ASR there, percent")
    recovery_epochs: float | None = Field(None, description="to 50 % ASR; none: not reached")
    queries: list[QueryResult] = Field([], description="QRA by budget")
    beyond: str = Field("", description="where it wakes far beyond clean models and EP")
    gates: list[str] = Field([], description="why there is no verdict, a sentence each")
    verdict: Verdict = Field(description="in words")

    @property
    def query_gain(self) -> float | None:
        """The most that QRA gains over the unseen clean model, points."""
        return max((query.gain for query in self.queries), default=None)


def combine(figures: Sequence[Figures], limits: Limits) -> Verdict:
    """Return the verdict over several seeds, each of them one value; a gated one leaves none."""
    if len(figures) == 1:
        return figures[0].verdict
    for one in figures:
        if one.gates:
            return Verdict(word="no verdict", reason=one.gates[0])
    searched = all(one.p_asr for one in figures)
    against_ep = all(one.ep_p_asr for one in figures)
    p_asr = [statistics.fmean(one.p_asr) for one in figures if searched]
    clean = [statistics.fmean(one.clean_p_asr) for one in figures if searched]
    exact = [statistics.fmean(one.ep_p_asr) for one in figures if against_ep]
    return verdict(
        max(one.o_asr for one in figures),
        [own - other for own, other in zip(p_asr, clean, strict=True)],
        [own - other for own, other in zip(p_asr, exact, strict=False)],
        [query for one in figures for query in one.queries],
        limits=limits,
        beyond=next((one.beyond for one in figures if one.beyond), ""),
    )
