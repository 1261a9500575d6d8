"""The cells of the reactivation battery: one tuning each, over data that they share."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Strict
from torch import Tensor, nn

from ppr_core.config import Field, Settings
from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import ConfigError
from ppr_core.method import fork
from ppr_core.metrics import EVAL_BATCH, attack_success_rate, clean_accuracy, evaluating
from ppr_core.models.base import batch_norms, clone
from ppr_core.reactivation.retuning import Retuning
from ppr_core.runtime import autocast
from ppr_core.training.fit import fit
from ppr_core.weights import recalibrate

# A pair that comes back from JSON, which has no tuples: (epochs, ASR), (poisons, ASR).
Point = Annotated[tuple[int, float | None], Strict(False)]
BatchNorm = Literal["kept", "recalibrated", "frozen"]


class Setting(Settings):
    """What one tuning of the battery is; equal settings see equal samples in an equal order."""

    poisons: int = Field(0, ge=0, description="poisoned samples")
    factor: float = Field(1.0, ge=0, description="learning rate, times the optimizer's own")
    epochs: int = Field(5, ge=0, description="passes over the samples; 0: the model as it came")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="update rule")
    batch_norm: BatchNorm = Field(
        "kept", description="statistics: as they are, taken anew before the tuning, or not updated"
    )
    trigger: Literal["exact", "weak"] = Field("exact", description="on the poisons tuned on")
    draw: int = Field(0, ge=0, description="number of the draw of samples and order")

    @property
    def place(self) -> "Setting":
        """The same setting, whatever the draw."""
        return self.replace(draw=0)

    def __str__(self) -> str:
        words = [f"{self.poisons} poisons", f"{self.optimizer} x{self.factor:g}"]
        words += [f"{self.epochs} epochs"]
        words += [f"batch norm {self.batch_norm}"] if self.batch_norm != "kept" else []
        return ", ".join(words + (["weak trigger"] if self.trigger != "exact" else []))


class Cell(Settings):
    """What a model was after one setting.

    Without numbers where the tuning diverged, or was left out because it implants.
    """

    arm: str = Field(description="start, relearn, count, strength, batch norm, trigger or fresh")
    setting: Setting = Field(description="the tuning")
    p_asr: float | None = Field(None, description="ASR after it, percent")
    c_acc: float | None = Field(None, description="clean accuracy after it, percent")
    moved: float | None = Field(
        None, description="change of a weight tensor over its norm: the lower quartile of all"
    )
    curve: list[Point] = Field([], description="(epochs, ASR) on the way")
    admissible: bool | None = Field(None, description="no clean model wakes; none: not to be known")


def dump(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return cells as JSON values."""
    return [cell.model_dump(mode="json") for cell in cells]


