"""LMC: the errors of a model along the straight line between two sets of weights."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ppr_core.config import Field, Settings
from ppr_core.curves import bezier, recalibrated
from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import DataError, need
from ppr_core.metrics import EVAL_BATCH, eval_batch, evaluating, hit_rate
from ppr_core.runtime import Record, autocast, in_bf16
from ppr_core.weights import State, check_same_shapes, distance, interpolate

BatchNorm = Literal["interpolate", "recalibrate", "endpoint"]

ASLEEP = 20.0  # ASR (percent) up to which a backdoor counts as asleep
STATISTICS = ("running_mean", "running_var")


class Line(Settings):
    """How a path between two models is sampled."""

    source: ClassVar[str] = "Min et al. 2024, arXiv:2410.09838, sec. 4.1"

    points: int = Field(21, ge=2, description="positions on the path, both ends included")
    batch_norm: list[BatchNorm] = Field(
        ["interpolate", "recalibrate"], description="how batch-norm statistics are set"
    )
    asleep: float = Field(ASLEEP, ge=0, le=100, description="ASR (percent) of a sleeping backdoor")


@dataclass(frozen=True)
class Path:
    """Errors along (1 - t) * start + t * end.

    Attributes:
        t: positions, from 0 to 1, evenly spaced.
        backdoor_error: 100 - ASR there, percent.
        clean_error: 100 - C-Acc there, percent.
        distance: L2 distance of the end points over all parameters.
        batch_norm: how batch-norm statistics were set.
    """

    t: list[float]
    backdoor_error: list[float]
    clean_error: list[float]
    distance: float
    batch_norm: BatchNorm

    @property
    def backdoor_barrier(self) -> float:
        """Largest rise of the backdoor error above the chord, percentage points."""
        return barrier(self.t, self.backdoor_error)

    @property
    def clean_barrier(self) -> float:
        """Largest rise of the clean error above the chord, percentage points."""
        return barrier(self.t, self.clean_error)

    def t_star(self, asleep: float = ASLEEP) -> float:
        """Return t*(q): the smallest t from which ASR stays at q percent or below; nan if none."""
        found = math.nan
        for t, error in zip(reversed(self.t), reversed(self.backdoor_error), strict=True):
            if 100 - error > asleep:
                break
            found = t
        return found

    def path_distance(self, asleep: float = ASLEEP) -> float:
        """Return how far from the end, in L2, one can go towards the start with ASR at most q.

        It tells models that are far along the path from models that are merely far: 0 where the
        end itself has a higher ASR.
        """
        t = self.t_star(asleep)
        return 0.0 if math.isnan(t) else (1 - t) * self.distance

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a point: t, backdoor_error, clean_error, batch_norm."""
        points = zip(self.t, self.backdoor_error, self.clean_error, strict=True)
        return [
            {"t": t, "backdoor_error": b, "clean_error": c, "batch_norm": self.batch_norm}
            for t, b, c in points
        ]

    def summary(self, asleep: float = ASLEEP) -> Record:
        """Return the path's figures for one row of a table."""
        return {
            "backdoor_barrier": self.backdoor_barrier,
            "clean_barrier": self.clean_barrier,
            "t_star": self.t_star(asleep),
            "distance": self.distance,
            "path_distance": self.path_distance(asleep),
        }


def barrier(t: Sequence[float], error: Sequence[float]) -> float:
    """Return the largest rise of an error above the chord between its ends; 0 or above.

    Source: Frankle et al. 2020, arXiv:1912.05671, sec. 2, the chord replacing the ends' mean.
    """
    chord = ((1 - at) * error[0] + at * error[-1] for at in t)
    return max(0.0, *(value - line for value, line in zip(error, chord, strict=True)))


