"""RA: what a purified model is after the retuning attack."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from ppr_core.attacks import ATTACKS, Attack
from ppr_core.config import derive, unknown
from ppr_core.data.images import ImageSet
from ppr_core.errors import need
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.metrics import evaluate
from ppr_core.reactivation import retuning
from ppr_core.runtime import Record


class Retuning(Measure, retuning.Retuning):
    """Retune a purified (or the clean) model; its first record is the model before RA."""

    kind: ClassVar[str] = "retuned"
    of_variants: ClassVar[bool] = True
    followed: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = (
        Column("o_c_acc", "o_c_acc", "C-Acc", better="higher"),
        Column("o_asr", "o_asr", "O-ASR", better="lower"),
        Column("p_c_acc", "p_c_acc", "P C-Acc", better="higher", shown=False),
        Column("p_asr", "p_asr", "P-ASR", better="lower"),
    )

    @classmethod
    def against(cls, attack: str, values: Mapping[str, Any]) -> Self:
        """Take the attack's own count of poisons, and the paper's where none is given."""
        counts = values.get("poisoned", retuning.PAPER_COUNTS)
        if isinstance(counts, Mapping):
            default = cls.model_fields["poisoned"].default
            values = {**values, "poisoned": counts.get(attack, default)}
        return cls(**values)

    @classmethod
    def check_study(cls, chains: Chains, values: Mapping[str, Any]) -> None:
        """Raise ConfigError where a count names an attack that nobody knows."""
        counts = values.get("poisoned")
        known = {*ATTACKS, *chains.attacks}
        for label in counts if isinstance(counts, Mapping) else ():
            need(label in known, unknown("attack in retuning.poisoned", label, known))

    def check_images(self, attack: Attack, train: ImageSet, seed: int) -> None:
        """Raise DataError where the attack has fewer poisons than RA asks for."""
        there = attack.select(train.labels, seed=seed)
        kept = attack.retunable(train.labels, there, any_class=self.any_class)
        self.need_samples(len(train), len(kept))

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Retune the model on poisons and clean training images."""
        source, images = stage.parents[0], stage.setting.images
        model = lab.model(source)
        known = lab.result(source).metrics
        before: Record = {name: known[name] for name in ("c_acc", "asr") if name in known}
        if len(before) < 2:
            before = evaluate(model, images.test, lab.stamped_test(stage))
        outcome = self(
            model,
            images.train,
            rng=derive(stage.cell.seed, "retuning"),
            poisons=lab.poisons(stage, any_class=self.any_class),
        )
        result = Result.of(outcome)
        result.history.insert(0, {"epoch": 0, **before})
        last = result.history[-1]
        result.metrics |= {f"o_{name}": value for name, value in before.items()}
        result.metrics |= {f"p_{name}": last[name] for name in before}
        return result
