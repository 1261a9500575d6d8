"""Unlearn a trigger that a source has found: what bti, bti_sam and pam share."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import SerializeAsAny, model_validator
from torch import Tensor, nn

from ppr_core.config import Field, SettingsError, from_registry
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.defenses.parts.selection import ChoosingByFloor
from ppr_core.defenses.sources.base import Change, RealTrigger, State, TriggerSource
from ppr_core.defenses.sources.cleanse import Cleanse
from ppr_core.defenses.sources.inversion import Inversion
from ppr_core.defenses.sources.patches import PatchDistribution
from ppr_core.defenses.sources.residual import ResidualInversion
from ppr_core.method import Outcome, fork
from ppr_core.metrics import clean_accuracy
from ppr_core.runtime import Record, autocast, part
from ppr_core.training.fit import Schedule, fit, make_optimizer

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

SOURCES: dict[str, type[TriggerSource]] = {
    "bti": Inversion,
    "bti_residual": ResidualInversion,
    "neural_cleanse": Cleanse,
    "mesa": PatchDistribution,
    "real": RealTrigger,
}


class Unlearning(Defense):
    """Alternate trigger inversion with tuning on images that carry the trigger and true labels.

    Subclasses whose steps are not plain ones override `hooks`.
    """

    privileges: ClassVar[str] = (
        "none; the target label is estimated (inversion real: the trigger; mesa: the patch's size)"
    )

    inversion: SerializeAsAny[TriggerSource] = Field(
        Inversion(), description="source of triggers; in a file its name and settings"
    )
    tuning: Schedule = Field(Schedule(), description="of the classifier, each round")
    reversed_share: float = Field(0.1, ge=0, le=1, description="triggered images, share of a batch")
    rounds: int = Field(5, ge=1, description="rounds of inversion and tuning")

    @model_validator(mode="before")
    @classmethod
    def _named_source(cls, values: Any) -> Any:
        """Take {"inversion": {"name": ...}} as another source than the default one."""
        if isinstance(values, Mapping):
            wanted = values.get("inversion")
            if isinstance(wanted, str) or (isinstance(wanted, Mapping) and "name" in wanted):
                try:
                    source = from_registry(SOURCES, wanted, "trigger source")
                except SettingsError as error:
                    raise error.inside(cls.__name__, "inversion") from None
                return {**values, "inversion": source}
        return values

    @property
    def oracle(self) -> bool:
        """Whether the source is handed the attacker's trigger."""
        return self.inversion.oracle

    @property
    def uses(self) -> str:
        """What the source, so configured, is told of the trigger."""
        return f"{self.inversion.told or 'none'}; the target label is estimated"

    def needed(self) -> tuple[str, ...]:
        """Return what the way to step and the source need of a model."""
        return tuple(dict.fromkeys((*self.needs, *self.inversion.needs)))

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise ConfigError where the source cannot serve model or data."""
        super().check(model, data)
        self.inversion.check(model, data)

    def preparation(self) -> dict[str, Any] | None:
        """Return what the first round of inversion depends on: the source, nothing else."""
        return self.inversion.preparation()

    def prepare(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the first round's inversion, which every way to step shares."""
        self.check(model, data)
        return self.inversion.invert(model, data, rng=rng, state={})

    def run(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        rng: torch.Generator,
        state: State | None = None,
        validation: ImageSet | None = None,
        trigger: Change | None = None,
    ) -> Outcome:
        """Invert and tune."""
        state = state or self.prepare(model, data, rng=fork(rng, "prepare"))
        return self.tune(model, data, state, rng=rng, validation=validation, trigger=trigger)

    def tune(
        self,
        model: nn.Module,
        data: ImageSet,
        state: State,
        *,
        rng: torch.Generator,
        validation: ImageSet | None,
        trigger: Change | None,
    ) -> Outcome:
        """Tune in rounds, looking again for the trigger before each but the first."""
        reverse: Change

        def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return triggered_first(images, reverse, self.reversed_share), labels

        optimizer = make_optimizer(model.parameters(), self.tuning)
        ready = self.inversion.capturable  # what draws anew at each step cannot be resumed
        hooks: dict[str, Any] = {"capturable": ready, "resume": "tune" if ready else ""}
        hooks |= self.hooks(model, mix, fork(rng, "hooks"))
        history: list[Record] = []
        done = 0
        for number in range(1, self.rounds + 1):
            with part(f"round-{number}"):
                if number > 1:
                    again = fork(rng, "invert", number)
                    state = self.inversion.invert(model, data, rng=again, state=state)
                if "stop" in state:
                    break
                reverse = self.inversion.trigger(model, state, trigger)
                shuffles = fork(rng, "tune", number)
                records = fit(model, data, self.tuning, rng=shuffles, optimizer=optimizer, **hooks)
            for record in records:
                history.append({**record, "epoch": len(history) + 1, "round": number})
            done = number
        info = {"warnings": [], **self.inversion.findings(state), "rounds": done}
        if validation is not None and len(validation):
            info["val_c_acc"] = clean_accuracy(model, validation)
        return Outcome(model, history, info)

    def hooks(self, model: Any, mix: Mix, rng: torch.Generator) -> dict[str, Any]:
        """Return the arguments of `fit` that make its steps this defense's.

        Plainly: the cross-entropy of batches in which a share of the images is triggered.

        Args:
            model: as it was handed in.
            mix: triggers a share of the images of a batch.
            rng: of what the steps draw.
        """
        return {"on_batch": mix}


