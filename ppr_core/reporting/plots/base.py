"""What the figures share: looks, legends and the names of rows."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppr_core.lab.graph import NO_ATTACK
from ppr_core.reporting.results import COLOURS, label

# Colour-blind safe, and told apart in print by lightness.
BEFORE, AFTER, CLEAN = "#88b4d8", "#c0392b", "#2c7a4b"
MARKERS = "oXsPD^v*<>ph"  # tell apart what colours do not

sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")


def new_figure(width: float, height: float, **grid: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure that is not shown by itself; whoever asked for it shows it."""
    figure, axes = plt.subplots(figsize=(width, height), squeeze=False, **grid)
    plt.close(figure)
    return figure, axes


def legend_beside(axis: Axes) -> None:
    """Put the legend beside the panel, where it hides nothing."""
    axis.legend(title="", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def finished(figure: Figure, named: Axes) -> Figure:
    """Return a figure with the legend of one of its panels beside it, and all in sight."""
    legend_beside(named)
    figure.tight_layout()
    return figure


def look_of(column: pd.Series) -> dict[str, Any]:
    """Return how to tell apart what a whole figure's column names: by colour and by marker.

    A defense looks the same in every figure of a study, for its column is of the study's order.
    """
    defenses = isinstance(column.dtype, pd.CategoricalDtype)
    names = list(column.cat.categories) if defenses else names_of(column)
    colours = COLOURS if defenses else sns.color_palette("colorblind")
    present = [name for name in names if (column == name).any()]
    return {
        "hue_order": present,
        "style_order": present,
        "palette": {name: colours[i % len(colours)] for i, name in enumerate(names)},
        "markers": {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)},
    }


def draw_curves(axis: Axes, frame: pd.DataFrame, *, hue: str, **named: Any) -> None:
    """Draw lines told apart by colour and by marker; bands are the spread over seeds."""
    named = {"errorbar": "sd", "dashes": False, **named}
    sns.lineplot(frame, hue=hue, style=hue, ax=axis, **named)


def names_of(column: pd.Series) -> list[str]:
    """Return what a column names, in its order."""
    return list(dict.fromkeys(column))


def named_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep what has figures, under the names that tables use."""
    names = rows.apply(label, axis=1)
    rows = rows.assign(name=pd.Categorical(names, names_of(names)))
    return rows[(rows["status"] == "done") & (rows["attack"] != NO_ATTACK)]


def draw_dots(axis: Axes, rows: pd.DataFrame, *, x: str, legend: bool = True) -> None:
    """Scatter P-ASR over a column: a colour a defense, and a marker where no attack takes it."""
    look = look_of(rows["name"])
    if rows["attack"].nunique() > 1:
        by = {"style": "attack", **look, "style_order": None, "markers": True}
    else:
        by = {"style": "name", **look}
    sns.scatterplot(rows, x=x, y="p_asr", hue="name", s=80, ax=axis, legend=legend, **by)
