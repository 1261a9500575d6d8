"""QRA: a generator learnt on a purified model, and what it does to that model and to others."""

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

# The models that a generator is scored on, and the part of its metrics' names that says so.
SCORED = {
    "self": "",
    "clean": "clean_",
    "clean_unseen": "unseen_",
    "ep": "ep_",
    "backdoored": "backdoored_",
}


def score_columns(prefix: str, name: str, control: str) -> tuple[Column, ...]:
    """Return the columns of a measure by generators: P-ASR and C-ASR on every model scored.

    Args:
        prefix: of the columns' names.
        name: of the attack, in headings.
        control: heading of P-ASR on the unseen clean model, which short tables show beside it.
    """
    made = [
        Column(f"{prefix}p_asr", "p_asr", f"{name} P", better="lower"),
        Column(f"{prefix}c_asr", "c_asr", f"{name} C", better="lower"),
    ]
    for scored, part in list(SCORED.items())[1:]:
        p_asr, c_asr = (f"{name} {letter}, {label(scored)}" for letter in "PC")
        shown = scored == "clean_unseen"
        p_asr = control if shown else p_asr
        made.append(Column(f"{prefix}{part}p_asr", f"{part}p_asr", p_asr, shown=shown))
        made.append(Column(f"{prefix}{part}c_asr", f"{part}c_asr", c_asr, shown=False))
    return tuple(made)


def label(scored: str) -> str:
    """Return what people read of a model scored."""
    return {"clean_unseen": "unseen clean", "ep": "EP"}.get(scored, scored)


class Query(Measure, query.Query):
    """Train the generator on a purified model; score it there, on clean models, EP and the victim.

    Source: Min et al. 2024, arXiv:2410.09838, sec. 3.3, figs. 2, 15, 16: what the perturbation does
    to models without the backdoor is its control. One of the two clean models has been seen by no
    generator, nor is it the surrogate of any.
    """

    reads: ClassVar[tuple[str, ...]] = ("retuning",)
    curve: ClassVar[str] = "queries"
    row: ClassVar[str] = "qra"  # what its rows are called
    columns: ClassVar[tuple[Column, ...]] = score_columns("q_", "QRA", "unseen clean")

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

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether a cell has a purified model: a clean one has no backdoor to learn from."""
        return super().takes(chains, cell) and cell.defense != CLEAN

    def given(self, setting: Setting) -> dict[str, Any]:
        """Return the budgets."""
        return {"budgets": setting.study.budgets}

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the model, its retuned copy, the surrogate; then the models that are scored."""
        surrogate = chains.source(cell.but(defense=self._surrogate(chains, cell)))
        scored = [chains.backdoored(cell)]
        if chains.has_clean:
            scored += [chains.clean_model(cell.seed), chains.unseen_clean(cell.seed)]
        if chains.exact:
            scored.append(chains.purified(cell.but(defense=chains.exact)))
        return (chains.source(cell), *read, surrogate, *(stage for stage in scored if stage))

    def _surrogate(self, chains: Chains, cell: Cell) -> str:
        """Return the surrogate's label: as set, or the other one where that is itself attacked."""
        first, other = CLEAN, chains.exact
        if self.surrogate == "ep":
            first, other = chains.exact, CLEAN if chains.has_clean else None
        return other if cell.defense == first and other else first

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Train the generator, and count what it reaches on every model at every budget."""
        parents, images = stage.parents, stage.setting.images
        model, relearned, surrogate = (lab.model(parent) for parent in parents[:3])
        outcome = self(
            model,
            images.train,
            rng=derive(stage.cell.seed, "query"),
            relearned=relearned,
            surrogate=surrogate,
            triggered=triggered_training(lab, stage),
        )
        models = {"self": model} | {_role(of, stage): lab.model(of) for of in parents[3:]}
        perturb = along(query.generator_of(outcome.tensors))
        budgets = sorted({0.0, *stage.setting.study.budgets, self.eps})
        rows, metrics = [], {}
        for row in sweep(models, images.test, lab.stamped_test(stage), perturb, budgets):
            scored = row.pop("model")
            rows.append({"perturbation": self.row, "scored": scored, **row})
            if row["eps"] == self.eps:
                part = SCORED[scored]
                metrics |= {f"{part}{name}": row[name] for name in ("c_asr", "p_asr")}
        metrics["asr"] = rows[0]["p_asr"]
        left_out = [label(name) for name in SCORED if name not in models]
        info = {**outcome.info, "surrogate": parents[2].name, "rows": rows, "left_out": left_out}
        return Result(outcome.tensors, info, metrics, list(outcome.history))


def _role(scored: Stage, stage: Stage) -> str:
    """Return which of the models scored a stage's is."""
    if scored.kind == CLEAN:
        return CLEAN if scored.cell.seed == stage.cell.seed else "clean_unseen"
    return "ep" if scored.kind == "purified" else scored.kind


def triggered_training(lab: Reader, stage: Stage) -> ImageSet:
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
