"""QRA's controls: what any model suffers at these budgets."""

from typing import Any, ClassVar

from ppr_core.config import derive
from ppr_core.lab.graph import Setting, Stage
from ppr_core.lab.measures.base import Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.reactivation import controls
from ppr_core.reactivation.perturbation import aimed, frozen, sweep
from ppr_core.reactivation.triggers import universal


class Controls(Measure, controls.Controls):
    """Perturb by sign noise, by one universal perturbation, and by PGD, at QRA's budgets."""

    curve: ClassVar[str] = "queries"

    def given(self, setting: Setting) -> dict[str, Any]:
        """Return the budgets."""
        return {"budgets": setting.study.budgets}

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Return what each control reaches at every budget."""
        model, images, seed = lab.model(stage.parents[0]), stage.setting.images, stage.cell.seed
        stamped = lab.stamped_test(stage)
        target = lab.trigger(stage).target
        found = self.universal(model, aimed(images.train, target), rng=derive(seed, "controls"))
        perturbations = {
            "sign noise": controls.sign_noise(derive(seed, "controls", "noise")),
            "universal": universal(found.tensors),
            "pgd": self.pgd.on(model, target),
        }
        test, stamped = images.test.spread(self.images), stamped.spread(self.images)
        budgets = sorted({0.0, *stage.setting.study.budgets})
        rows: list[dict[str, Any]] = []
        with frozen(model):
            for name, perturb in perturbations.items():
                swept = sweep({"": model}, test, stamped, perturb, budgets)
                rows += [{"perturbation": name, **row} for row in swept]
        return Result({"direction": found.tensors["direction"]}, {"rows": rows})
