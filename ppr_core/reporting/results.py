"""A study's results, read from the store: one row a cell, and the curves behind them."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppr_core.defenses import Pam
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import CLEAN, GRID, NO_ATTACK, NO_DEFENSE, Plan, Stage
from ppr_core.lab.store import Store
from ppr_core.metrics import psnr

# Of the defenses of a study, in its order: the same in every figure and chart.
COLOURS = (
    *("#8c8c8c", "#2c7a4b", "#6fbf73", "#c0392b", "#e8850c", "#8e44ad", "#8c564b", "#d66fb0"),
    *("#9fd3f5", "#4a90d9", "#123f8c", "#b8a100", "#17a2a2", "#e5a58f", "#5d3a9b", "#a6761d"),
    *("#000000", "#66c2a5", "#fc8d62", "#8da0cb", "#e78ac3", "#a6d854", "#ffd92f", "#b15928"),
)
# What a study may measure beside RA: column -> (measure, its figure).
MEASURED = {
    "q_p_asr": ("query", "p_asr"),
    "q_c_asr": ("query", "c_asr"),
    "clean_retuned_asr": ("clean_retuning", "p_asr"),
    "trigger_asr": ("triggers", "p_asr"),
    "barrier": ("path", "backdoor_barrier"),
    "clean_barrier": ("path", "clean_barrier"),
    "t_star": ("path", "t_star"),
    "distance": ("path", "distance"),
    "path_distance": ("path", "path_distance"),
}
COLUMNS = [
    "dataset",
    "model",
    "poison_rate",
    "attack",
    "defense",
    "seed",
    "rho",
    "ra_poisons",
    "o_c_acc",
    "o_asr",
    "p_c_acc",
    "p_asr",
    *MEASURED,
    "oracle",
    "privileges",
    "seconds",
    "status",
]
FIGURES = ["o_c_acc", "o_asr", "p_c_acc", "p_asr"]

PURIFIED_BELOW = 15.0  # O-ASR (%) up to which a model counts as purified
WOKEN_BY = 20.0  # rise of ASR (points) under RA from which a backdoor counts as woken


def cells(plan: Plan, store: Store) -> pd.DataFrame:
    """Return one row a cell (attack, defense, seed), in the study's order.

    Figures are percent; o_ is after the defense, p_ after the retuning attack, q_ under QRA. A cell
    that failed or was never computed stays in the table, without figures, and says so in `status`.
    Rows of the attack "none" are defenses of the never-poisoned model. `ra_poisons` is the number
    of poisoned samples that RA took.
    """
    rows = [_row(plan, store, *cell) for cell in plan.cells()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(plan: Plan, store: Store, attack: str, defense: str, seed: int) -> dict[str, Any]:
    method = plan.defenses.get(defense)
    shown, rho, oracle = _about(plan, defense)
    pretrained = getattr(plan.model, "pretrained", True)  # where there is no choice: as ever
    row: dict[str, Any] = {
        "dataset": plan.study.dataset["name"],
        "model": plan.study.model["name"] + ("" if pretrained else " from scratch"),
        "poison_rate": 0.0 if attack == NO_ATTACK else plan.attacks[attack].poison_rate,
        "attack": attack,
        "defense": shown,
        "seed": seed,
        "rho": rho,
        "ra_poisons": None if attack == NO_ATTACK else plan.retuning[attack].poisoned,
        "oracle": oracle,
        "privileges": method.privileges if method else "",
    }
    last = plan.last(attack, defense, seed)
    run = store.find(last.key)
    if run is None:
        return {**row, "status": _why(plan, store, last)}
    figures = run.data.metrics
    row["status"] = "done"
    if last.kind == "retuned":
        row |= {name: figures[name] for name in FIGURES}
        row["seconds"] = _seconds(plan.source(attack, defense, seed), store)
    else:
        row |= {"o_c_acc": figures["c_acc"], "o_asr": figures.get("asr")}
        row["seconds"] = figures["seconds"] if last.kind != "purified" else _seconds(last, store)
    stages = plan.measured(attack, defense, seed)
    found = {name: store.find(stage.key) for name, stage in stages.items()}
    for column, (measure, name) in MEASURED.items():
        if found.get(measure):
            row[column] = found[measure].data.metrics.get(name)
    return row


def _seconds(purified: Stage, store: Store) -> float | None:
    """Return what a defense took, with all of the inversion that it may share with others."""
    if purified.kind != "purified" or "checkpoint" in purified.settings:
        return None
    parts = [stage for stage in (purified, purified.parent("inverted")) if stage]
    found = [run for stage in parts if (run := store.find(stage.key))]
    return sum(run.data.metrics.get("cost_seconds", run.data.metrics["seconds"]) for run in found)


def _why(plan: Plan, store: Store, last: Stage) -> str:
    """Say why a cell has no figures: a stage of its chain that failed, or nothing run yet."""
    chain = [last]
    for stage in chain:
        chain += stage.parents
        failed = store.search(key=stage.key)
        if failed and failed[0].info.status == "FAILED":
            return f"failed: {failed[0].data.tags.get('ppr.error', 'no reason kept')}"
    return "not run"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and spread over seeds of each (attack, defense, rho), in the study's order."""
    keys = ["attack", "defense", "rho", "oracle"]
    shown = [name for name in (*FIGURES, *MEASURED) if name in rows]
    figures = rows.assign(**{name: rows[name].astype(float) for name in shown})
    figures["failed"] = rows["status"].str.startswith("failed").astype(int)
    grouped = figures.groupby(keys, sort=False, dropna=False)
    table = grouped[shown].mean()
    table = table.join(grouped[shown].std(ddof=1).add_suffix("_std"))
    table["change"] = table["p_asr"] - table["o_asr"]
    table["seeds"] = grouped["seed"].nunique()
    table["failed"] = grouped["failed"].sum()
    return table.reset_index()


