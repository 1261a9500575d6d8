"""What stages cost, before they are computed: estimates of time and of disk space."""

from collections.abc import Iterable, Mapping

import torch

from ppr_core.defenses.sources.inversion import Inversion
from ppr_core.defenses.sources.unet import UNet
from ppr_core.lab.desk import droppable
from ppr_core.lab.engine import weight
from ppr_core.lab.graph import Stage
from ppr_core.lab.series import Images
from ppr_core.reactivation.query import Query

FLOAT = 4  # bytes
SAVED = 3  # numbers kept for a weight of an inversion's generator: itself and two of its optimizer
MODELS = ("clean", "backdoored", "purified", "retuned")  # stages that leave a classifier behind


def hours(
    stages: Iterable[Stage], image_us: Mapping[str, float], images: Mapping[str, Images]
) -> float | None:
    """Estimate the time of stages, by the images that each steps over; None where none is known.

    Args:
        stages: to be computed.
        image_us: model -> microseconds of a training step for an image.
        images: data set -> how many it has.
    """
    total = 0.0
    for stage in stages:
        cost = image_us.get(stage.setting.study.model["name"])
        if cost is None:
            return None
        total += weight(stage, _count(stage, images)) * 1000 * cost / 3.6e9
    return total


def gigabytes(stages: Iterable[Stage], images: Mapping[str, Images], *, needed: bool) -> float:
    """Estimate the disk space of what stages leave behind.

    Args:
        stages: of the studies.
        images: data set -> their side.
        needed: leave out what is dropped where studies keep only what is needed.
    """
    kept = [stage for stage in stages if not (needed and droppable(stage))]
    models: dict[str, int] = {}
    total = 0
    for stage in kept:
        if stage.kind in MODELS:
            name = repr(stage.setting.model)
            if name not in models:
                state = stage.setting.model.skeleton(10).state_dict()
                models[name] = sum(tensor.numel() for tensor in state.values())
            total += models[name]
        elif isinstance(stage.method, Query):
            pixels = 3 * _of(stage, images).side ** 2
            width, depth = stage.method.width, stage.method.depth
            total += width * (2 * pixels + (depth - 1) * width)
        elif isinstance(source := getattr(stage.method, "inversion", None), Inversion):
            with torch.device("meta"):
                generator = UNet(source.width)
            total += SAVED * sum(weights.numel() for weights in generator.parameters())
    return total * FLOAT / 1e9


def _count(stage: Stage, images: Mapping[str, Images]) -> int:
    return getattr(stage.setting.dataset, "train", None) or _of(stage, images).count


def _of(stage: Stage, images: Mapping[str, Images]) -> Images:
    return images.get(stage.setting.study.dataset["name"], Images())
