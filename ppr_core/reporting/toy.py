"""Path-aware minimization in two dimensions: small enough to be seen, stepped by the real code.

A point (w1, w2) stands for all weights; the backdoored model W0 is the origin. The cross-entropies
are replaced by curves of the same form:

- reversed images (what the defender unlearns) cost much in the backdoor's basin and little outside;
- the clean task is a steep valley, noisy from batch to batch, along which the basin can be left;
- poisoned samples (what the attacker retunes on) cost little in the basin and much outside.

The defender's slope fades where the basin ends, so plain tuning stays close outside it, where a
few retuning steps lead back. SAM looks in the steepest direction, which is that of the noisy clean
task; PAM looks towards W0, where the slope has not faded. The shapes are our choice, made to show
the idea, and prove nothing; the steps are the package's own `path_gradient` and `sam_gradient`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ppr_core.defenses.pam import path_gradient
from ppr_core.sharpness import gradients_of, sam_gradient
from ppr_core.training.fit import Gradient, plain_gradient

EDGE = 1.0  # how far the backdoor's basin reaches from W0
WIDTH = 0.12  # over which its edge is soft
STEPS, RATE = 150, 0.04  # of the defense
RETUNING_STEPS, RETUNING_RATE = 40, 0.003  # of the attack: few and small
NOISE = 0.3  # of the clean task's optimum, from batch to batch
COLOURS = {"tuning": "#4a90d9", "SAM": "#e8850c", "PAM": "#123f8c"}


def left(weights: Tensor) -> Tensor:
    """Return how far points (..., 2) have come out of the basin, whose edge is curved."""
    w1, w2 = weights.unbind(-1)
    return w1 + 0.2 * w2.square()


def clean(weights: Tensor, noise: float = 0.0) -> Tensor:
    """Return the clean task's loss of points (..., 2): a valley along a bent line."""
    w1, w2 = weights.unbind(-1)
    return 2.0 * (w2 - 0.25 * torch.sin(1.5 * w1) - noise).square()


def defender(weights: Tensor, noise: float = 0.0) -> Tensor:
    """Return the defender's loss of points (..., 2): reversed images and the clean task."""
    return F.softplus((EDGE - left(weights)) / WIDTH) * WIDTH + clean(weights, noise)


def attacker(weights: Tensor, noise: float = 0.0) -> Tensor:
    """Return the attacker's loss of points (..., 2): poisoned samples and the clean task."""
    return F.softplus((left(weights) - EDGE) / WIDTH) + clean(weights, noise)


def success(weights: Tensor) -> Tensor:
    """Return the attack success rate (percent) of points (..., 2)."""
    return 100 * torch.sigmoid((EDGE - left(weights)) / (WIDTH / 3))


@dataclass(frozen=True)
class Walk:
    """What one defense does, and what the retuning attack makes of it.

    Attributes:
        tuned: points of the defense, (STEPS + 1, 2).
        retuned: points of the attack from its last one, (RETUNING_STEPS + 1, 2).
    """

    tuned: Tensor
    retuned: Tensor

    @property
    def o_asr(self) -> float:
        """ASR after the defense, percent."""
        return float(success(self.tuned[-1]))

    @property
    def p_asr(self) -> float:
        """ASR after the retuning attack, percent."""
        return float(success(self.retuned[-1]))


def walks(rho: float) -> dict[str, Walk]:
    """Purify the backdoored point by plain tuning, SAM and PAM, and retune what each leaves.

    Args:
        rho: length of SAM's and of PAM's step.
    """
    made = {}
    for name in COLOURS:
        weights = torch.zeros(2, requires_grad=True)
        gradients = {
            "tuning": plain_gradient,
            "SAM": sam_gradient([weights], rho) if rho else plain_gradient,
            "PAM": path_gradient([weights], rho),
        }
        tuned = _walk(weights, defender, gradients[name], STEPS, RATE)
        retuned = _walk(weights, attacker, plain_gradient, RETUNING_STEPS, RETUNING_RATE)
        made[name] = Walk(tuned, retuned)
    return made


def _walk(
    weights: Tensor, loss: Callable[..., Tensor], gradient: Gradient, steps: int, rate: float
) -> Tensor:
    points = [weights.detach().clone()]
    for step in range(steps):
        weights.grad = None
        gradient(partial(loss, weights, NOISE * (-1) ** step))
        with torch.no_grad():
            weights.sub_(rate * gradients_of([weights])[0])
        points.append(weights.detach().clone())
    return torch.stack(points)


def figure(rho: float = 0.6) -> Figure:
    """Draw the two losses with the steps of tuning, SAM and PAM, and of the attack on each."""
    made = walks(rho)
    figure, (here, there) = plt.subplots(1, 2, figsize=(11, 3.9), sharey=True)
    _landscape(here, defender, f"the defense, rho {rho:g}: loss of clean and reversed images")
    _landscape(there, attacker, "then retuning: loss of clean and poisoned samples")
    for name, walk in made.items():
        _trace(here, walk.tuned, COLOURS[name], f"{name}: ASR {walk.o_asr:.0f} %")
        rise = f"{name}: ASR {walk.o_asr:.0f} to {walk.p_asr:.0f} %"
        _trace(there, walk.retuned, COLOURS[name], rise)
    for axes in (here, there):
        axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
    figure.tight_layout()
    plt.close(figure)  # it is shown by being returned, once
    return figure


def _landscape(axes: Axes, loss: Callable[[Tensor], Tensor], title: str) -> None:
    w1, w2 = torch.linspace(-0.4, 2.6, 121), torch.linspace(-0.8, 1.0, 91)
    grid = torch.stack(torch.meshgrid(w1, w2, indexing="xy"), -1)
    axes.contourf(w1, w2, loss(grid).log1p(), levels=24, cmap="Greys", alpha=0.6)
    axes.contour(w1, w2, left(grid), levels=[EDGE], colors="#c0392b", linestyles="--")
    axes.plot(0, 0, marker="*", color="#c0392b", markersize=12)
    axes.annotate("$W_0$, backdoored", (0, 0), xytext=(-0.35, -0.2), color="#c0392b", fontsize=9)
    axes.annotate("edge of the backdoor's basin", (0.9, 0.85), color="#c0392b", fontsize=8)
    axes.set(title=title, xlabel="$w_1$", ylabel="$w_2$", aspect="equal")


def _trace(axes: Axes, points: Tensor, colour: str, text: str) -> None:
    axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.2, alpha=0.8)
    axes.plot(*points[-1], marker="o", color=colour, label=text)
