"""Figures 1 to 16 as the paper shows them, from the union of the studies that hold their cells."""

from collections.abc import Callable, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppr_core.reporting.claims.base import CIFAR10, MAIN, OTHERS, RARE
from ppr_core.reporting.claims.query import CONTROLS
from ppr_core.reporting.evidence import SETTING, Evidence, Scope, purified
from ppr_core.reporting.plots.base import (
    AFTER,
    BEFORE,
    CLEAN,
    draw_curves,
    legend_beside,
    look_of,
    new_figure,
)
from ppr_core.reporting.setting import PAPER, used, with_scale

Drawn = Callable[[Axes, pd.DataFrame, bool], None]

RATES = (*RARE, CIFAR10[1])
MODELS = CIFAR10[2:]
BOTH = ["badnet", "blended"]
BASELINES = ["clean", "ep", "anp", "anp_oracle", "ibau", "ft_sam", "fst", "bti"]
TITLES = {
    1: "RA: ASR before and after, mean over attacks",
    2: "QRA on purified models and on a clean one",
    3: "QRA learnt on one purified model, used on the others",
    4: "Backdoor error on the way to the purified model, mean over attacks",
    5: "Backdoor error on the way from each defense to EP",
    6: "Backdoor error on PAM's way, over rho",
    **dict.fromkeys(range(7, 14), "Backdoor error on the way to the purified model"),
    14: "Clean error on the way to the purified model",
    15: "QRA on purified models at other poisoning rates",
    16: "QRA on other purified models",
}
WHERE = {
    **{1: CIFAR10, 2: MAIN, 3: MAIN, 4: CIFAR10, 5: MAIN, 6: MAIN, 7: MAIN},
    **{8: CIFAR10[1:2], 9: CIFAR10[2:3], 10: CIFAR10[3:4], 11: RARE, 12: OTHERS[:1]},
    **{13: OTHERS[1:], 14: MAIN, 15: RATES, 16: MODELS},
}
WHOLE = (1, 3, 4)  # figures with a panel a setting; else a panel an attack, too
OF_QUERIES, OF_PATHS = (2, 3, 15, 16), (*range(4, 15),)
ELSEWHERE = "at another scale than the paper's"
LOOKS = {"after the defense": BEFORE, "after RA": AFTER, "C-ASR": CLEAN, "P-ASR": AFTER}


def paper_figures(evidence: Evidence, numbers: Sequence[int] = tuple(TITLES)) -> dict[int, Figure]:
    """Draw the figures of the paper that the runs can fill, by number.

    A figure whose settings no study has shows the one asked about in their place where it is one
    of the paper's main ones (1 to 6 and 14); the panels' titles tell the setting, and the
    figure's whether it differs from the paper's elsewhere.
    """
    drawn = {}
    for number in numbers:
        here = evidence.at(Scope(WHERE[number]))
        if number not in (*range(1, 8), 14) and len(here.cells):
            inside = Scope(WHERE[number]).inside(here.cells)
            here = here if inside.any() else Evidence(here.cells.iloc[:0])
        frame, draw = _source(number, here)
        if frame is not None and len(frame):
            drawn[number] = _panels(number, frame, draw)
            if not _as_in_the_paper(number, here.cells):
                drawn[number].suptitle(f"Figure {number}. {TITLES[number]}, {ELSEWHERE}")
    return drawn


def _as_in_the_paper(number: int, rows: pd.DataFrame) -> bool:
    """Say whether what a figure shows was made in the paper's very setting."""
    taken = {"barrier"} if number in OF_PATHS else set()
    taken |= {"q_p_asr", "qe_p_asr"} if number in OF_QUERIES else set()
    return bool((used(with_scale(rows), [*taken])["level"] == PAPER).all())


def _source(number: int, e: Evidence) -> tuple[pd.DataFrame | None, Drawn]:
    """Return the points of a figure, one row each, and how a panel of them is drawn."""
    if number == 1:
        return _bars(e, {"o_asr": "after the defense", "p_asr": "after RA"}), _draw_bars
    if number in (2, 15, 16):
        return _query(e, None if number == 2 else BOTH), _draw_bars
    if number == 3:
        return _transfer(e), _draw_bars
    if not len(e.paths):
        return None, _draw_lines
    points = e.paths[e.paths["batch_norm"] == "interpolate"]
    points = points[points["start"] == ("purified" if number == 5 else "backdoored")]
    pam = points["defense"].str.startswith("pam")
    if number == 6:
        return points[pam], _draw_lines
    if number == 14:
        return points.assign(y=points["clean_error"]), _draw_lines
    return points, _draw_lines


