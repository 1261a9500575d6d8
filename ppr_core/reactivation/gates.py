"""Checks before any verdict: a model that fails one has none."""

from collections.abc import Sequence

from ppr_core.behaviour import least_c_acc
from ppr_core.config import Field, Settings


class Evidence(Settings):
    """What the checks look at, in percent; what is not known is none, and not checked."""

    classes: int | None = Field(None, ge=2, description="classes of the data")
    victim_c_acc: float | None = Field(None, description="the backdoored model's clean accuracy")
    victim_asr: float | None = Field(None, description="the backdoored model's ASR")
    clean_c_acc: float | None = Field(None, description="the never-poisoned model's clean accuracy")
    clean_p_asr: float | None = Field(None, description="its ASR after RA at the paper's strength")
    c_acc: float | None = Field(None, description="the purified model's clean accuracy")
    warnings: list[str] = Field([], description='of the defense: its Outcome\'s info["warnings"]')
    moved: float | None = Field(
        None, description="how far RA moves its weights, over how far it moves a clean model's"
    )
    wrecked: float | None = Field(
        None, description="share of admissible cells in which RA breaks the purified model"
    )


class Gates(Settings):
    """The thresholds of the checks."""

    chance: float = Field(1.5, description="least C-Acc of a victim, times chance")
    twin: float = Field(10.0, description="most C-Acc of a victim below its clean twin's, points")
    implanted: float = Field(90.0, description="least ASR of a victim, percent")
    awake: float = Field(20.0, description="ASR of a clean model after RA that is too strong")
    lost: float = Field(10.0, description="most C-Acc that a defense may cost, points")
    doubts: list[str] = Field(
        ["saturated", "uncertain", "unready"],
        description="words of a warning that tell of a failed inversion, or of nothing changed",
    )
    still: float = Field(0.2, description="least movement of the weights, times a clean model's")
    wrecked: float = Field(0.5, description="most of the admissible cells that break the model")

    def __call__(self, found: Evidence) -> list[str]:
        """Return a plain sentence for each check that fails."""
        return [*self._victim(found), *self._defense(found), *self._tuning(found)]

    def doubted(self, warnings: Sequence[str]) -> list[str]:
        """Return those warnings of a defense after which its model says nothing of the method."""
        return [text for text in warnings if any(word in text for word in self.doubts)]

    def _victim(self, found: Evidence) -> list[str]:
        said, c_acc, classes = [], found.victim_c_acc, found.classes
        twin = found.clean_c_acc is not None
        if c_acc is not None and classes and c_acc < self._least(classes, twin):
            said.append(
                f"The backdoored model's C-Acc is {c_acc:.1f} %, near chance "
                f"({100 / classes:.1f} %): architecture or normalisation?"
            )
        elif _below(c_acc, found.clean_c_acc, self.twin):
            said.append(
                f"The backdoored model's C-Acc is {c_acc:.1f} %, far below its clean twin's "
                f"({found.clean_c_acc:.1f} %): architecture or normalisation?"
            )
        if found.victim_asr is not None and found.victim_asr < self.implanted:
            said.append(
                f"The backdoored model's ASR is {found.victim_asr:.1f} %, below "
                f"{self.implanted:g} %: the backdoor was not implanted, so that what follows says "
                "nothing."
            )
        return said

    def _least(self, classes: int, twin: bool) -> float:
        """Return the least C-Acc of a victim: more where no clean twin stands beside it."""
        return self.chance * 100 / classes if twin else least_c_acc(classes)

    def _defense(self, found: Evidence) -> list[str]:
        said = [
            f"The defense doubts its own work ({warning})."
            for warning in self.doubted(found.warnings)
        ]
        if _below(found.c_acc, found.victim_c_acc, self.lost):
            said.append(
                f"The defense costs C-Acc: {found.c_acc:.1f} % after it, {found.victim_c_acc:.1f} "
                f"% before, more than {self.lost:g} points."
            )
        return said

    def _tuning(self, found: Evidence) -> list[str]:
        said = []
        if found.clean_p_asr is not None and found.clean_p_asr >= self.awake:
            said.append(
                f"RA at the paper's strength brings the clean model to {found.clean_p_asr:.1f} % "
                "ASR: it implants, and is too strong to tell what was there before."
            )
        if found.moved is not None and found.moved < self.still:
            said.append(
                f"RA moves this model's weights {found.moved:.2g} times as far as a clean model's: "
                "weights rescaled, features frozen, or a head that saturates? That it stays asleep "
                "says nothing."
            )
        if found.wrecked is not None and found.wrecked > self.wrecked:
            said.append(
                f"RA breaks this model in {found.wrecked:.0%} of the cells that leave a clean one "
                "intact, so that its ASR there says nothing."
            )
        return said


def _below(value: float | None, other: float | None, points: float) -> bool:
    return value is not None and other is not None and other - value > points


def ratio(own: Sequence[float], others: Sequence[float]) -> float | None:
    """Return the median of paired ratios; None where there is none to take."""
    pairs = sorted(a / b for a, b in zip(own, others, strict=True) if b > 0)
    return pairs[len(pairs) // 2] if pairs else None