def triggered_first(images: Tensor, reverse: Change, share: float) -> Tensor:
    """Return a batch whose first int(share * B + 1) images are triggered.

    A shuffled batch is in random order: the first are as good as any others.

    Differs from the authors' code: theirs draws their places in the batch.
    """
    count = int(share * len(images) + 1)
    with torch.no_grad(), autocast(images.device):
        found = reverse(images[:count])
    return torch.cat([found, images[count:]])


class Stepping(Unlearning, ChoosingByFloor):
    """Unlearning whose gradient is evaluated at a distance rho from the current weights.

    With a grid, validation chooses rho.

    Source: Min et al. 2024, arXiv:2410.09838, sec. 4.2 (the largest rho of a grid at which clean
    accuracy stays above a floor). Differs from the paper: the floor is a drop from the accuracy
    that the model had, on held-out clean images, unless `c_acc_floor` is set to the paper's 92 %.
    """

    chosen: ClassVar[str] = "rho"

    tuning: Schedule = Field(
        Schedule(epochs=30, lr=0.01, momentum=0.1), description="of the classifier, each round"
    )
    reversed_share: float = Field(0.2, ge=0, le=1, description="triggered images, share of a batch")
    rounds: int = Field(3, ge=1, description="rounds of inversion and tuning")
    rho: float = Field(0.5, ge=0, description="L2 distance of the gradient's point, all weights")
    rho_grid: list[Annotated[float, Field(ge=0)]] = Field(
        [], description="choose rho from these, by validation; empty: use rho"
    )

    def run(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        rng: torch.Generator,
        state: State | None = None,
        validation: ImageSet | None = None,
        trigger: Change | None = None,
    ) -> Outcome:
        """Invert and tune, with the largest rho that clean accuracy allows."""
        given: dict[str, Any] = {"rng": rng, "validation": validation, "trigger": trigger}
        first = state or self.prepare(model, data, rng=fork(rng, "prepare"))
        outcome, info = self.choose(
            model,
            validation,
            lambda rho: self.replace(rho=rho, rho_grid=[]).tune(model, data, first, **given),
        )
        doubts = [*outcome.info["warnings"], *info.get("warnings", [])]
        outcome.info |= info | {"warnings": doubts}
        return outcome