def _panels(number: int, frame: pd.DataFrame, draw: Drawn) -> Figure:
    keys = [k for k in SETTING if k in frame] + ([] if number in WHOLE else ["attack"])
    groups = list(frame.groupby(keys, sort=False)) if keys else [((), frame)]
    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    size = {"nrows": rows, "ncols": columns, "sharey": draw is _draw_lines}
    figure, axes = new_figure(4.3 * columns + 1.6, 3.6 * rows + 0.5, **size)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for index, (axis, (place, part)) in enumerate(zip(axes.flat, groups, strict=False)):
        last = index == len(groups) - 1
        draw(axis, part, last)
        axis.set_title(_place(place, keys), fontsize=11)
        if last and axis.get_legend():
            legend_beside(axis)
    figure.suptitle(f"Figure {number}. {TITLES[number]}")
    figure.tight_layout()
    return figure


def _place(place: tuple, keys: Sequence[str]) -> str:
    named = dict(zip(keys, place if isinstance(place, tuple) else (place,), strict=True))
    rate = f"{100 * named['poison_rate']:g} %" if "poison_rate" in named else ""
    first = " ".join(str(named[k]) for k in ("dataset", "model") if k in named)
    return "\n".join(part for part in (f"{first} {rate}".strip(), named.get("attack", "")) if part)


def _bars(e: Evidence, shown: dict[str, str]) -> pd.DataFrame:
    """Return ASR by defense, as means over attacks of each seed."""
    rows = e.of(BASELINES, *shown)
    if not len(rows):
        return rows
    rows = rows.assign(name=rows["defense"])
    means = rows.groupby([*SETTING, "name", "seed"], sort=False)[list(shown)].mean().reset_index()
    long = means.melt([*SETTING, "name", "seed"], list(shown), "when", "asr")
    return long.assign(when=long["when"].map(shown))


def _query(e: Evidence, attacks: list[str] | None) -> pd.DataFrame:
    """Return QRA's scores on purified models, and what the same generators do to a clean model.

    By eq. 2 with EP as surrogate where it was run; else by the authors' code, where the clean
    model is the one that no generator saw.
    """
    for form in CONTROLS:
        own = [f"{form}_c_asr", f"{form}_p_asr"]
        rows = purified(e.baselines("o_asr", *own))
        if len(rows):
            break
    else:
        return pd.DataFrame()
    rows = rows if attacks is None else rows[rows["attack"].isin(attacks)]
    parts = [rows.assign(name=rows["defense"], c=rows[own[0]], p=rows[own[1]])]
    control = [f"{CONTROLS[form]}_{what}_asr" for what in ("c", "p")]
    if {*control} <= {*rows.columns}:
        seen = rows.dropna(subset=control)
        parts.append(seen.assign(name="clean model", c=seen[control[0]], p=seen[control[1]]))
    long = pd.concat(parts).astype({"c": float, "p": float})
    long = long.melt([*SETTING, "attack", "name", "seed"], ["c", "p"], "when", "asr")
    return long.assign(when=long["when"].map({"c": "C-ASR", "p": "P-ASR"}))


def _transfer(e: Evidence) -> pd.DataFrame:
    """Return what the perturbation of each source does on average to the others, by attack.

    Among the paper's defenses where they purified: neither EP, FT and PAM, nor what is awake.
    """
    if not len(e.transfers):
        return e.transfers
    pairs, keys = e.between(purified(e.baselines("o_asr")))
    means = pairs.groupby([*keys, "source"], sort=False)["p_asr"].mean().reset_index()
    return means.rename(columns={"source": "name", "attack": "when", "p_asr": "asr"})


def _draw_bars(axis: Axes, part: pd.DataFrame, last: bool) -> None:
    names = list(dict.fromkeys(part["when"]))
    others = dict(zip(names, sns.color_palette("colorblind"), strict=False))
    how = {"palette": others | LOOKS, "errorbar": "sd", "legend": last, "hue_order": names}
    sns.barplot(part, y="name", x="asr", hue="when", ax=axis, err_kws={"linewidth": 1.2}, **how)
    axis.set(xlabel="predicted as the target (%)", ylabel="", xlim=(0, 103))


def _draw_lines(axis: Axes, part: pd.DataFrame, last: bool) -> None:
    clean = "y" in part and part["y"].notna().all()
    y = "clean_error" if clean else "backdoor_error"
    by = ["name", "seed", "t"]  # means over attacks within a seed; bands are over seeds
    means = part.groupby(by, observed=True)[y].mean().reset_index()
    draw_curves(axis, means, x="t", y=y, hue="name", legend=last, **look_of(part["name"]))
    axis.set(xlabel="position t on the path", ylabel=f"{y.replace('_', ' ')} (%)")
    if not clean:
        axis.set_ylim(-3, 103)
