"""Results in, figures out: the only importer of matplotlib and seaborn."""

from matplotlib.figure import Figure

from ppr_core.reporting.plots.bars import query_bars, rival_bars, robustness_bars, transfer_bars
from ppr_core.reporting.plots.base import MARKERS
from ppr_core.reporting.plots.curves import (
    budget_curves,
    path_curves,
    retuning_curves,
    rho_curves,
    trade_off,
    training_curves,
    what_predicts,
)
from ppr_core.reporting.plots.gallery import gallery
from ppr_core.reporting.plots.judged import battery_map, order_changes, wake_counts
from ppr_core.reporting.plots.paper import TITLES, paper_figures
from ppr_core.reporting.plots.picture import SHADES, Curves, Mark, Picture

__all__ = [
    "MARKERS",
    "SHADES",
    "TITLES",
    "Curves",
    "Figure",
    "Mark",
    "Picture",
    "battery_map",
    "budget_curves",
    "gallery",
    "order_changes",
    "paper_figures",
    "path_curves",
    "query_bars",
    "retuning_curves",
    "rho_curves",
    "rival_bars",
    "robustness_bars",
    "trade_off",
    "training_curves",
    "transfer_bars",
    "wake_counts",
    "what_predicts",
]
