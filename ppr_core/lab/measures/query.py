"""QRA: a generator learnt against one model, then swept over the budgets."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from ppr_core.config import derive
from ppr_core.data.images import ImageSet
from ppr_core.errors import need
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import CLEAN, Cell, Setting, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.reactivation import query
from ppr_core.reactivation.perturbation import along, sweep


class Query(Measure, query.Query):
    """Train the generator against one model, then sweep the budget."""

    reads: ClassVar[tuple[str, ...]] = ("retuning",)
    curve: ClassVar[str] = "queries"
    row: ClassVar[str] = "qra"  # what its rows are called
    columns: ClassVar[tuple[Column, ...]] = (
        Column("q_p_asr", "p_asr", "QRA P-ASR", better="lower"),
        Column("q_c_asr", "c_asr", "QRA C-ASR", better="lower"),
    )

    @classmethod
    def against(cls, attack: str, values: Mapping[str, Any]) -> Self:
        """Take the paper's alpha where none is given."""
        paper = query.PAPER_ALPHAS.get(attack)
        return cls(**({} if paper is None else {"alpha": paper}) | dict(values))

    @classmethod
    def check_study(cls, chains: Chains, values: Mapping[str, Any]) -> None:
        """Raise ConfigError where the surrogate is not among the study's models."""
        need(
            chains.exact if values.get("surrogate") == "ep" else chains.has_clean,
            "expected the surrogate of QRA among the models; set query.surrogate to clean or "
            "ep, and have clean_control or the defense ep",
        )

    def given(self, setting: Setting) -> dict[str, Any]:
        """Return the budgets."""
        return {"budgets": setting.study.budgets}

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the model, its retuned copy, the surrogate and the victim."""
        surrogate = chains.source(cell.but(defense=self._surrogate(chains, cell)))
        return (chains.source(cell), *read, surrogate, chains.backdoored(cell))

    def _surrogate(self, chains: Chains, cell: Cell) -> str:
        """Return the surrogate's label: as set, or the other one where that is itself attacked."""
        first, other = CLEAN, chains.exact
        if self.surrogate == "ep":
            first, other = chains.exact, CLEAN if chains.has_clean else None
        return other if cell.defense == first and other else first

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Train the generator, and count what it reaches at every budget."""
        parents, images = stage.parents, stage.setting.images
        model, relearned, surrogate = (lab.model(parent) for parent in parents[:3])
        outcome = self(
            model,
            images.train,
            rng=derive(stage.cell.seed, "query"),
            relearned=relearned,
            surrogate=surrogate,
            triggered=_triggered(lab, stage),
        )
        perturb = along(query.generator_of(outcome.tensors))
        budgets = sorted({0.0, *stage.setting.study.budgets, self.eps})
        swept = sweep({"": model}, images.test, lab.stamped_test(stage), perturb, budgets)
        rows = [{"perturbation": self.row, **row} for row in swept]
        at = next(row for row in rows if row["eps"] == self.eps)
        metrics = {"c_asr": at["c_asr"], "p_asr": at["p_asr"], "asr": rows[0]["p_asr"]}
        info = {**outcome.info, "surrogate": parents[2].name, "rows": rows}
        return Result(outcome.tensors, info, metrics, list(outcome.history))


def _triggered(lab: Reader, stage: Stage) -> ImageSet:
    """Return triggered training images outside the target class, with their true labels.

    Differs from the authors' code: a clean-label attack has no such training poison, and they take
    test images; here it is training images with the test-time trigger.
    """
    trigger, train = lab.trigger(stage), stage.setting.images.train
    if trigger.attack.clean_label:
        others = train.subset(train.labels != trigger.target)
        return others.with_images(trigger(others.images))
    poisoned = trigger.attack.poison(train, seed=stage.cell.seed, state=trigger.state)
    kept = poisoned.original != trigger.target
    return poisoned.data.subset(poisoned.indices[kept]).with_labels(poisoned.original[kept])