def path(
    model: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    *,
    test: ImageSet,
    stamped: ImageSet,
    points: int = 21,
    batch_norm: BatchNorm = "interpolate",
    tune: ImageSet | None = None,
    together: int | None = None,
    middle: Mapping[str, Tensor] | None = None,
) -> Path:
    """Evaluate the models on the path between two sets of weights, a straight line or a curve.

    Both end points are evaluated exactly as `metrics.evaluate` does. The points between are, on
    CUDA, evaluated in one vectorised pass, or in as many as the memory asks for; on a CPU one by
    one, for grouped convolutions are several times slower there than plain ones; in fp32 also.

    Source: Min et al. 2024, arXiv:2410.09838, sec. 4.1, whose grid and batch norm are not stated.

    Args:
        model: of the architecture; left as it is.
        start: weights at t = 0: in the paper's main plot the backdoored model's.
        end: weights at t = 1: a purified model's.
        test: clean test images, on the model's device.
        stamped: `metrics.triggered` test images.
        points: number of positions, both ends included.
        batch_norm: its running statistics: interpolated like weights; recalibrated at every
            point, the ends included; or those of the end (the start keeps its own).
        tune: clean images to recalibrate on.
        together: points in one pass.
        middle: weights that bend the path towards them (`curves.bezier`); none: a line.

    Raises:
        CheckpointError: the two sets do not fit the model.
        ConfigError: fewer than two points, or no images to recalibrate on.
        DataError: no images to evaluate on.
    """
    need(points >= 2, f"expected at least 2 points, got {points}")
    need(len(test) and len(stamped), "expected images to evaluate on, got none", DataError)
    start, end = ({n: t.to(test.device) for n, t in state.items()} for state in (start, end))
    for state in (start, end):
        check_same_shapes(state, model.state_dict())
    how: dict[str, Any] = {"batch_norm": batch_norm, "tune": tune}
    how["middle"] = middle and {n: t.to(test.device) for n, t in middle.items()}
    positions = [index / (points - 1) for index in range(points)]
    size = together or _together(points, test.device)
    inner = [positions[i : min(i + size, points - 1)] for i in range(1, points - 1, size)]
    errors = []
    for group in ([0.0], *inner, [1.0]):
        states = [point(model, start, end, t, **how) for t in group]
        errors.append(_errors(model, states, (stamped, test)))
    backdoor, clean = torch.cat(errors, 1).tolist()
    names = [name for name, _ in model.named_parameters()]
    return Path(positions, backdoor, clean, distance(start, end, names), batch_norm)


def _together(points: int, device: torch.device) -> int:
    """Return how many points one pass evaluates."""
    # In fp32 batch norm is cuDNN's, whose choice of a memory format torch cannot vectorise.
    return points if device.type == "cuda" and in_bf16(device) else 1


def point(
    model: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    t: float,
    *,
    batch_norm: BatchNorm = "interpolate",
    tune: ImageSet | None = None,
    middle: Mapping[str, Tensor] | None = None,
) -> State:
    """Return the weights at one position of the path, batch-norm statistics included.

    Args:
        model: of the architecture; left as it is.
        start: weights at t = 0.
        end: weights at t = 1, on the same device.
        t: position, from 0 to 1.
        batch_norm: as in `path`.
        tune: clean images to recalibrate on.
        middle: as in `path`.

    Raises:
        CheckpointError: the two sets differ in names or shapes.
        ConfigError: no images to recalibrate on.
    """
    state = bezier(start, middle, end, t) if middle else interpolate(start, end, t)
    if batch_norm == "endpoint" and t > 0:
        return {n: end[n].clone() if n.endswith(STATISTICS) else v for n, v in state.items()}
    if batch_norm == "recalibrate":
        clean = need(tune, "expected clean images to recalibrate on, got none")
        return recalibrated(model, state, clean)
    return state


@torch.no_grad()
def _errors(model: nn.Module, states: list[State], sets: Sequence[ImageSet]) -> Tensor:
    """Return the errors, percent: (sets, states); in halves where the memory does not suffice."""
    together = len(states) > 1
    stacked = {n: torch.stack([s[n] for s in states]) for n in states[0]} if together else states[0]

    def classes(state: State, pixels: Tensor) -> Tensor:
        return functional_call(model, state, (pixels,)).float().argmax(-1)

    forward = vmap(classes, in_dims=(0, None)) if together else classes
    try:
        with evaluating(model), warnings.catch_warnings():
            # One operation of the pooling, on a few numbers, is not vectorised: torch says so.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            # One state alone sees the batches of `metrics.evaluate`, so that both agree exactly.
            size = EVAL_BATCH if together else eval_batch(sets[0].device)
            rates = [_hits(forward, stacked, images, size) for images in sets]
        return 100 - torch.stack(rates).view(len(sets), len(states))
    except torch.OutOfMemoryError:
        if not together:
            raise
    del stacked
    half = len(states) // 2
    return torch.cat([_errors(model, part, sets) for part in (states[:half], states[half:])], 1)


def _hits(
    forward: Callable[[State, Tensor], Tensor], state: State, images: ImageSet, size: int
) -> Tensor:
    with autocast(images.device):
        parts = [forward(state, to_float(part)) for part in images.images.split(size)]
    return hit_rate(torch.cat(parts, -1), images.labels)
