"""How well a purified model still tells triggered images from clean ones."""

from typing import ClassVar

from ppr_core.lab.graph import CLEAN, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.models.needs import NEEDS
from ppr_core.separation import separation, with_last_layer


class Separation(Measure):
    """Tell triggered from clean images by the target's margin (area under the ROC curve).

    Once as the model stands, and once with the backdoored model's last layer put back: where the
    second is near 100 and ASR is not, the features are as they were, and the last layer alone keeps
    the backdoor asleep. The clean model is the control: what the trigger does to a network that
    never learnt it. No weight is trained, so that it is no attack; it needs the trigger.
    """

    source: ClassVar[str] = "this project"
    of_variants: ClassVar[bool] = True
    across: ClassVar[bool] = False  # the backdoored model's last layer fits its own basin
    columns: ClassVar[tuple[Column, ...]] = (
        Column("separation", "separation", "separation", "% AUC"),
        Column("separation_features", "features", "separation, last layer back", "% AUC", "lower"),
    )

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Return both figures; the second of purified models that name their last layer."""
        model, victim = lab.ends(*stage.parents[:2])
        target = lab.trigger(stage).target
        images = lab.outside_target(stage)
        metrics = {"separation": separation(model, *images, target)}
        if stage.cell.defense != CLEAN and NEEDS["linear"].met(model):
            mixed = with_last_layer(model, victim)
            metrics["features"] = separation(mixed, *images, target)
        return Result(metrics=metrics)
