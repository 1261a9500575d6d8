"""Curves over budgets, paths, epochs and rho; what foretells P-ASR."""

import pandas as pd
from matplotlib.figure import Figure

from ppr_core.lab.graph import NO_DEFENSE
from ppr_core.reporting.findings import among, sleeping
from ppr_core.reporting.plots.base import (
    AFTER,
    BEFORE,
    CLEAN,
    draw_curves,
    draw_dots,
    finished,
    legend_beside,
    look_of,
    named_rows,
    names_of,
    new_figure,
)


def budget_curves(points: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Draw P-ASR and C-ASR over the budget: QRA by defense above, the controls below.

    Args:
        points: `results.queries` of a study.
        rows: `results.cells` of it, which say what is purified: the controls are means over that.
    """
    if "scored" in points:
        points = points[points["scored"] == "self"]
    swept = points.groupby("perturbation")["eps"].transform("nunique") > 1
    points = points[swept].assign(eps=255 * points["eps"])
    kinds = [("qra", "name")]
    if points["perturbation"].nunique() > 1:
        kinds.append(("controls", "perturbation"))
    attacks = names_of(points["attack"])
    size = {"nrows": len(kinds), "ncols": 2 * len(attacks), "sharex": True, "sharey": True}
    figure, axes = new_figure(4.4 * 2 * len(attacks) + 1.6, 3.4 * len(kinds), **size)
    for row, (kind, hue) in zip(axes, kinds, strict=True):
        purified = among(points, sleeping(rows))
        chosen = points[points["perturbation"] == "qra"] if kind == "qra" else purified
        look = look_of(chosen[hue]) | ({} if kind == "qra" else {"errorbar": None})
        for index, attack in enumerate(attacks):
            here = chosen[chosen["attack"] == attack]
            for place, name in enumerate(("p_asr", "c_asr")):
                axis = row[2 * index + place]
                last = axis is row[-1]
                draw_curves(axis, here, x="eps", y=name, hue=hue, legend=last, **look)
                what = "triggered" if name == "p_asr" else "clean"
                mean = "" if kind == "qra" else "\nmean of the purified models"
                axis.set(title=f"{attack}: {what} images{mean}", ylim=(-3, 103))
                axis.set(xlabel="budget (1/255)", ylabel="predicted as the target (%)")
                axis.set_xticks(sorted(points["eps"].unique()))
        legend_beside(row[-1])
    figure.tight_layout()
    return figure


def path_curves(points: pd.DataFrame, figure_of: str = "backdoor_error") -> Figure:
    """Draw an error along the path from t = 0 to t = 1, a row for each way of batch norm.

    Args:
        points: `results.paths` of a study, of one start.
        figure_of: "backdoor_error" (100 - ASR) or "clean_error" (100 - C-Acc).
    """
    attacks, ways = names_of(points["attack"]), names_of(points["batch_norm"])
    lines = {"hue": "name", **look_of(points["name"])}
    size = {"nrows": len(ways), "ncols": len(attacks), "sharex": True, "sharey": True}
    figure, axes = new_figure(5.2 * len(attacks) + 1.8, 3.5 * len(ways), **size)
    for row, way in zip(axes, ways, strict=True):
        for axis, attack in zip(row, attacks, strict=True):
            here = points[(points["attack"] == attack) & (points["batch_norm"] == way)]
            draw_curves(axis, here, x="t", y=figure_of, legend=axis is row[-1], **lines)
            axis.set(title=f"{attack}, batch norm: {way}", xlabel="position t on the path")
            axis.set_ylabel(f"{figure_of.replace('_', ' ')} (%)")
            if figure_of == "backdoor_error":
                axis.set_ylim(-3, 103)
        legend_beside(row[-1])
    figure.tight_layout()
    return figure


def what_predicts(rows: pd.DataFrame) -> Figure:
    """Scatter P-ASR against the figures of the path: what foretells that a model wakes?

    Args:
        rows: `results.cells` of a study that measures "path".
    """
    rows = named_rows(rows)
    rows = rows[rows["distance"].notna()]
    shown = {
        "distance": "L2 distance from the backdoored model",
        "path_distance": "L2 distance along the path, ASR asleep",
        "barrier": "backdoor error barrier (points)",
    }
    figure, axes = new_figure(14.4, 4.0, ncols=3, sharey=True)
    for axis, (name, title) in zip(axes[0], shown.items(), strict=True):
        draw_dots(axis, rows, x=name, legend=axis is axes[0][-1])
        axis.set(xlabel=title, ylabel="P-ASR after RA (%)", ylim=(-3, 103))
    return finished(figure, axes[0][-1])


def retuning_curves(history: pd.DataFrame) -> Figure:
    """Draw ASR and C-Acc after every epoch of the retuning attack.

    Args:
        history: `results.histories(plan, store, "retuned")`; epoch 0 is before RA.
    """
    attacks = names_of(history["attack"])
    lines = {"hue": "name", **look_of(history["name"])}
    size = {"ncols": len(attacks), "nrows": 2, "sharex": True, "sharey": "row"}
    figure, axes = new_figure(5.6 * len(attacks) + 1.2, 6.4, **size)
    for column, attack in enumerate(attacks):
        here = history[history["attack"] == attack]
        for axis, name, title in zip(
            axes[:, column], ("asr", "c_acc"), ("ASR", "C-Acc"), strict=True
        ):
            last = column == len(attacks) - 1 and name == "asr"
            draw_curves(axis, here, x="epoch", y=name, legend=last, **lines)
            axis.set(xlabel="epoch of retuning", ylabel=f"{title} (%)", title=attack)
            axis.set_ylim((-3, 103) if name == "asr" else None)
    legend_beside(axes[0][-1])
    axes[1][0].set_ylim(max(0, history["c_acc"].min() - 3), 101)
    figure.tight_layout()
    return figure


def rho_curves(rows: pd.DataFrame) -> Figure:
    """Draw PAM's C-Acc, O-ASR and P-ASR over rho; rho 0 is tuning without a path step.

    Args:
        rows: `results.cells` of a study with a rho grid.
    """
    grid = rows[(rows["defense"] == "pam") & (rows["status"] == "done")]
    attacks = names_of(grid["attack"])
    figure, axes = new_figure(5.4 * len(attacks) + 1.4, 4.2, ncols=len(attacks), sharey=True)
    lines = {"o_c_acc": "C-Acc", "o_asr": "O-ASR", "p_asr": "P-ASR (after RA)"}
    for axis, attack in zip(axes[0], attacks, strict=True):
        here = grid[grid["attack"] == attack].melt(["rho"], list(lines), "figure", "value")
        here["figure"] = here["figure"].map(lines)
        look = look_of(here["figure"]) | {"palette": [CLEAN, BEFORE, AFTER]}
        last = axis is axes[0][-1]
        draw_curves(axis, here, x="rho", y="value", hue="figure", legend=last, **look)
        axis.set(title=attack, xlabel="rho (L2 length of the path step)", ylabel="percent")
        axis.set_ylim(-3, 103)
    return finished(figure, axes[0][-1])


def training_curves(history: pd.DataFrame) -> Figure:
    """Draw how C-Acc and ASR grow while the backdoored models are trained.

    Args:
        history: `results.histories(plan, store, "backdoored")`.
    """
    figure, axes = new_figure(11, 3.8, ncols=2)
    lines = {"hue": "attack", **look_of(history["attack"])}
    for axis, name, title in zip(axes[0], ("c_acc", "asr"), ("C-Acc", "ASR"), strict=True):
        last = name == "asr"
        draw_curves(axis, history, x="epoch", y=name, legend=last, **lines)
        axis.set(xlabel="epoch of training", ylabel=f"{title} (%)", ylim=(-3, 103))
    return finished(figure, axes[0][1])


def trade_off(rows: pd.DataFrame) -> Figure:
    """Scatter what a defense costs (C-Acc lost) against what it leaves (P-ASR)."""
    before = rows[rows["defense"] == NO_DEFENSE].set_index(["attack", "seed"])["o_c_acc"]
    done = named_rows(rows)
    done = done[done["p_asr"].notna()]
    keys = list(zip(done["attack"], done["seed"], strict=True))
    done = done.assign(lost=before.loc[keys].to_numpy() - done["o_c_acc"].to_numpy(dtype=float))
    figure, axes = new_figure(7.6, 4.6)
    draw_dots(axes[0][0], done, x="lost")
    axes[0][0].set(xlabel="C-Acc lost (points)", ylabel="P-ASR after RA (%)", ylim=(-3, 103))
    return finished(figure, axes[0][0])
