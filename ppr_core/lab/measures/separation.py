"""How well a purified model, and what its features hold, tells triggered images from clean ones."""

from typing import Any, ClassVar

from ppr_core.curves import recalibrated
from ppr_core.lab.graph import CLEAN, Setting, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.models.needs import NEEDS
from ppr_core.separation import separation, with_last_layer
from ppr_core.weights import snapshot


class Separation(Measure):
    """Tell triggered from clean images by the target's margin (area under the ROC curve).

    Three times: as the model stands; with the backdoored model's last layer put back; and with that
    and batch-norm statistics taken anew from clean images. Where a later figure is near 100 and an
    earlier one is not, the features are as they were, and the last layer, or the statistics, alone
    keep the backdoor asleep. The clean model is the control: what the trigger does to a network
    that never learnt it. No weight is trained, so that it is no attack; it needs the trigger.
    """

    source: ClassVar[str] = "this project"
    of_variants: ClassVar[bool] = True
    across: ClassVar[bool] = False  # the backdoored model's last layer fits its own basin
    columns: ClassVar[tuple[Column, ...]] = (
        Column("separation", "separation", "separation", "% AUC"),
        Column("separation_layer", "layer", "separation, last layer back", "% AUC", "lower", False),
        Column("separation_features", "features", "separation of features", "% AUC", "lower"),
    )

    def given(self, setting: Setting) -> dict[str, Any]:
        """Return the shares of the clean images, from which statistics are taken anew."""
        return setting.shares

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Return the figures; of the clean model the first, of others those that they allow."""
        model, victim = lab.ends(*stage.parents[:2])
        target, images = lab.trigger(stage).target, lab.outside_target(stage)
        metrics = {"separation": separation(model, *images, target)}
        if stage.cell.defense == CLEAN or not NEEDS["linear"].met(model):
            return Result(metrics=metrics)
        mixed = with_last_layer(model, victim)
        metrics["layer"] = metrics["features"] = separation(mixed, *images, target)
        if NEEDS["batch norm with statistics"].met(mixed):
            tune = stage.setting.held(stage.cell.seed).tune
            mixed.load_state_dict(recalibrated(mixed, snapshot(mixed), tune))
            metrics["features"] = separation(mixed, *images, target)
        return Result(metrics=metrics)