def load(values: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Return the cells that `dump` wrote."""
    return [Cell.model_validate_json(json.dumps(value)) for value in values]


class Bench:
    """What all models that are examined under one attack and seed share: samples and test images.

    Args:
        tuning: a setting's stand-alone RA.
        data: the clean training images that the attacker draws from.
        poisons: stamped training images, labelled with the target.
        weak: the same images under the weakened trigger; None where there are none.
        test: clean test images.
        stamped: `metrics.triggered` test images.
        rng: its seed decides every draw, for every model.
    """

    def __init__(
        self,
        tuning: Callable[[Setting], Retuning],
        *,
        data: ImageSet,
        poisons: ImageSet,
        weak: ImageSet | None,
        test: ImageSet,
        stamped: ImageSet,
        rng: torch.Generator,
    ) -> None:
        self.tuning, self.data, self.test, self.stamped = tuning, data, test, stamped
        self.pools = {"exact": poisons, "weak": weak}
        self._rng = rng
        self._mixtures: dict[Setting, ImageSet] = {}

    def stream(self, draw: int) -> torch.Generator:
        """Return the generator of a draw: the `rng` of the stand-alone RA that equals a cell."""
        return fork(self._rng, "battery", draw)

    def samples(self, setting: Setting) -> ImageSet:
        """Return the samples of a setting, made once for all models, rates and optimizers."""
        same = Setting(poisons=setting.poisons, trigger=setting.trigger, draw=setting.draw)
        if same not in self._mixtures:
            pool = self.pools[setting.trigger]
            if pool is None:
                raise ConfigError("expected the poisons' images without trigger for a weak one")
            mixture, _ = self.tuning(same).mixture(self.data, pool, self.stream(setting.draw))
            self._mixtures[same] = mixture
        return self._mixtures[same]

    def start(self, model: nn.Module) -> Cell:
        """Measure a model as it came."""
        return Cell(arm="start", setting=Setting(epochs=0), **self._rates(model))

    def run(
        self, model: nn.Module, arm: str, setting: Setting, epochs: Sequence[int]
    ) -> list[Cell]:
        """Tune a copy of a model once; return a cell for each of the numbers of epochs.

        The rate is constant, so that the model after 5 of 20 epochs is that of a run of 5.
        """
        last, cells = max(epochs), list[Cell]()
        tuning, samples = self.tuning(setting.replace(epochs=last)), self.samples(setting)
        copy, stream = clone(model), self.stream(setting.draw)
        if setting.batch_norm == "recalibrated":
            _recalibrate(copy, samples.subset(torch.arange(len(samples) - setting.poisons)))
        before = [weight.detach().clone() for weight in _weights(copy)]
        per_epoch, step = tuning.schedule.epoch_steps(len(samples)), 0

        def watch() -> None:
            nonlocal step
            step += 1
            epoch, rest = divmod(step, per_epoch)
            if rest or epoch not in epochs:
                return
            rates = self._rates(copy) | {"moved": _moved(before, _weights(copy))}
            curve = [*(cells[-1].curve if cells else []), (epoch, rates["p_asr"])]
            reached = setting.replace(epochs=epoch)
            cells.append(Cell(arm=arm, setting=reached, curve=curve, **rates))

        plain = {"crop": 0, "flip": False} if tuning.frozen else {}
        try:
            fit(
                copy,
                samples,
                tuning.schedule.replace(**plain),
                rng=fork(stream, "shuffle"),
                after_step=watch,
                train_mode=setting.batch_norm != "frozen",
            )
        except ConfigError:
            if _finite(copy):
                raise
        void = [Cell(arm=arm, setting=setting.replace(epochs=e)) for e in epochs[len(cells) :]]
        return cells + void

    def _rates(self, model: nn.Module) -> dict[str, Any]:
        """Return P-ASR and C-Acc; none of a diverged model, whose first class is no answer."""
        if _finite(model):
            with contextlib.suppress(ConfigError):  # of logits that are NaN
                p_asr = attack_success_rate(model, self.stamped)
                return {"p_asr": p_asr, "c_acc": clean_accuracy(model, self.test)}
        return {"p_asr": None, "c_acc": None}


def weakened(stamped: ImageSet, originals: Tensor, strength: float) -> ImageSet:
    """Return poisons whose trigger has a share of its strength: pixels between both images'."""
    first, last = originals.float(), stamped.images.float()
    return stamped.with_images(torch.lerp(first, last, strength).round().to(torch.uint8))


def _weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of layers; batch norm's and biases have one dimension."""
    return [weight for weight in model.parameters() if weight.ndim > 1]


@torch.no_grad()
def _moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    pairs = zip(before, after, strict=True)
    shares = [(new - old).norm() / old.norm().clamp_min(1e-12) for old, new in pairs]
    share = float(torch.stack(shares).float().quantile(0.25)) if shares else 0.0
    return share if share == share else None


def _finite(model: nn.Module) -> bool:
    tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _recalibrate(model: nn.Module, clean: ImageSet) -> None:
    """Take batch-norm statistics anew on clean samples."""

    def passes() -> None:
        with autocast(clean.device):
            for part in clean.images.split(EVAL_BATCH):
                model(to_float(part))

    if any(True for _ in batch_norms(model)):
        with evaluating(model):
            recalibrate(model, passes)
