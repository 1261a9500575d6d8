"""What a claim is, and what the questions of several sections share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ppr_core.reporting.evidence import Answer, Evidence, all_of

Test = Callable[[Evidence], Answer]

# What a claim needs before there is a verdict.
FIVE = "at least two of the defenses anp, ibau, ft_sam, fst, bti, through RA"
TEXT = "nothing that a run could give: the claim is about the paper's text or settings"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, in short, and how a study's runs decide it.

    Attributes:
        number: as in the list of testable claims; sections A to E.
        text: the claim, in our words.
        needs: what a run has to measure before there is a verdict.
        test: the question; None where no run can answer it.
    """

    number: int
    text: str
    needs: str
    test: Test | None = None


def gap(e: Evidence, column: str, who: str, other: str | Sequence[str]) -> float:
    """Return how far a column's mean for one defense lies above that for another, or several."""
    return e.mean(column, who) - e.mean(column, other)


def of_several(test: Test) -> Test:
    """Ask only where at least two of the baselines went through RA: one speaks for no other."""
    return lambda e: test(e) if len(e.each("p_asr")) > 1 else None


def on_others(test: Test) -> Test:
    """Ask on CIFAR-100 and on Tiny-ImageNet."""

    def asked(e: Evidence) -> Answer:
        found = {name: test(e.at(dataset=name)) for name in ("cifar100", "tiny_imagenet")}
        return all_of(*(a and (a[0], f"{name}: {a[1]}") for name, a in found.items()))

    return asked


def varied(settings: Iterable[tuple], *places: int) -> bool:
    """Tell whether there are settings of two data sets (0), models (1), or rates (2)."""
    return all(len({setting[place] for setting in settings}) > 1 for place in places)
