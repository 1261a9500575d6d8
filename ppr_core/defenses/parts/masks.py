"""Masks on batch-norm channels: learnt, sorted, and used to prune; shared by ANP and RNP."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.defenses.parts.selection import need_validation
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.metrics import clean_accuracy
from ppr_core.models.base import batch_norms, clone
from ppr_core.runtime import Record
from ppr_core.weights import snapshot

Judge = Callable[[nn.Module], Record]

UNREADY = (
    "unready masks: no threshold tried keeps the accuracy, so that nothing was pruned; use more "
    "steps, lower thresholds or a wider c_acc_drop"
)


class Masks:
    """One mask a batch-norm channel, all layers end to end in one vector.

    Attributes:
        values: (channels,) leaf tensor, 1 at first; scales each channel's gamma.
        noise: (2, channels) or None; row 0 is added to the masks, beta is scaled by 1 + row 1.
        names: the layers, in module order.
        sizes: their channels.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = dict(_maskable(model))
        self.names = list(layers)
        self.sizes = [layer.num_features for layer in layers.values()]
        device = next(model.parameters()).device
        self.values = torch.ones(sum(self.sizes), device=device, requires_grad=True)
        self.noise: Tensor | None = None

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Put the masks on a model whose own weights are fixed meanwhile; then take them off."""
        layers = dict(_maskable(model))
        stops = torch.tensor(self.sizes).cumsum(0).tolist()
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        model.requires_grad_(False)
        try:
            for (name, layer), size, stop in zip(layers.items(), self.sizes, stops, strict=True):
                _put(model, name, _Masked(layer, self, slice(stop - size, stop)))
            yield
        finally:
            for name, layer in layers.items():
                _put(model, name, layer)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the masks in [0, 1]."""
        self.values.clamp_(0, 1)

    def by_layer(self) -> dict[str, Tensor]:
        """Return each layer's masks by the layer's name."""
        parts = self.values.detach().clone().split(self.sizes)
        return dict(zip(self.names, parts, strict=True))


