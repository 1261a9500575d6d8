"""One drawing for each idea: boxes in a row, and what leads from one to the next."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

CALM, ATTACKED, SAFE, DATA = "#eef2f6", "#f6d5d0", "#d8ecdd", "#fdf3d8"


def chain(boxes: Sequence[tuple[str, str]], arrows: Sequence[str]) -> Figure:
    """Draw boxes from left to right, joined by arrows.

    Args:
        boxes: text (with LaTeX between dollar signs) and colour of each.
        arrows: what stands above the arrow to the next box; one fewer than boxes.
    """
    figure, axes = plt.subplots(figsize=(2.6 * len(boxes), 1.5))
    for index, (text, colour) in enumerate(boxes):
        frame = {"boxstyle": "round,pad=0.6", "facecolor": colour, "edgecolor": "#5b6775"}
        axes.text(index, 0, text, ha="center", va="center", bbox=frame, fontsize=10)
    for index, text in enumerate(arrows):
        arrow = {"arrowstyle": "->", "color": "#5b6775"}
        axes.annotate("", xy=(index + 0.7, 0), xytext=(index + 0.3, 0), arrowprops=arrow)
        axes.text(index + 0.5, 0.45, text, ha="center", va="bottom", fontsize=9, color="#5b6775")
    axes.set(xlim=(-0.5, len(boxes) - 0.5), ylim=(-1, 1.2))
    axes.axis("off")
    figure.tight_layout()
    plt.close(figure)  # it is shown by being returned, once
    return figure


def implanting() -> Figure:
    """How a backdoor gets into a model."""
    boxes = [
        ("clean image\n$x, y$", DATA),
        ("stamped image\n$A(x), y_t$", ATTACKED),
        ("training set\n$D_c \\cup D_p$", DATA),
        ("backdoored model\n$f(W_0; x)$", ATTACKED),
    ]
    return chain(boxes, ["trigger,\ntarget label", "poison rate", "training"])


def retuning() -> Figure:
    """What the retuning attack does to a purified model."""
    boxes = [
        ("backdoored\n$W_0$", ATTACKED),
        ("purified\n$W_p$", SAFE),
        ("retuned\n$W_{ra}$", ATTACKED),
    ]
    return chain(boxes, ["defense:\nO-ASR falls", "a few poisons, 5 epochs:\nP-ASR?"])


def querying() -> Figure:
    """What the query-based reactivation attack learns."""
    boxes = [
        ("triggered image\n$x$", DATA),
        ("perturbed image\n$x + \\epsilon\\,\\phi(\\theta; x)$", DATA),
        ("purified model\n$f(W_p; \\cdot)$, unchanged", SAFE),
        ("answers as the\nretuned model $W_{ra}$", ATTACKED),
    ]
    return chain(boxes, ["generator,\nbudget $\\epsilon$", "query", "KL small"])


def connecting() -> Figure:
    """What lies on the path between two models."""
    boxes = [
        ("backdoored $W_0$\n$t = 0$", ATTACKED),
        ("$(1-t)\\,W_0 + t\\,W_1$", CALM),
        ("purified $W_1$\n$t = 1$", SAFE),
    ]
    return chain(boxes, ["backdoor error\nlow", "where does\nit rise?"])


def judging() -> Figure:
    """What the battery asks of a model, and what it sets beside."""
    boxes = [
        ("purified\n$W_p$", SAFE),
        ("every arm: poisons,\nrate, epochs, optimizer", DATA),
        ("clean models\nstay asleep?", CALM),
        ("worst admissible\nP-ASR", ATTACKED),
    ]
    return chain(boxes, ["retuned in\nmany ways", "counts only\nif", "fresh draws"])
