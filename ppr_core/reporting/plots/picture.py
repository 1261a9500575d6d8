"""Panels of curves whose marks move, for the explorer."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from ppr_core.reporting.plots.base import AFTER, CLEAN


@dataclass(frozen=True)
class Curves:
    """Lines over one x axis.

    Attributes:
        title: of the panel.
        x: column of `frame`.
        label: of the x axis.
        frame: one row a point; a line whose column it lacks is only measured live.
        lines: column of `frame` -> name in the legend.
        limits: of the x axis.
    """

    title: str
    x: str
    label: str
    frame: pd.DataFrame
    lines: Mapping[str, str]
    limits: tuple[float, float]


# A place on a panel's x axis, and the values there by column; and where these were measured, if
# not at that place.
Mark = tuple[float, Mapping[str, float]] | tuple[float, Mapping[str, float], float]

# The same measure has the same colour in every panel; a blue that is seen on white and on black.
BLUE = "#4a86c5"
SHADES = {
    "c_acc": CLEAN,
    "o_asr": BLUE,
    "p_asr": AFTER,
    "c_asr": CLEAN,
    "control": BLUE,
    "backdoor_error": AFTER,
    "recalibrated": BLUE,
    "clean_error": CLEAN,
    "own": AFTER,
    "clean": CLEAN,
}


class Picture:
    """Panels of curves with marks that move: curves are drawn once, marks at every move.

    It keeps away from pyplot, whose state is one for all threads.
    """

    def __init__(self, panels: Sequence[Curves]) -> None:
        width, height = 3.9 * len(panels) + 0.3, 3.4
        self.panels = panels
        self.figure = Figure(figsize=(width, height))
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes = self.figure.subplots(1, len(panels), squeeze=False)[0]
        margins = {"left": 0.75 / width, "right": 1 - 0.15 / width, "wspace": 0.24}
        self.figure.subplots_adjust(bottom=0.25, top=0.92, **margins)
        for axis, panel in zip(self.axes, panels, strict=True):
            self._draw(axis, panel)
        self.marks: list[Artist] = []
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def _draw(self, axis: Axes, panel: Curves) -> None:
        points = panel.frame.sort_values(panel.x) if len(panel.frame) else panel.frame
        for column, name in panel.lines.items():
            style: dict[str, Any] = {
                "color": SHADES[column],
                "label": name,
                "marker": "o",
                "markersize": 4,
            }
            shown = points.dropna(subset=[column]) if column in points else None
            axis.plot(*((), ()) if shown is None else (shown[panel.x], shown[column]), **style)
        axis.set_title(panel.title, fontsize=11)
        axis.set_xlabel(panel.label, fontsize=10)
        axis.set_ylabel("percent", fontsize=10)
        axis.set(xlim=panel.limits, ylim=(-3, 103))
        axis.set_xticks(np.linspace(0, sum(panel.limits), 5))  # quarters of what lies in margins
        axis.tick_params(labelsize=9)
        below: dict[str, Any] = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, -0.19),
            "ncol": len(panel.lines),
        }
        axis.legend(fontsize=9, frameon=False, handlelength=1.4, columnspacing=0.9, **below)

    def mark(self, marks: Sequence[Mark | None]) -> Figure:
        """Point out one place a panel (or none), in the figure itself."""
        while self.marks:
            self.marks.pop().remove()
        for axis, mark in zip(self.axes, marks, strict=True):
            if mark is None:
                continue
            at, values, measured = *mark[:2], mark[-1] if len(mark) == 3 else mark[0]
            self.marks.append(axis.axvline(at, color="#444444", linewidth=1.2, linestyle="--"))
            ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "clip_on": False}
            for column, value in values.items():
                edge = {"markeredgecolor": SHADES[column], "markeredgewidth": 2.2}
                self.marks += axis.plot([measured], [value], linestyle="", **ring, **edge)
        return self.figure

    def png(self, marks: Sequence[Mark | None]) -> bytes:
        """Return the picture with these marks as the bytes of a PNG file."""
        self.mark(marks)
        self.canvas.restore_region(self.background)
        for artist in self.marks:
            self.figure.draw_artist(artist)
        buffer = io.BytesIO()
        pixels = np.asarray(self.canvas.buffer_rgba())[..., :3]
        quick = {"compress_level": 1}  # a third of the time for a tenth more bytes
        imsave(buffer, pixels, format="png", pil_kwargs=quick)
        return buffer.getvalue()
