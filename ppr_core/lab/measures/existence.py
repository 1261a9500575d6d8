"""The backdoor existence coefficient of purified models, beside that of a clean one."""

import statistics
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ppr_core import existence
from ppr_core.config import Field, derive
from ppr_core.errors import ConfigError, need
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import CLEAN, Cell, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result

Similarities = dict[str, float]  # layer -> linear CKA with the backdoored model


class Existence(Measure, existence.Existence):
    """Tell how much of a backdoor's inner traces a purified model still has.

    Two clean models set the zero, one after the other, and the coefficient is the mean of both;
    the coefficient of one clean model, with the other as the zero, is the control: what chance
    alone makes of it. Where the backdoored model's layers cannot be compared, there is no
    coefficient, and the result says why.
    """

    across: ClassVar[bool] = False  # a model that was trained anew shares no channels with it
    columns: ClassVar[tuple[Column, ...]] = (
        Column("existence", "existence", "existence", "", "lower", decimals=2),
        Column("existence_first", "existence_0", "existence, clean 1", "", "lower", shown=False),
        Column("existence_second", "existence_1", "existence, clean 2", "", "lower", shown=False),
        Column("existence_clean", "control", "existence of clean", "", shown=False),
        Column("existence_layers", "layers", "layers counted", "layers", shown=False),
    )

    form: Literal["paper", "code"] = Field(
        "paper",
        description="code: from the least to the most similar of the study's models, so that it "
        "depends on which defenses are listed",
    )

    @classmethod
    def check_study(cls, chains: Chains, values: Any) -> None:
        """Raise ConfigError for a study without a clean model."""
        need(
            chains.has_clean,
            "expected a clean model for the measure 'existence', got none; set clean_control: true",
        )

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether a cell has a purified model; clean ones are its zero."""
        return super().takes(chains, cell) and cell.defense != CLEAN

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the model, the victim, the clean models; for `code` all that are listed."""
        cleans = (chains.clean_model(cell.seed), chains.unseen_clean(cell.seed))
        listed: list[Stage] = []
        if self.form == "code":
            cells = chains.purified_cells(cell.attack, cell.seed)
            known = [c for c in cells if c.variant is None and not chains.anew(c)]
            others = [c for c in known if c.defense != cell.defense]
            listed = [chains.source(other) for other in others]
        there = [stage for stage in cleans if stage is not None]
        return (chains.source(cell), chains.backdoored(cell), *there, *listed)

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Return the coefficient, or why there is none."""
        try:
            return self._coefficient(lab, stage)
        except ConfigError as error:
            return Result(info={"not_applicable": str(error)})

    def _coefficient(self, lab: Reader, stage: Stage) -> Result:
        source, victim = stage.parents[:2]
        cleans = [parent for parent in stage.parents[2:] if parent.kind == CLEAN]
        images = self._images(lab, stage)
        own, *zeros = self._similar(lab, images, victim, source, *cleans)
        info: dict[str, Any] = {"form": self.form, "similarities": own, "clean": zeros}
        if self.form == "code":
            listed = [parent for parent in stage.parents[2:] if parent.kind != CLEAN]
            means = {"": _mean(own), CLEAN: _mean(zeros[0])}
            for other in listed:
                means[other.name] = _mean(self._similar(lab, images, victim, other)[0])
            info["depends_on"] = [cleans[0].name, *(other.name for other in listed)]
            return Result(info=info, metrics={"existence": existence.min_max("", means)})
        found = [self.coefficient(own, zero) for zero in zeros]
        told = {index: one for index, one in enumerate(found) if one.layers}
        need(
            told,
            f"expected layers in which the clean model is {self.least:g} less similar to the "
            "backdoored one than that is to itself, got none: nothing tells the two apart",
        )
        metrics = {f"existence_{index}": one.value for index, one in told.items()}
        metrics["existence"] = statistics.fmean(metrics.values())
        metrics["layers"] = statistics.fmean(one.layers for one in told.values())
        info["left_out"] = [one.left_out for one in found]
        if len(zeros) == 2:
            pairs = [self.coefficient(*zeros), self.coefficient(*zeros[::-1])]
            if values := [one.value for one in pairs if one.layers]:
                metrics["control"] = statistics.fmean(values)
        return Result(info=info, metrics=metrics)

    def _images(self, lab: Reader, stage: Stage) -> tuple[Tensor, Tensor]:
        """Return test images outside the target class and the same with the trigger, shuffled."""
        clean, stamped = lab.outside_target(stage)
        rng = derive(stage.cell.seed, "existence")  # the same images for every defense
        order = torch.randperm(len(clean), generator=rng).to(clean.device)
        return clean[order], stamped[order]

    def _similar(
        self, lab: Reader, images: tuple[Tensor, Tensor], victim: Stage, *stages: Stage
    ) -> list[Similarities]:
        """Return how similar the models of some stages are to the victim, layer by layer."""
        clean, stamped = images
        home, *models = lab.ends(victim, *stages)
        kept = self.channels(home, clean, stamped)
        return [self.similarities(home, model, kept, stamped) for model in models]


def _mean(values: Similarities) -> float:
    return statistics.fmean(values.values())
