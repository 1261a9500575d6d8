"""Whether a model that was read from a file does what its maker says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ppr_core.config import from_registry
from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import CheckpointError, need
from ppr_core.metrics import clean_accuracy
from ppr_core.models import MODELS
from ppr_core.models.base import CIFAR_STATS, IMAGENET_STATS, Network, Normalise, Stats
from ppr_core.models.nearest import fitting, proposal
from ppr_core.weights import matched, stats_names

# How far a model read from a file may be from what its maker reports, percentage points.
TOLERANCE = {"c_acc": 1.0, "asr": 2.0}
ABOVE_CHANCE = 0.25  # of the way from chance to 100 %: below it a model has not learnt its task
TRIED = 200  # test images on which another architecture or normalisation is tried
BETTER = 5.0  # points of C-Acc by which one must do better to be named


def least_c_acc(num_classes: int) -> float:
    """Return the C-Acc, percent, below which a model has not learnt its task."""
    chance = 100 / num_classes
    return chance + ABOVE_CHANCE * (100 - chance)


def need_behaviour(
    found: Mapping[str, float],
    num_classes: int,
    *,
    c_acc: float | None = None,
    asr: float | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise CheckpointError where a model read from a file does not do what it should.

    Names and shapes of weights do not tell pooling, normalisation, or the order of classes; only
    the answers do.

    Args:
        found: {"c_acc", "asr"}, percent, as measured here; asr may be missing.
        num_classes: of the data.
        c_acc: what its maker reports, percent; none: it must be well above chance.
        asr: likewise; none: anything goes.
        state: its weights, to name the architectures that they fit.
    """
    chance, least = 100 / num_classes, least_c_acc(num_classes)
    fits = f"; by names and shapes, the file {proposal(MODELS, state)}" if state else ""
    hint = f"{fits}; check architecture, mean and std, and the order of classes"
    if c_acc is None:
        need(
            found["c_acc"] >= least,
            f"expected a C-Acc of {least:.1f} or more (chance is {chance:.1f}), got "
            f"{found['c_acc']:.1f}{hint}",
            CheckpointError,
        )
    for name, wanted, told in (("c_acc", c_acc, "C-Acc"), ("asr", asr, "ASR")):
        if wanted is not None:
            got, within = found.get(name, float("nan")), TOLERANCE[name]
            need(
                abs(got - wanted) <= within,
                f"expected {told} {wanted:g} within {within:g} points, got {got:.1f}{hint}",
                CheckpointError,
            )


def other_normalisation(model: nn.Module, data: ImageSet) -> str:
    """Return a sentence where a model does better with another normalisation; else nothing.

    Args:
        model: of whatever normalisation; left as it is.
        data: labelled test images; a few hundred of them are taken.
    """
    if not isinstance(model, Network):
        return ""
    data, own = data.spread(TRIED), model.normalise
    found = {}
    try:
        first = clean_accuracy(model, data)
        for name, stats in _stats(data).items():
            model.normalise = Normalise(*stats).to(data.device)
            found[name] = clean_accuracy(model, data)
    finally:
        model.normalise = own
    best = max(found, key=found.__getitem__)
    if found[best] < first + BETTER:
        return ""
    mean, std = (",".join(f"{value:.4g}" for value in part) for part in _stats(data)[best])
    return (
        f"On {len(data)} images, C-Acc is {first:.1f} % with the normalisation that was set, and "
        f"{found[best]:.1f} % with {best}: --mean {mean} --std {std}?"
    )


def _stats(data: ImageSet) -> dict[str, Stats]:
    """Return the normalisations that are common, and the one of the data."""
    channels = data.images.shape[1]
    pixels = to_float(data.images)
    own = (pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).clamp_min(1e-3).tolist())
    common: dict[str, Stats] = {
        "that of these images": own,
        "pixels as they are": ([0.0] * 3, [1.0] * 3),
    }
    common |= {"pixels in [-1, 1]": ([0.5] * 3, [0.5] * 3)}
    common |= {"that of CIFAR-10": CIFAR_STATS, "that of ImageNet": IMAGENET_STATS}
    return {name: stats for name, stats in common.items() if len(stats[0]) == channels}


class Tried(NamedTuple):
    """An architecture that weights fit by names and shapes, and what it makes of them.

    Attributes:
        name: for people.
        spec: for `models.build`.
        c_acc: on a few hundred images, percent.
    """

    name: str
    spec: dict[str, Any]
    c_acc: float


def alternatives(state: Mapping[str, Tensor], data: ImageSet, path: Path) -> list[Tried]:
    """Return the architectures that weights fit by names and shapes, the best C-Acc first.

    Args:
        state: the weights, under any names.
        data: labelled test images; a few hundred of them are taken.
        path: where the weights come from, for messages.
    """
    found: list[Tried] = []
    data, pair = data.spread(TRIED), stats_names(state) or ()
    state = {name: tensor for name, tensor in state.items() if name not in pair}
    for fit in fitting(MODELS, state):
        if fit.odd:
            break  # they stand in order
        spec = {"name": fit.name, **fit.settings}
        if "pretrained" in MODELS[fit.name].model_fields:
            spec["pretrained"] = False
        model = from_registry(MODELS, spec, "model").build(data.num_classes, seed=0)
        try:
            model.load_state_dict(matched(state, model, path))
        except CheckpointError:  # such as one of other classes than the data have
            continue
        c_acc = clean_accuracy(model.to(data.device).eval(), data)
        found.append(Tried(str(fit), spec, c_acc))
    return sorted(found, key=lambda tried: tried.c_acc, reverse=True)
