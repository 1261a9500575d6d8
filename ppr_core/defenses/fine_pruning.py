"""Fine-Pruning: prune what clean images leave asleep, then fine-tune."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet, to_float
from ppr_core.defenses.base import Defense
from ppr_core.defenses.finetune import BENCH
from ppr_core.defenses.parts.masks import Judge
from ppr_core.defenses.parts.selection import need_validation
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.metrics import EVAL_BATCH, clean_accuracy, evaluating
from ppr_core.models.base import Classifier, convolutions
from ppr_core.models.hooks import watching
from ppr_core.runtime import autocast
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import snapshot


class FinePruning(Defense):
    """Prune the least active units while accuracy lasts, then fine-tune without them.

    Differs from the paper: the units are the inputs of the last linear layer, as in BackdoorBench;
    the channels of the last convolution are an option.

    Differs from the authors' code: BackdoorBench measures accuracy on the test set, lets the step
    stand that loses too much, and prunes one unit fewer than it counts.
    """

    version: ClassVar[int] = 2
    source: ClassVar[str] = "Liu et al. 2018, arXiv:1805.12185"
    needs: ClassVar[tuple[str, ...]] = ("linear",)
    privileges: ClassVar[str] = "none; with select oracle_c_acc: test C-Acc"

    where: Literal["linear_in", "last_conv"] = Field(
        "linear_in", description="units: inputs of the last linear layer, or the last convolution's"
    )
    step_share: float = Field(0.01, gt=0, le=1, description="units pruned at a time, share of all")
    max_loss: float = Field(0.1, ge=0, le=1, description="share of C-Acc that pruning may cost")
    select: Literal["validation", "oracle_c_acc"] = Field(
        "validation", description="images that C-Acc is measured on: held-out ones, or the test set"
    )
    schedule: Schedule = Field(BENCH, description="tuning after pruning")

    @property
    def oracle(self) -> bool:
        """Only where pruning stops by test accuracy."""
        return self.select == "oracle_c_acc"

    def needed(self) -> tuple[str, ...]:
        """Return the layer that is pruned."""
        return self.needs if self.where == "linear_in" else ("convolutions",)

    def run(
        self,
        model: Classifier,
        data: ImageSet,
        *,
        rng: torch.Generator,
        validation: ImageSet | None = None,
        score: Judge | None = None,
    ) -> Outcome:
        """Prune in steps, undo the one that costs too much, tune."""
        judge = self._judge(validation, score)
        order = self.activity(model, data).argsort()
        chunk, pruned, start = math.ceil(self.step_share * len(order)), 0, snapshot(model)
        floor = (1 - self.max_loss) * judge(model)
        for count in range(chunk, len(order), chunk):
            self.silence(model, order[:count])
            if judge(model) <= floor:
                break
            pruned = count
        model.load_state_dict(start)
        asleep = order[:pruned]
        self.silence(model, asleep)
        history = fit(
            model,
            data,
            self.schedule,
            rng=fork(rng, "tune"),
            after_step=lambda: self.silence(model, asleep),
            resume="tune",
        )
        return Outcome(model, history, {"pruned": pruned, "units": len(order)}, {"asleep": asleep})

    def activity(self, model: Classifier, data: ImageSet) -> Tensor:
        """Return each unit's mean activation over all images: of a channel, its magnitude."""
        layer, total = self._layer(model), torch.zeros((), device=data.device)

        def note(_: str, given: Tensor, output: Tensor) -> None:
            nonlocal total
            seen = given if self.where == "linear_in" else output.abs().mean((2, 3))
            total = total + seen.float().sum(0)

        with torch.no_grad(), evaluating(model), autocast(data.device), watching({"": layer}, note):
            for part in data.images.split(EVAL_BATCH):
                model(to_float(part))
        return total / len(data)

    @torch.no_grad()
    def silence(self, model: Classifier, units: Tensor) -> None:
        """Zero all weights of these units."""
        layer = self._layer(model)
        if self.where == "linear_in":
            layer.weight[:, units] = 0
            return
        layer.weight[units] = 0
        if layer.bias is not None:
            layer.bias[units] = 0

    def _layer(self, model: Classifier) -> nn.Linear | nn.Conv2d:
        return model.linear if self.where == "linear_in" else list(convolutions(model))[-1][1]

    def _judge(
        self, validation: ImageSet | None, score: Judge | None
    ) -> Callable[[Classifier], float]:
        if self.oracle:
            missing = "expected score= for select: oracle_c_acc, got none; set another rule"
            test = need(score, missing)
            return lambda model: test(model)["c_acc"]
        held = need_validation(validation, "the pruned share", "select: oracle_c_acc")
        return lambda model: clean_accuracy(model, held)
