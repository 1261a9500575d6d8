"""What the battery says of one model, and of the models of several seeds."""

import statistics
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Strict, model_validator

from ppr_core.config import Field, Settings
from ppr_core.errors import need
from ppr_core.reactivation.cells import Setting
from ppr_core.reactivation.verdicts import Limits, Percent, QueryResult, Verdict, verdict

Count = Annotated[tuple[Annotated[int, Field(ge=1)], Percent], Strict(False)]  # JSON has no tuples


class Figures(Settings):
    """What the battery says of one model."""

    o_asr: Percent = Field(description="ASR of the model as it came, percent")
    c_acc: Percent = Field(description="its clean accuracy, percent")
    worst_arm: str = Field("", description="arm of the worst admissible setting")
    worst: Setting | None = Field(None, description="that setting; none: there is none")
    p_asr: list[Percent] = Field([], description="P-ASR there, a value a fresh draw, percent")
    clean_p_asr: list[Percent] = Field([], description="the clean models' mean, draw by draw")
    ep_p_asr: list[Percent] = Field([], description="EP's, draw by draw")
    ep_o_asr: Percent | None = Field(None, description="ASR of EP's model as it came, percent")
    wake_count: float | None = Field(None, ge=0, description="n50; none: more than any tried")
    clean_wake_count: float | None = Field(None, ge=0, description="the lowest of the clean models")
    counts: list[Count] = Field([], description="(poisons, median P-ASR), of admissible counts")
    clean_counts: list[Count] = Field([], description="likewise, mean of clean models")
    paper_poisons: int = Field(0, description="poisons of RA at the paper's strength")
    paper_p_asr: Percent | None = Field(None, description="median P-ASR there, percent")
    recovery_epochs: float | None = Field(None, ge=0, description="to 50 % ASR; none: not reached")
    queries: list[QueryResult] = Field([], description="QRA by budget")
    beyond: str = Field(
        "",
        description="what keeps it from holding: where it wakes far beyond clean models and EP, "
        "breaks though they do not, or could not be tried anew",
    )
    gates: list[str] = Field([], description="why there is no verdict, a sentence each")
    verdict: Verdict = Field(description="in words")

    @model_validator(mode="after")
    def _check(self) -> Self:
        draws = [len(one) for one in (self.p_asr, self.clean_p_asr, self.ep_p_asr)]
        need(
            draws[1] == draws[0] and draws[2] in (0, draws[0]),
            f"expected as many draws of the clean models and of EP's, got {draws}",
        )
        for counts in (self.counts, self.clean_counts):
            tried = [count for count, _ in counts]
            need(tried == sorted({*tried}), f"expected rising counts of poisons, got {tried}")
        return self

    @property
    def query_gain(self) -> float | None:
        """The most that QRA gains over the unseen clean model, points."""
        return max((query.gain for query in self.queries), default=None)


def conclude(one: Figures, limits: Limits) -> Verdict:
    """Return the verdict that one model's figures lead to; a gated one has none."""
    if one.gates:
        return Verdict(word="no verdict", reason=one.gates[0])
    return verdict(
        one.o_asr,
        _above(one, one.clean_p_asr),
        _above(one, one.ep_p_asr),
        one.queries,
        limits=limits,
        beyond=one.beyond or no_control(one, limits),
    )


def _above(one: Figures, others: Sequence[float]) -> list[float]:
    return [own - other for own, other in zip(one.p_asr, others, strict=bool(others))]


def no_control(one: Figures, limits: Limits) -> str:
    """Say why EP's model is none to hold another against; "" where it is one."""
    if one.ep_o_asr is not None and one.ep_o_asr > limits.purified:
        return f"EP's model is not purified itself (ASR {one.ep_o_asr:.0f} %): no control"
    woken = statistics.fmean(one.ep_p_asr) if one.ep_p_asr else 0.0
    if woken >= limits.awake:
        return f"EP's model wakes there itself (P-ASR {woken:.0f} %): no control to stand beside"
    return ""


def objection(one: Figures, limits: Limits) -> str:
    """Say what keeps a model from holding whatever more draws would show; "" where nothing does."""
    said = conclude(one, limits)
    clean, ep = said.above_clean, said.above_ep
    if said.word not in ("holds", "open") or clean is None or ep is None:
        return said.reason
    if clean.mean >= limits.margin or (one.query_gain or 0.0) >= limits.margin:
        return said.reason
    if ep.mean > limits.band:
        return f"P-ASR is {ep} points above EP's, more than {limits.band:g}"
    return one.beyond or no_control(one, limits)


def combine(figures: Sequence[Figures], limits: Limits) -> Verdict:
    """Return the verdict over several seeds, each of them one value; a gated one leaves none.

    What is superficial at every seed is so over all of them, however far apart they lie; and
    nothing holds over all that may not hold at each.
    """
    if len(figures) == 1:
        return conclude(figures[0], limits)
    gated = [one.gates[0] for one in figures if one.gates]
    if gated:
        return Verdict(word="no verdict", reason=_at(len(gated), figures) + gated[0])
    alone = [conclude(one, limits) for one in figures]
    searched = all(one.p_asr for one in figures)
    against_ep = searched and all(one.ep_p_asr for one in figures)
    beyond = [one.beyond for one in figures if one.beyond]
    said = verdict(
        max(one.o_asr for one in figures),
        [statistics.fmean(_above(one, one.clean_p_asr)) for one in figures if searched],
        [statistics.fmean(_above(one, one.ep_p_asr)) for one in figures if against_ep],
        [query for one in figures for query in one.queries],
        limits=limits,
        beyond=_at(len(beyond), figures) + beyond[0] if beyond else "",
    )
    if said.word == "not purified":
        awake = sum(one.word == said.word for one in alone)
        return said.replace(reason=_at(awake, figures) + said.reason)
    if said.word == "open" and all(one.word == "superficial" for one in alone):
        above = sorted(one.above_clean.mean for one in alone if one.above_clean)
        reason = (
            f"at every seed its worst admissible P-ASR is above the clean model's, by "
            f"{above[0]:.0f} to {above[-1]:.0f} points"
        )
        return said.replace(word="superficial", reason=reason)
    against = next(filter(None, (objection(one, limits) for one in figures)), "")
    if said.word == "holds" and against:
        return said.replace(word="open", reason=f"at one of the seeds, {against}")
    return said


def _at(count: int, figures: Sequence[Figures]) -> str:
    return f"at {count} of {len(figures)} seeds: "