def findings(rows: pd.DataFrame) -> list[str]:
    """Say in sentences what the figures show: implanted, purified, woken, and the controls."""
    table = summary(rows).dropna(subset="o_asr")
    lines = []
    for attack, group in table.groupby("attack", sort=False):
        controls = group["defense"].isin([NO_DEFENSE, CLEAN]) | group["oracle"].astype(bool)
        purified = group[~controls & (group["o_asr"] <= PURIFIED_BELOW)]
        woken = purified[purified["change"] >= WOKEN_BY]
        implanted = group.loc[group["defense"] == NO_DEFENSE, "o_asr"].mean()
        lines.append(
            f"{attack}: the backdoored model has ASR {implanted:.1f} %. {len(purified)} of "
            f"{sum(~controls)} defenses bring it to {PURIFIED_BELOW:.0f} % or less; retuning wakes "
            f"{len(woken)} of these by {WOKEN_BY:.0f} points or more"
            + (f" ({', '.join(_rise(row) for _, row in woken.iterrows())})" if len(woken) else "")
            + "."
        )
        kept = group[controls & group["p_asr"].notna()]
        if len(kept):
            rises = ", ".join(_rise(row) for _, row in kept.iterrows())
            lines.append(f"{attack}, controls and oracles: {rises}.")
    return lines


