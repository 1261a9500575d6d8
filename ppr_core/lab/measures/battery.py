"""RB-1: the battery on a purified model, beside clean models of two other seeds and EP."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ppr_core.config import derive
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import CLEAN, Cell, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.reactivation import battery
from ppr_core.reactivation.cells import Bench, dump, load
from ppr_core.reactivation.examination import Control, examine
from ppr_core.reactivation.figures import QueryResult
from ppr_core.reactivation.gates import Evidence
from ppr_core.reactivation.retuning import PAPER_COUNTS

CONTROLS = 2  # clean models, of the seeds that follow the victim's
CONTROL = "battery_control"


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
        """Take the paper's count of poisons where none is given."""
        own = {"poisoned": PAPER_COUNTS[attack]} if attack in PAPER_COUNTS else {}
        return cls(**{**values, "retuning": {**own, **values.get("retuning", {})}})

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether a cell has a purified model; clean ones are its controls."""
        return super().takes(chains, cell) and cell.defense != CLEAN

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the model, the victim, the clean models with their grids, and EP's if any."""
        controls = [self._control(chains, cell, 1 + index) for index in range(CONTROLS)]
        found = [stage for control in controls for stage in (control.parents[0], control)]
        if chains.exact:
            found.append(chains.purified(cell.but(defense=chains.exact)))
        if (query := chains.taken("query", cell)) is not None:
            found.append(query)
        return (chains.source(cell), chains.backdoored(cell), *found)

    def _control(self, chains: Chains, cell: Cell, after: int) -> Stage:
        """Return the grid of the clean model of a later seed: one for all defenses."""
        victim, clean = chains.backdoored(cell), chains.clean_model(cell.seed + after)
        values = {name: getattr(self, name) for name in battery.Battery.model_fields}
        return chains.once(
            f"{CONTROL} {after} {self.flat()}",
            cell.but(defense=CLEAN),
            lambda own: Stage(
                CONTROL, own, Grid(**values), chains.setting, {"after": after}, (clean, victim)
            ),
        )

    def shared(self, lab: Reader, stage: Stage) -> Bench:
        """Return what all models of one attack and seed share."""
        trigger, images = lab.trigger(stage), stage.setting.images
        poisoned = trigger.attack.poison(images.train, seed=stage.cell.seed, state=trigger.state)
        kept = poisoned.indices
        if not (trigger.attack.clean_label or self.retuning.any_class):
            kept = kept[poisoned.original != trigger.target]
        return self.bench(
            images.train,
            poisons=poisoned.data.subset(kept),
            test=images.test,
            stamped=lab.stamped_test(stage),
            rng=derive(stage.cell.seed, "battery"),
            originals=images.train.images[kept],
        )

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Examine the model; keep its cells and figures, and the figures that are numbers."""
        model, victim = stage.parents[:2]
        grids = [parent for parent in stage.parents if parent.kind == CONTROL]
        controls = [
            Control(lab.model(grid.parents[0]), load(lab.result(grid).info["cells"]))
            for grid in grids
        ]
        exact = next((one for one in stage.parents[2:] if one.kind == "purified"), None)
        query = stage.parent("query")
        found, before = lab.result(model), lab.result(victim).metrics
        evidence = Evidence(
            classes=stage.setting.images.train.num_classes,
            victim_c_acc=before["c_acc"],
            victim_asr=before["asr"],
            warnings=list(found.info.get("warnings", [])),
        )
        cells, figures = examine(
            self,
            self.shared(lab, stage),
            lab.model(model),
            controls,
            ep=lab.model(exact) if exact else None,
            queries=self._queries(lab.result(query).info["rows"]) if query else (),
            evidence=evidence,
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

    def _queries(self, rows: Sequence[Mapping[str, Any]]) -> list[QueryResult]:
        """Return QRA's results at the battery's budgets, beside the unseen clean model's."""
        at: dict[float, dict[str, float]] = defaultdict(dict)
        for row in rows:
            at[row["eps"]][row["scored"]] = row["p_asr"]
        return [
            QueryResult(eps=eps, p_asr=found["self"], clean=found["clean_unseen"])
            for eps, found in sorted(at.items())
            if "clean_unseen" in found and any(math.isclose(eps, b) for b in self.budgets)
        ]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _above(own: list[float], others: list[float]) -> float | None:
    return statistics.fmean(own) - statistics.fmean(others) if own and others else None


class Grid(Battery):
    """The cells of a clean model: those that are the same for every model."""

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Run the grid."""
        cells = self.grid(self.shared(lab, stage), lab.model(stage.parents[0]))
        return Result(info={"cells": dump(cells)})
