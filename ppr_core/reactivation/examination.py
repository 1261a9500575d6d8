"""Run the battery on one model, beside clean models and EP, and sum it up."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ppr_core.errors import DataError, need
from ppr_core.models.base import batch_norms
from ppr_core.reactivation.battery import Battery
from ppr_core.reactivation.beside import Control, run
from ppr_core.reactivation.cells import Bench, Cell, Setting
from ppr_core.reactivation.figures import (
    by_count,
    by_place,
    counted,
    implanting,
    judged,
    recovery,
    started,
    wake_count,
)
from ppr_core.reactivation.gates import Evidence, ratio
from ppr_core.reactivation.objections import against
from ppr_core.reactivation.summary import Figures, conclude, objection
from ppr_core.reactivation.verdicts import QueryResult, Verdict

CANDIDATES = 3  # worst settings that are tried with fresh draws until one stays admissible


def examine(
    battery: Battery,
    bench: Bench,
    model: nn.Module,
    controls: Sequence[Control],
    *,
    ep: Control | None = None,
    queries: Sequence[QueryResult] = (),
    evidence: Evidence | None = None,
) -> tuple[list[Cell], Figures]:
    """Run all arms on a model; return its cells, judged, and its figures.

    A model that is not purified is measured as it came: there is nothing to wake.

    Args:
        battery: what is run.
        bench: `battery.bench` of the model's attack and seed.
        model: purified; left untouched.
        controls: clean models of other seeds (two for RB-1); cells they miss are added to theirs.
        ep: the exactly purified model, which "holds" is measured by.
        queries: QRA on this model and on a clean one that no generator saw.
        evidence: of the checks: classes, the backdoored model's rates, the defense's warnings.

    Raises:
        DataError: no control.
    """
    need(controls, "expected at least one clean control (two for RB-1), got none", DataError)
    for control in controls:
        control.cells = control.cells or battery.grid(bench, control.model)
    found = _Examination(battery, bench, model, controls)
    worst, fresh = found.search()
    start = started(found.cells)
    figures = Figures(
        o_asr=start.p_asr or 0.0,
        c_acc=start.c_acc or 0.0,
        worst_arm=worst.arm if worst else "",
        worst=worst.setting.place if worst else None,
        p_asr=[cell.p_asr or 0.0 for cell in fresh],
        clean_p_asr=found.beside(controls, fresh),
        ep_p_asr=found.beside([ep], fresh) if ep else [],
        ep_o_asr=bench.start(ep.model).p_asr if ep else None,
        queries=list(queries),
        gates=battery.gates((evidence or Evidence()).replace(**found.evidence())),
        verdict=Verdict(word="no verdict", reason="not concluded yet"),
        **found.counts(),
    )
    if ep and not objection(figures, battery.limits):
        figures = figures.replace(beyond=found.against(ep))
    return found.cells, figures.replace(verdict=conclude(figures, battery.limits))


class _Examination:
    """The battery on one model: its cells so far, and what is read off them."""

    def __init__(
        self, battery: Battery, bench: Bench, model: nn.Module, controls: Sequence[Control]
    ) -> None:
        self.battery, self.bench, self.model, self.controls = battery, bench, model, controls
        self.cells = [bench.start(model)]
        self.unconfirmed: list[Setting] = []  # bad, but their fresh draws do not count
        if (self.cells[0].p_asr or 0.0) <= battery.limits.purified:  # else there is nothing to wake
            implants = implanting([control.cells for control in controls], battery.limits)
            self.cells = self._judged(battery.grid(bench, model, implants))

    def _judged(self, cells: list[Cell]) -> list[Cell]:
        return judged(cells, [control.cells for control in self.controls], self.battery.limits)

    def search(self) -> tuple[Cell | None, list[Cell]]:
        """Return a cell of the worst admissible setting, and that setting's fresh draws."""
        battery, limits = self.battery, self.battery.limits
        order = by_place(counted(self.cells, limits))
        if order:
            self._vary(*order[0])
            order = by_place(counted(self.cells, limits))
        for _, cell in order[:CANDIDATES]:
            draws = range(battery.draws, battery.draws + battery.fresh)
            settings = [cell.setting.replace(draw=draw) for draw in draws]
            for control in self.controls:
                control.take(self.bench, "fresh", settings)
            new = run(self.bench, self.model, "fresh", settings)
            self.cells = self._judged([*self.cells, *new])  # the setting by its fresh draws, too
            fresh = counted([started(self.cells), *self.cells[-len(new) :]], limits)
            if len(fresh) >= min(2, battery.fresh):
                return cell, fresh
            self.unconfirmed.append(cell.setting.place)
        return None, []

    def _vary(self, worst_p_asr: float, worst: Cell) -> None:
        """Run the arms that change one more thing about the worst setting so far.

        Clean models go through what is worse than that: whether the others would be admissible
        makes no difference.
        """
        place, arms = worst.setting.place, []
        if any(True for _ in batch_norms(self.model)):
            arms += [("batch norm", place.replace(batch_norm="recalibrated"))]
            arms += [("batch norm", place.replace(batch_norm="frozen"))]
        if self.bench.pools["weak"] is not None and place.poisons:
            arms += [("trigger", place.replace(trigger="weak"))]
        for arm, setting in arms:
            (cell,) = run(self.bench, self.model, arm, [setting])
            if (cell.p_asr or 0.0) > worst_p_asr:
                for control in self.controls:
                    control.take(self.bench, arm, [setting])
            self.cells += self._judged([cell])

    def beside(self, models: Sequence[Control], fresh: Sequence[Cell]) -> list[float]:
        """Return the mean P-ASR of other models in each cell; one that diverged sleeps."""
        settings = [cell.setting for cell in fresh]
        found = [other.take(self.bench, "fresh", settings) for other in models]
        return [statistics.fmean(c.p_asr or 0.0 for c in at) for at in zip(*found, strict=True)]

    def against(self, ep: Control) -> str:
        """Say what keeps a model from holding beside its worst setting; "" where nothing does.

        What was left out since it wakes clean models is run for that: it may wake this one so much
        sooner that it cannot be said to hold.
        """
        self.cells = self._judged(self.battery.complete(self.bench, self.model, self.cells))
        tables, limits = [control.cells for control in self.controls], self.battery.limits
        return against(self.cells, tables, self.of(ep), self.unconfirmed, limits)

    def of(self, other: Control) -> Callable[[Sequence[Cell]], float]:
        """Return what tells another model's mean P-ASR in some cells."""
        return lambda cells: statistics.fmean(self.beside([other], cells))

    def evidence(self) -> dict[str, float | None]:
        """Return what the cells themselves tell the checks."""
        tables = [{cell.setting: cell for cell in c.cells} for c in self.controls]
        own, others = [], []
        for cell in self.cells:
            if cell.arm == "strength" and cell.admissible and cell.moved is not None:
                own.append(cell.moved)
                others.append(statistics.fmean(t[cell.setting].moved or 0.0 for t in tables))
        tried = [cell for cell in self.cells if cell.admissible and cell.arm != "start"]
        kept = counted(self.cells, self.battery.limits)
        return {
            "clean_c_acc": statistics.fmean(started(c.cells).c_acc or 0.0 for c in self.controls),
            "clean_p_asr": max(_paper_p_asr(self.battery, c.cells) for c in self.controls),
            "c_acc": started(self.cells).c_acc,
            "moved": ratio(own, others),
            "wrecked": 1 - len(kept) / len(tried) if tried else None,
        }

    def counts(self) -> dict[str, Any]:
        """Return wake counts, the P-ASR at the paper's strength, and the recovery speed.

        A wake count and a recovery speed of the model are those of admissible cells.
        """
        battery, level = self.battery, self.battery.limits.woken
        clean = min(wake_count(control.cells, level) for control in self.controls)
        medians = zip(*(by_count(control.cells) for control in self.controls), strict=True)
        beside = {
            "clean_wake_count": _or_none(clean),
            "clean_counts": [(at[0][0], statistics.fmean(m for _, m in at)) for at in medians],
            "paper_poisons": battery.retuning.poisoned,
        }
        if len(self.cells) == 1:  # as it came, and no more
            return beside
        kept = [cell for cell in self.cells if cell.admissible]
        quiet = [started(self.cells), *(cell for cell in kept if cell.arm != "start")]
        return beside | {
            "wake_count": _or_none(wake_count(kept, level)),
            "counts": by_count(kept),
            "paper_p_asr": _paper_p_asr(battery, self.cells),
            "recovery_epochs": _or_none(recovery(quiet, battery.paper, level)),
        }


def _paper_p_asr(battery: Battery, cells: Sequence[Cell]) -> float:
    """Return the median P-ASR over the draws of RA at the paper's strength."""
    same = {cell.setting: cell for cell in cells if cell.setting.place == battery.paper}
    return statistics.median(cell.p_asr or 0.0 for cell in same.values())


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
