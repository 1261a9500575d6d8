"""Images, their triggered versions, and the difference."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ppr_core.reporting.plots.base import new_figure

SHOWN = 0.98  # share of the differences that a gallery's amplification leaves in range


def gallery(originals: Tensor, triggered: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Show images, their triggered versions, and the amplified difference.

    Args:
        originals: (N, 3, H, W) uint8; a column each.
        triggered: attack -> (at training strength, at test strength), shaped like `originals`.
    """
    count = len(originals)
    rows = 1 + 3 * len(triggered)
    figure, axes = new_figure(1.35 * count + 1.6, 1.35 * rows, nrows=rows, ncols=count)
    _images(axes[0], originals, "original")
    for index, (name, (train, test)) in enumerate(triggered.items()):
        top = 1 + 3 * index
        difference = (test.float() - originals.float()) / 255
        changed = difference[difference != 0].abs()
        limit = float(changed.quantile(SHOWN)) if len(changed) else 1.0
        factor = max(1, int(0.5 / max(limit, 1e-3)))
        _images(axes[top], train, f"{name}\ntraining")
        _images(axes[top + 1], test, f"{name}\ntest")
        amplified = (difference * factor + 0.5).clamp(0, 1)
        _images(axes[top + 2], amplified, f"difference\n× {factor}")
    figure.tight_layout(pad=0.3)
    return figure


def _images(axes: Sequence[Axes], images: Tensor, title: str) -> None:
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10)
