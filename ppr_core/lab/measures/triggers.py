"""Optimised triggers: white-box, query-only, and from the other purified models."""

from typing import Any, ClassVar

from ppr_core.config import derive
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import Cell, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.reactivation import triggers
from ppr_core.reactivation.perturbation import aimed, success_rates


class Triggers(Measure, triggers.Triggers):
    """Search one perturbation of all triggered images, with growing knowledge of the model."""

    curve: ClassVar[str] = "queries"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("trigger_asr", "p_asr", "trigger", better="lower"),
    )

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the model, the victim, and the other purified models."""
        rivals = [other for other in chains.rivals(cell.attack, cell.seed) if other != cell]
        others = (chains.purified(other) for other in rivals)
        return (chains.source(cell), chains.backdoored(cell), *others)

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Search each trigger, and count what it reaches on clean and triggered test images."""
        model, poisons = lab.model(stage.parents[0]), lab.poisons(stage)
        others = [lab.model(parent) for parent in stage.parents[2:]]
        rng = derive(stage.cell.seed, "triggers")
        searches = {"white-box": self.white_box, "query-only": self.queries}
        if others:
            searches["transfer"] = self.transfer
        stamped = lab.stamped_test(stage)
        clean = aimed(stage.setting.images.test, lab.trigger(stage).target)
        rows: list[dict[str, Any]] = []
        tensors = {}
        for name, search in searches.items():
            given = {"surrogates": others} if name == "transfer" else {}
            outcome = search(model, poisons, rng=rng, **given)
            perturb = triggers.universal(outcome.tensors)
            rates = [
                success_rates({"": model}, part, perturb, [search.eps]) for part in (clean, stamped)
            ]
            c_asr, p_asr = (rate[""][0] for rate in rates)
            row = {"perturbation": f"trigger, {name}", "eps": search.eps}
            rows.append({**row, "c_asr": c_asr, "p_asr": p_asr})
            tensors[f"trigger, {name}"] = outcome.tensors["direction"]
        return Result(tensors, {"rows": rows}, {"p_asr": rows[0]["p_asr"]})
