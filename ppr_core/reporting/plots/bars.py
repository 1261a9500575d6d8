"""ASR as bars: before and after each way to wake a backdoor."""

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ppr_core.reporting.plots.base import (
    AFTER,
    BEFORE,
    CLEAN,
    finished,
    named_rows,
    names_of,
    new_figure,
)


def robustness_bars(rows: pd.DataFrame) -> Figure:
    """Draw O-ASR and P-ASR of every defense, a panel an attack, with the controls.

    Args:
        rows: `results.cells` of a study; bars are means over seeds, whiskers the spread.
    """
    shown = {"o_asr": "after the defense", "p_asr": "after RA"}
    return _grouped_bars(named_rows(rows), shown, [BEFORE, AFTER])


def query_bars(rows: pd.DataFrame) -> Figure:
    """Draw ASR before and under QRA (triggered and clean images), a panel an attack.

    Args:
        rows: `results.cells` of a study that measures "query"; where the perturbation was also
            tried on a clean model that it was not learnt with, that is shown beside it. The
            paper's form (eq. 2) stands beside the authors' where it was measured.
    """
    shown = {
        "o_asr": ("triggered", BEFORE),
        "q_p_asr": ("triggered + QRA", AFTER),
        "q_c_asr": ("clean + QRA", CLEAN),
        "q_unseen_p_asr": ("unseen clean model", "#8c8c8c"),
        "qe_p_asr": ("triggered + QRA, eq. 2", "#e59866"),
        "qe_c_asr": ("clean + QRA, eq. 2", "#8fce9f"),
        "qe_clean_p_asr": ("clean model, eq. 2", "#c9c9c9"),
    }
    return _measured_bars(rows, shown)


def rival_bars(rows: pd.DataFrame) -> Figure:
    """Draw the ASR that each way to wake a backdoor reaches, a panel an attack.

    Args:
        rows: `results.cells` of a study that measures "query"; what it does not measure is absent.
    """
    shown = {
        "p_asr": ("RA", AFTER),
        "clean_retuned_asr": ("RA, clean samples alone", "#e8b04a"),
        "q_p_asr": ("QRA", "#4a90d9"),
        "trigger_asr": ("optimised trigger", "#6b4c9a"),
    }
    return _measured_bars(rows, shown)


def _measured_bars(rows: pd.DataFrame, shown: Mapping[str, tuple[str, str]]) -> Figure:
    """Draw bars of those columns, name and colour by column, that models with QRA have."""
    rows = named_rows(rows)
    rows = rows[rows["q_p_asr"].notna()]
    shown = {n: look for n, look in shown.items() if n in rows and rows[n].notna().any()}
    titles = {name: title for name, (title, _) in shown.items()}
    return _grouped_bars(rows, titles, [colour for _, colour in shown.values()])


def _grouped_bars(rows: pd.DataFrame, shown: Mapping[str, str], palette: list[str]) -> Figure:
    rows = rows.astype({"name": str})
    attacks = names_of(rows["attack"])
    height = (0.1 + 0.16 * len(shown)) * rows["name"].nunique() + 1.4
    figure, axes = new_figure(6.2 * len(attacks), height, ncols=len(attacks), sharey=True)
    for axis, attack in zip(axes[0], attacks, strict=True):
        here = rows[rows["attack"] == attack]
        long = here.melt(["name"], list(shown), "when", "asr").dropna(subset="asr")
        long["when"] = long["when"].map(shown)
        sns.barplot(
            long,
            y="name",
            x="asr",
            hue="when",
            hue_order=list(shown.values()),
            palette=palette,
            errorbar="sd",
            err_kws={"linewidth": 1.2},
            ax=axis,
            legend=axis is axes[0][-1],
        )
        for bars in axis.containers:
            if hasattr(bars, "patches") and rows["seed"].nunique() == 1:  # whiskers else
                axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
        for name in set(rows["name"]) - set(long["name"]):  # an empty place is no bar of 0
            axis.text(1, name, "no result", va="center", fontsize=9, color="gray")
        axis.set(title=attack, xlabel="attack success rate (%)", ylabel="", xlim=(0, 112))
        axis.set_xticks(range(0, 101, 20))
    return finished(figure, axes[0][-1])


def transfer_bars(pairs: pd.DataFrame) -> Figure:
    """Draw the P-ASR of each model's perturbation on the others: mean, and each as a point.

    Args:
        pairs: `results.transfers` of a study.
    """
    pairs = pairs.astype({"name": str})
    attacks = names_of(pairs["attack"])
    height = 0.4 * pairs["name"].nunique() + 1.4
    figure, axes = new_figure(5.4 * len(attacks), height, ncols=len(attacks), sharey=True)
    for axis, attack in zip(axes[0], attacks, strict=True):
        here = pairs[pairs["attack"] == attack]
        sns.barplot(here, y="name", x="p_asr", errorbar=None, color=BEFORE, ax=axis)
        sns.stripplot(here, y="name", x="p_asr", color=AFTER, size=4, ax=axis)
        axis.set(title=attack, xlabel="P-ASR on the other models (%)", xlim=(0, 103))
        axis.set_ylabel("perturbation learnt on")
    figure.tight_layout()
    return figure