class _Masked(nn.Module):
    """A batch-norm layer seen through masks; its own parameters and buffers stay as they are."""

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm, masks: Masks, part: slice) -> None:
        super().__init__()
        self.layer, self.masks, self.part = layer, masks, part

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, by batch statistics in train mode, and scale by mask and noise."""
        layer, mask = self.layer, self.masks.values[self.part]
        weight, bias = layer.weight * mask, layer.bias
        if self.masks.noise is not None:
            scale, shift = self.masks.noise[:, self.part]
            weight, bias = layer.weight * (mask + scale), layer.bias * (1 + shift)
        tracked = layer.running_mean is not None and not layer.training
        mean, var = (layer.running_mean, layer.running_var) if tracked else (None, None)
        # Statistics are not tracked: of all that is learnt here, only the masks are used.
        return F.batch_norm(images, mean, var, weight, bias, not tracked, 0.0, layer.eps)


def _maskable(model: nn.Module) -> Iterator[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    return ((name, layer) for name, layer in batch_norms(model) if layer.affine)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def prune(model: nn.Module, masks: Mapping[str, Tensor], threshold: float) -> int:
    """Set gamma to zero where the mask is at most the threshold; return how many channels.

    Beta and the statistics stay as they are. A larger threshold prunes the same channels and more.

    Args:
        model: changed in place.
        masks: one tensor a batch-norm layer, by the layer's name.
        threshold: in [0, 1]; below 0 nothing is pruned.
    """
    count, layers = 0, dict(_maskable(model))
    with torch.no_grad():
        for name, mask in masks.items():
            weak = mask.to(layers[name].weight.device) <= threshold
            layers[name].weight[weak] = 0
            count += int(weak.sum())
    return count


class MaskPruning(Defense):
    """Learn masks, then prune the channels whose mask is small. Subclasses write `learn`.

    Differs from the paper: it reports the threshold that is best on the test set, ASR included, as
    BackdoorBench chooses it; that oracle is an option here, and validation C-Acc decides.
    """

    version: ClassVar[int] = 2
    privileges: ClassVar[str] = "none; with select oracle_asr: test ASR and C-Acc"
    needs: ClassVar[tuple[str, ...]] = ("batch norm",)

    select: Literal["max_tau_under_val_drop", "oracle_asr", "fixed"] = Field(
        "max_tau_under_val_drop",
        description="threshold: the largest that costs little validation C-Acc; the one of least "
        "test ASR that costs little test C-Acc (oracle); tau",
    )
    tau: float = Field(0.7, ge=0, le=1, description="threshold, where select is fixed")
    tau_grid: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [round(0.4 + 0.05 * i, 2) for i in range(11)], min_length=1, description="thresholds tried"
    )
    c_acc_drop: float = Field(
        2.0, ge=0, description="validation accuracy that pruning may cost, percentage points"
    )
    max_loss: float = Field(0.1, ge=0, description="oracle: share of test C-Acc that may be lost")

    @property
    def oracle(self) -> bool:
        """Only where the threshold is chosen by what it does to the test ASR."""
        return self.select == "oracle_asr"

    def learn(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Masks:
        """Learn the masks of a model that may be changed."""
        raise NotImplementedError(f"{type(self).__name__}.learn")

    def preparation(self) -> dict[str, Any]:
        """Return the settings that the masks depend on: all but those of the threshold."""
        return {
            "masks": type(self).__name__,
            "version": self.version,
            **self.model_dump(mode="json", exclude=set(MaskPruning.model_fields)),
        }

    def prepare(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Learn the masks, which every threshold shares; the model is left alone."""
        self.check(model, data)
        return self.learn(clone(model), data, rng=fork(rng, "masks")).by_layer()

    def run(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        rng: torch.Generator,
        state: Mapping[str, Tensor] | None = None,
        validation: ImageSet | None = None,
        score: Judge | None = None,
    ) -> Outcome:
        """Prune at the threshold that the rule chooses."""
        judge = self._judge(validation, score)
        masks = dict(state or self.prepare(model, data, rng=rng))
        tau, info = self.tau, dict[str, Any]()
        if judge:
            rows = try_thresholds(model, masks, self.tau_grid, judge)
            tau, info = self._choose(rows), {"sweep": rows}
            if tau < 0:
                info["warnings"] = [UNREADY]
        pruned = prune(model, masks, tau)
        info |= {"tau": tau, "pruned": pruned, "channels": sum(map(len, masks.values()))}
        return Outcome(model, [], info, {f"mask.{name}": mask for name, mask in masks.items()})

    def _judge(self, validation: ImageSet | None, score: Judge | None) -> Judge | None:
        """Return what a pruned model is judged by; None where the threshold is fixed."""
        if self.select == "fixed":
            return None
        if self.oracle:
            return need(score, "expected score= for select: oracle_asr, got none; set another rule")
        held = need_validation(validation, "tau", "select: fixed")
        return lambda model: {"val_c_acc": clean_accuracy(model, held)}

    def _choose(self, rows: list[Record]) -> float:
        """Return the threshold of the best row; the first one prunes nothing."""
        accuracy = "c_acc" if self.oracle else "val_c_acc"
        first = rows[0][accuracy]
        lost = self.max_loss * first if self.oracle else self.c_acc_drop
        kept = [row for row in rows if first - row[accuracy] <= lost]
        return (min(kept, key=lambda row: row["asr"]) if self.oracle else kept[-1])["tau"]


def try_thresholds(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    taus: Iterable[float],
    judge: Judge,
) -> list[Record]:
    """Return one row a threshold, in rising order: tau, channels pruned, what `judge` says.

    The first row, tau -1, is the model as it is. Afterwards the model is as it was.
    """
    start, rows = snapshot(model), []
    for tau in (-1.0, *sorted(taus)):
        pruned = prune(model, masks, tau)
        rows.append({"tau": tau, "pruned": pruned, **judge(model)})
        model.load_state_dict(start)
    return rows