def query_findings(rows: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Say in sentences what QRA reaches: on purified models, on the controls, and by transfer.

    The controls are the clean model and EP; a defense that an oracle helped is in neither mean.

    Args:
        rows: `cells` of a study that measures "query".
        pairs: its `transfers`; may be empty.
    """
    lines = []
    for attack, group in rows[rows["q_p_asr"].notna()].groupby("attack", sort=False):
        control = group["defense"].isin([CLEAN, "ep"])
        purified = ~control & ~group["oracle"].astype(bool)
        for who, part in (("purified models", group[purified]), ("controls", group[control])):
            if len(part):
                o, p, c = (part[name].mean() for name in ("o_asr", "q_p_asr", "q_c_asr"))
                lines.append(
                    f"{attack}, {who}: QRA moves the mean ASR from {o:.1f} to {p:.1f}; "
                    f"{c:.1f} % of clean images follow."
                )
    for attack, group in pairs.groupby("attack", sort=False) if len(pairs) else ():
        lines.append(f"{attack}: learnt on another model, it reaches {group['p_asr'].mean():.1f}.")
    return lines


def _rise(row: pd.Series) -> str:
    return f"{label(row)} {row['o_asr']:.1f} to {row['p_asr']:.1f}"


def attacks(plan: Plan, lab: Lab, seed: int) -> pd.DataFrame:
    """Return one row an attack: how strong, how visible, how often, and the clean control."""
    rows = []
    for attack in plan.attacks:
        stage = plan.backdoored(attack, seed)
        result, trigger = lab.result(stage), lab.trigger(stage)
        test = plan.images.test
        control = lab.store.find(plan.retuned(attack, CLEAN, seed).key)
        rows.append(
            {
                "attack": attack,
                "poisoned": result.info["poisoned"],
                "psnr_train_db": psnr(test.images, trigger(test.images, stage="train")),
                "psnr_test_db": psnr(test.images, trigger(test.images)),
                "c_acc": result.metrics["c_acc"],
                "asr": result.metrics["asr"],
                "clean_model_asr": control.data.metrics["o_asr"] if control else None,
                "seconds": result.metrics["seconds"],
            }
        )
    return pd.DataFrame(rows)


def examples(
    plan: Plan, lab: Lab, seed: int, count: int = 8
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return test images, and for each attack the same images at training and test strength."""
    images = plan.images.test.images
    images = images[torch.linspace(0, len(images) - 1, count).long()]
    made = {}
    for attack in plan.attacks:
        trigger = lab.trigger(plan.backdoored(attack, seed))
        made[attack] = (trigger(images, stage="train"), trigger(images))
    return images, made


def label(row: pd.Series) -> str:
    """Return how tables and figures name a row: the defense, PAM's rho, and the word oracle."""
    return _label(row["defense"], row["rho"], row["oracle"])


def _label(defense: str, rho: float | None, oracle: bool) -> str:
    return f"{defense}{f' rho {rho:g}' if pd.notna(rho) else ''}{' (oracle)' if oracle else ''}"


def _labels(plan: Plan, defenses: Iterable[str]) -> pd.Categorical:
    """Return the labels of a plan's defenses; their order, and so their colours, is the plan's."""
    known = {defense: _label(*_about(plan, defense)) for _, defense, _ in plan.cells()}
    named = [known[defense] for defense in defenses]
    return pd.Categorical(named, categories=list(dict.fromkeys(known.values())))


def _about(plan: Plan, defense: str) -> tuple[str, float | None, bool]:
    """Return a defense's name in tables, PAM's rho, and whether it is an oracle."""
    method = plan.defenses.get(defense)
    rho = method.rho if isinstance(method, Pam) else None
    return "pam" if defense.startswith(GRID) else defense, rho, bool(method and method.oracle)


def markdown_table(rows: pd.DataFrame) -> str:
    """Return the result table as Markdown, such as the README's."""
    table = summary(rows)
    heads = _heads(table)
    lines = [f"| attack | defense | {' | '.join(heads.values())} |"]
    lines.append(f"|---|---|{'---:|' * len(heads)}")
    for _, row in table.iterrows():
        figures = [cell_text(row, name) for name in heads]
        lines.append(f"| {' | '.join([row['attack'], label(row), *figures])} |")
    return "\n".join(lines)


def text_table(rows: pd.DataFrame) -> str:
    """Return the result table of a study as aligned text."""
    table = summary(rows)
    heads = _heads(table)
    titles = " ".join(f"{head:>12s}" for head in heads.values())
    lines = [f"{'attack':12s} {'defense':22s} {titles} {'change':>8s}"]
    for _, row in table.iterrows():
        change = f"{row['change']:+.1f}" if pd.notna(row["change"]) else "-"
        if pd.isna(row["o_c_acc"]):
            change = "failed" if row["failed"] else "not run"
        columns = " ".join(f"{cell_text(row, name):>12s}" for name in heads)
        lines.append(f"{row['attack']:12s} {label(row):22s} {columns} {change:>8s}")
    return "\n".join(lines)


def _heads(table: pd.DataFrame) -> dict[str, str]:
    """Return the columns that a result table shows, QRA and LMC where measured, and their heads."""
    return {"o_c_acc": "C-Acc", "o_asr": "O-ASR", "p_asr": "P-ASR"} | further_heads(table)


def further_heads(table: pd.DataFrame) -> dict[str, str]:
    """Return the columns beside RA that a summary has figures of, and their heads."""
    further = {
        "clean_retuned_asr": "clean RA",
        "q_p_asr": "QRA P-ASR",
        "q_c_asr": "QRA C-ASR",
        "trigger_asr": "trigger",
        "barrier": "barrier",
    }
    measured = table.columns[table.notna().any()]
    return {name: head for name, head in further.items() if name in measured}


def cell_text(row: pd.Series, name: str) -> str:
    """Return one figure of a summary row: mean, and spread where there are several seeds."""
    if pd.isna(row[name]):
        return "-"
    spread = row[f"{name}_std"]
    return f"{row[name]:.1f}" + (f" ± {spread:.1f}" if pd.notna(spread) else "")


def histories(plan: Plan, store: Store, kind: str) -> pd.DataFrame:
    """Return the per-epoch records of every finished stage of one kind, one row an epoch.

    Columns: attack, defense, seed, name (the label in figures), epoch, and what was recorded.
    """
    frames = []
    for stage in plan.stages():
        run = store.find(stage.key) if stage.kind == kind else None
        if run is None:
            continue
        frame = pd.DataFrame(store.summary(run).history)
        frame["attack"], frame["seed"] = stage.attack, stage.seed
        frame["defense"] = stage.defense.replace("@", " rho ")
        frame["name"] = _labels(plan, [stage.defense or NO_DEFENSE] * len(frame))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def queries(plan: Plan, store: Store) -> pd.DataFrame:
    """Return QRA, its controls and the optimised triggers over the budget, one row a point.

    Columns: attack, defense, seed, name (the label in figures), perturbation, eps, c_asr, p_asr
    (percent).
    """
    return _points(plan, store, ("query", "query_alone", "controls", "triggers"))


def paths(plan: Plan, store: Store) -> pd.DataFrame:
    """Return the errors along every path, one row a point.

    Columns: attack, defense, seed, name (the label in figures), start ("backdoored"; "purified"
    for the path to EP), batch_norm, t, backdoor_error, clean_error (percent).
    """
    return _points(plan, store, ("path", "connection"))


def transfers(plan: Plan, store: Store) -> pd.DataFrame:
    """Return the P-ASR of every QRA perturbation on the other models, one row a pair.

    Columns: attack, seed, source, target, name (the source's label in figures), p_asr (percent).
    """
    return _points(plan, store, ("transfer",))


def _points(plan: Plan, store: Store, kinds: tuple[str, ...]) -> pd.DataFrame:
    rows, defenses = [], []
    for stage in plan.stages():
        run = store.find(stage.key) if stage.kind in kinds else None
        if run is None:
            continue
        about: dict[str, Any] = {"attack": stage.attack, "seed": stage.seed}
        if stage.defense:
            about["defense"] = stage.defense.replace("@", " rho ")
        if stage.kind in ("path", "connection"):
            about["start"] = "backdoored" if stage.kind == "path" else "purified"
        points = store.summary(run).info["rows"]
        rows += [{**about, **point} for point in points]
        defenses += [stage.defense or point["source"] for point in points]
    return pd.DataFrame(rows).assign(name=_labels(plan, defenses)) if rows else pd.DataFrame()
