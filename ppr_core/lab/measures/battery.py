"""RB-1: the battery on a purified model, beside clean models of two other seeds and EP."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ppr_core.attacks import Attack
from ppr_core.config import Field, derive
from ppr_core.data.images import ImageSet
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import CLEAN, Cell, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.reactivation import battery
from ppr_core.reactivation.beside import Control, run
from ppr_core.reactivation.cells import Bench, Setting, dump, load
from ppr_core.reactivation.cells import Cell as Point
from ppr_core.reactivation.examination import examine
from ppr_core.reactivation.gates import Evidence
from ppr_core.reactivation.query import PAPER_ALPHAS
from ppr_core.reactivation.retuning import PAPER_COUNTS

CONTROLS = 2  # clean models, of the seeds that follow the victim's
CONTROL = "battery_control"
FURTHER = "battery_cells"


class Battery(Measure, battery.Battery):
    """Run every arm on a purified model; calibrate it by models that never held the backdoor."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("wake_count", "wake_count", "wake count", "poisons", "higher"),
        Column("clean_wake_count", "clean_wake_count", "clean wake count", "poisons"),
        Column("worst_p_asr", "worst_p_asr", "worst P-ASR", better="lower"),
        Column("above_clean", "above_clean", "above clean", "points", "lower", shown=False),
        Column("above_ep", "above_ep", "above EP", "points", "lower", shown=False),
        Column("recovery", "recovery", "epochs to 50 %", "epochs", "higher", shown=False),
    )

    @classmethod
    def against(cls, attack: str, values: Mapping[str, Any]) -> Self:
        """Take the paper's count of poisons and its alpha of QRA where none is given."""
        count = {"poisoned": PAPER_COUNTS[attack]} if attack in PAPER_COUNTS else {}
        alpha = {"alpha": PAPER_ALPHAS[attack]} if attack in PAPER_ALPHAS else {}
        given = {
            "retuning": {**count, **values.get("retuning", {})},
            "query": {**alpha, **values.get("query", {})},
        }
        return cls(**{**values, **given})

    def check_images(self, attack: Attack, train: ImageSet, seed: int) -> None:
        """Raise DataError where the attack has fewer poisons than a count asks for."""
        there = attack.select(train.labels, seed=seed)
        kept = attack.retunable(train.labels, there, any_class=self.retuning.any_class)
        self.need_samples(len(train), len(kept))

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether a cell has a purified model; clean ones are its controls."""
        return super().takes(chains, cell) and cell.defense != CLEAN

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the model, the victim, the clean models with their grids, and EP's if any."""
        controls = [self._control(chains, cell, 1 + index) for index in range(CONTROLS)]
        found = [stage for control in controls for stage in (control.parents[0], control)]
        if chains.exact:
            found.append(chains.purified(cell.but(defense=chains.exact)))
        return (chains.source(cell), chains.backdoored(cell), *found)

    def _control(self, chains: Chains, cell: Cell, after: int) -> Stage:
        """Return the grid of the clean model of a later seed: one for all defenses."""
        victim, clean = chains.backdoored(cell), chains.clean_model(cell.seed + after)
        return chains.once(
            f"{CONTROL} {after} {self.flat()}",
            cell.but(defense=CLEAN),
            lambda own: Stage(
                CONTROL, own, Grid(**_arms(self)), chains.setting, {"after": after}, (clean, victim)
            ),
        )

    def _kept(self, lab: Reader, model: Stage, victim: Stage, cells: list[Point]) -> Control:
        """Return a model to set others beside, whose further cells the store keeps for all."""
        own = model.cell if model.kind == "purified" else victim.cell.but(defense=CLEAN)

        def compute(arm: str, settings: Sequence[Setting]) -> list[Point]:
            method = Further(**_arms(self), arm=arm, settings=list(settings))
            stage = Stage(FURTHER, own, method, victim.setting, {}, (model, victim))
            return load(lab.result(stage).info["cells"])

        return Control(lab.model(model), cells, compute)

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Examine the model; keep its cells and figures, and the figures that are numbers."""
        model, victim = stage.parents[:2]
        grids = [parent for parent in stage.parents if parent.kind == CONTROL]
        controls = [
            self._kept(lab, grid.parents[0], victim, load(lab.result(grid).info["cells"]))
            for grid in grids
        ]
        exact = next((one for one in stage.parents[2:] if one.kind == "purified"), None)
        ep = self._kept(lab, exact, victim, []) if exact else None
        found, bench, purified = lab.result(model), shared(self, lab, stage), lab.model(model)
        before = bench.start(lab.model(victim))  # on the images that all others are seen on
        evidence = Evidence(
            classes=stage.setting.images.train.num_classes,
            victim_c_acc=before.c_acc,
            victim_asr=before.p_asr,
            warnings=list(found.info.get("warnings", [])),
        )
        guide, queries = ep or controls[1], []
        if exact and exact.key == model.key:  # EP is not its own surrogate
            guide = controls[1]
        if found.metrics["asr"] <= self.limits.purified:
            queries = self.queries(
                bench,
                purified,
                surrogate=guide.model,
                unseen=controls[0].model,
                triggered=lab.query_images(stage),
                rng=derive(stage.cell.seed, "query"),
            )
        cells, figures = examine(
            self, bench, purified, controls, ep=ep, queries=queries, evidence=evidence
        )
        numbers = {
            "o_asr": figures.o_asr,
            "wake_count": figures.wake_count,
            "clean_wake_count": figures.clean_wake_count,
            "worst_p_asr": _mean(figures.p_asr),
            "above_clean": _above(figures.p_asr, figures.clean_p_asr),
            "above_ep": _above(figures.p_asr, figures.ep_p_asr),
            "recovery": figures.recovery_epochs,
        }
        metrics = {name: value for name, value in numbers.items() if value is not None}
        info = {"cells": dump(cells), "figures": figures.model_dump(mode="json")}
        return Result(info={**info, "verdict": figures.verdict.word}, metrics=metrics)


def shared(arms: battery.Arms, lab: Reader, stage: Stage) -> Bench:
    """Return what all models of one attack and seed share."""
    trigger, images, any_class = lab.trigger(stage), stage.setting.images, arms.retuning.any_class
    indices = lab.poison_indices(stage)
    kept = trigger.attack.retunable(images.train.labels, indices, any_class=any_class)
    return arms.bench(
        images.train,
        poisons=trigger.poisons(images.train, indices, any_class=any_class),
        test=images.test,
        stamped=lab.stamped_test(stage),
        rng=derive(stage.cell.seed, "battery"),
        originals=images.train.images[kept],
    )


def _arms(arms: battery.Arms) -> dict[str, Any]:
    """Return what the cells of a control depend on: a threshold of the verdict is not among it."""
    return {name: getattr(arms, name) for name in battery.Arms.model_fields}


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _above(own: list[float], others: list[float]) -> float | None:
    return statistics.fmean(own) - statistics.fmean(others) if own and others else None


class Grid(Measure, battery.Arms):
    """The cells of a clean model: those that are the same for every model."""

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Run the grid."""
        cells = self.grid(shared(self, lab, stage), lab.model(stage.parents[0]))
        return Result(info={"cells": dump(cells)})


class Further(Measure, battery.Arms):
    """Cells of a clean model, or EP's, that the worst setting of another model asks for."""

    arm: str = Field("fresh", description="that they belong to")
    settings: list[Setting] = Field([], description="one a cell")

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Run them."""
        bench, model = shared(self, lab, stage), lab.model(stage.parents[0])
        cells = run(bench, model, self.arm, self.settings)
        return Result(info={"cells": dump(cells)})
