"""A study's results, read from the store: one row a cell, and the curves behind them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from ppr_core.defenses import Pam
from ppr_core.lab.graph import CLEAN, Cell, Stage
from ppr_core.lab.measures import MEASURES, Column, Measure
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.reporting import checks, setting
from ppr_core.reporting.rules import threshold

# Of the defenses of a study, in its order: the same in every figure and chart.
COLOURS = (
    *("#8c8c8c", "#2c7a4b", "#6fbf73", "#c0392b", "#e8850c", "#8e44ad", "#8c564b", "#d66fb0"),
    *("#9fd3f5", "#4a90d9", "#123f8c", "#b8a100", "#17a2a2", "#e5a58f", "#5d3a9b", "#a6761d"),
    *("#000000", "#66c2a5", "#fc8d62", "#8da0cb", "#e78ac3", "#a6d854", "#ffd92f", "#b15928"),
)
ABOUT = [
    *("dataset", "model", "poison_rate", "attack", "defense", "seed", "rho", "ra_poisons"),
    *("oracle", "privileges", "anew", "seconds", "status", "checks", "warnings"),
]
MEASURED = {column.name: column for cls in MEASURES.values() for column in cls.columns}
# What is not taken of a model that was trained anew: paths within a basin, for one.
WITHIN = {column.name for cls in MEASURES.values() if not cls.across for column in cls.columns}
APART = "not in this basin"
FIGURES = [column.name for column in MEASURES["retuning"].columns]

PURIFIED_BELOW = threshold("purified")  # O-ASR (%) up to which a model counts as purified
WOKEN_BY = threshold("woken")  # rise of ASR (points) under RA from which it counts as woken


def cells(plan: Plan, store: Store, among: Sequence[Cell] | None = None) -> pd.DataFrame:
    """Return one row a cell (attack, defense, seed), in the study's order.

    The figures are the columns of the measures, those of a user's own included (`columns_of`). A
    cell that failed or was never computed stays in the table, without figures, and says so in
    `status`. Rows of the attack "none" are defenses of the never-poisoned model. `ra_poisons` is
    the number of poisoned samples that RA took. A row with `checks` has no verdict: they say why.
    `warnings` are those of the defense itself, most of them of its trigger inversion.

    Args:
        plan: of the study.
        store: that holds its runs.
        among: these cells alone, in place of all.
    """
    grid = list(plan.cells() if among is None else among)
    rows = [_row(plan, store, cell) for cell in grid]
    doubts = [checks.warnings_of(store, store.find(plan.source(cell).key)) for cell in grid]
    classes = checks.classes_of(store, [plan.source(cell) for cell in grid])
    for row, said in zip(rows, checks.failed(rows, doubts, classes), strict=True):
        row["checks"] = said
    for row, told in zip(rows, doubts, strict=True):
        row["warnings"] = checks.MARK.join(told)
    own = {column.name: column for cls in plan.classes().values() for column in cls.columns}
    known = {**MEASURED, **own}
    table = pd.DataFrame(rows, columns=[*ABOUT[:8], *known, *ABOUT[8:]])
    table.attrs["columns"] = known
    return table


def columns_of(rows: pd.DataFrame) -> dict[str, Column]:
    """Return what the figures of a table of rows are, by name; one read from a file knows less."""
    known = {**MEASURED, **rows.attrs.get("columns", {})}
    others = {*ABOUT, *setting.FIGURES}
    named = {n: known.get(n, Column(n, n, n)) for n in rows.columns if n not in others}
    return {n: c for n, c in named.items() if n in known or is_numeric_dtype(rows[n])}


def _row(plan: Plan, store: Store, cell: Cell) -> dict[str, Any]:
    method = plan.defense(cell)
    attack = plan.attacks.get(cell.attack)
    row: dict[str, Any] = {
        **place_of(plan),
        "poison_rate": attack.poison_rate if attack else 0.0,
        **_about(plan, cell),
        "ra_poisons": plan.retuning(cell.attack).poisoned if attack else None,
        "oracle": plan.oracle(cell),
        "privileges": method.uses if method else "",
        "anew": plan.anew(cell),
    }
    source, last = plan.source(cell), plan.last(cell)
    run = store.find(last.key)
    if run is None:
        return {**row, "status": _why(store, last)}
    if last is source:
        row |= {"o_c_acc": run.data.metrics["c_acc"], "o_asr": run.data.metrics.get("asr")}
    for label, stage in plan.measured(cell).items():
        found = store.find(stage.key)
        if found:
            columns = plan.classes()[label].columns
            row |= {column.name: found.data.metrics.get(column.metric) for column in columns}
    return {**row, "seconds": _seconds(source, store, cell), "status": "done"}


def place_of(plan: Plan) -> dict[str, str]:
    """Return what rows call a study's data set and its architecture."""
    pretrained = getattr(plan.setting.model, "pretrained", True)  # where there is no choice
    model = plan.study.model["name"] + ("" if pretrained else " from scratch")
    return {"dataset": plan.study.dataset["name"], "model": model}


def _about(plan: Plan, cell: Cell) -> dict[str, Any]:
    """Return what a row is about: attack, defense, seed, and PAM's rho."""
    method = plan.defense(cell)
    rho = method.rho if isinstance(method, Pam) else None
    return {"attack": cell.attack, "defense": cell.defense, "seed": cell.seed, "rho": rho}


def _seconds(source: Stage, store: Store, cell: Cell) -> float | None:
    """Return what a cell's model took."""
    if source.kind != "purified":  # the clean model is not the cost of a row beside an attack's
        return None if cell.defense == CLEAN else store.held(source.key).data.metrics["seconds"]
    return seconds_of(source, store)


def seconds_of(source: Stage, store: Store) -> float | None:
    """Return what a purified model took, with all of the inversion that it may share with others.

    None of one that was made elsewhere.
    """
    if source.file is not None:
        return None
    parts = [stage for stage in (source, source.parent("inverted")) if stage]
    found = [run for stage in parts if (run := store.find(stage.key))]
    return sum(run.data.metrics.get("cost_seconds", run.data.metrics["seconds"]) for run in found)


def _why(store: Store, last: Stage) -> str:
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
    shown = list(columns_of(rows))
    figures = rows.assign(**{name: rows[name].astype(float) for name in shown})
    figures["checks"] = checks.column(rows)
    figures["failed"] = rows["status"].str.startswith("failed").astype(int)
    grouped = figures.groupby(keys, sort=False, dropna=False)
    table = grouped[shown].mean()
    table = table.join(grouped[shown].std(ddof=1).add_suffix("_std"))
    table = table.copy()  # in one piece: pandas warns of many columns added one by one
    table["change"] = table["p_asr"] - table["o_asr"]
    table["seeds"] = grouped["seed"].nunique()
    table["failed"] = grouped["failed"].sum()
    table["anew"] = grouped["anew"].any() if "anew" in rows else False
    table["checks"] = grouped["checks"].agg(lambda said: next(filter(None, said), ""))
    table = table.reset_index()
    table.attrs["columns"] = columns_of(rows)
    return table


def label(row: pd.Series | Mapping[str, Any]) -> str:
    """Return how tables and figures name a row: the defense, PAM's rho, and the word oracle."""
    rho = f" rho {row['rho']:g}" if pd.notna(row["rho"]) else ""
    return f"{row['defense']}{rho}{' (oracle)' if row['oracle'] else ''}"


def name_of(plan: Plan, cell: Cell) -> str:
    """Return how tables and figures name the defense of a cell."""
    return label({**_about(plan, cell), "oracle": plan.oracle(cell)})


def _named(plan: Plan, rows: list[dict[str, Any]], cells: list[Cell]) -> pd.DataFrame:
    """Return rows as a frame with a `name`; the order of names, and so of colours, is the plan's.

    Args:
        plan: of the study.
        rows: one a record.
        cells: the cell that each is named for.
    """
    if not rows:
        return pd.DataFrame()
    names = dict.fromkeys(name_of(plan, cell) for cell in plan.cells())
    named = [name_of(plan, cell) for cell in cells]
    return pd.DataFrame(rows).assign(name=pd.Categorical(named, categories=list(names)))


def markdown_table(rows: pd.DataFrame) -> str:
    """Return the result table as Markdown, such as the README's; failed checks stand below it."""
    table = summary(rows)
    heads = _heads(table)
    lines = [f"| attack | defense | {' | '.join(heads.values())} |"]
    lines.append(f"|---|---|{'---:|' * len(heads)}")
    for _, row in table.iterrows():
        figures = [cell_text(row, name) for name in heads]
        name = f"{label(row)} {checks.SIGN}" if row["checks"] else label(row)
        lines.append(f"| {' | '.join([row['attack'], name, *figures])} |")
    told = [f"- {checks.SIGN} {line}" for line in checks.listed(rows)]
    return "\n".join([*lines, "", *told] if told else lines)


def text_table(rows: pd.DataFrame) -> str:
    """Return the result table of a study as aligned text."""
    table = summary(rows)
    heads = _heads(table)
    titles = " ".join(f"{head:>12s}" for head in heads.values())
    lines = [f"{'attack':12s} {'defense':22s} {titles} {'change':>8s}"]
    for _, row in table.iterrows():
        change = f"{row['change']:+.1f}" if pd.notna(row["change"]) else "-"
        change = "gated" if row["checks"] else change
        if pd.isna(row["o_c_acc"]):
            change = "failed" if row["failed"] else "not run"
        columns = " ".join(f"{cell_text(row, name):>12s}" for name in heads)
        lines.append(f"{row['attack']:12s} {label(row):22s} {columns} {change:>8s}")
    return "\n".join([*lines, *checks.listed(rows)])


def _heads(table: pd.DataFrame) -> dict[str, str]:
    """Return the columns that a result table shows, and their heads."""
    kept = {name: MEASURED[name].heading for name in FIGURES if MEASURED[name].shown}
    return kept | further_heads(table)


def further_heads(table: pd.DataFrame) -> dict[str, str]:
    """Return the columns beside RA that a summary has figures of, and their heads."""
    known = table.attrs.get("columns", MEASURED)
    measured = table.columns[table.notna().any()]
    return {
        name: column.heading
        for name, column in known.items()
        if column.shown and name not in FIGURES and name in measured
    }


def cell_text(row: pd.Series, name: str) -> str:
    """Return one figure of a summary row: mean, and spread where there are several seeds."""
    if pd.isna(row[name]):
        return APART if row.get("anew") and name in WITHIN else "-"
    spread, places = row[f"{name}_std"], MEASURED[name].decimals if name in MEASURED else 1
    return f"{row[name]:.{places}f}" + (f" ± {spread:.{places}f}" if pd.notna(spread) else "")


def histories(plan: Plan, store: Store, kind: str) -> pd.DataFrame:
    """Return the per-epoch records of every finished stage of one kind, one row an epoch.

    Columns: attack, defense, seed, rho, name (the label in figures), epoch, and what was recorded.
    """
    rows, cells = [], []
    for stage in plan.stages():
        run = store.find(stage.key) if stage.kind == kind else None
        history = checks.kept(store, run).history
        rows += [{**record, **_about(plan, stage.cell)} for record in history]
        cells += [stage.cell] * len(history)
    return _named(plan, rows, cells)


def queries(plan: Plan, store: Store) -> pd.DataFrame:
    """Return QRA, its controls and the optimised triggers over the budget, one row a point.

    Columns: attack, defense, seed, rho, name (the label in figures), perturbation, scored (the
    model that the perturbation meets: "self", "clean", "clean_unseen", "ep" or "backdoored"), eps,
    c_asr, p_asr (percent).
    """
    return _points(plan, store, "queries", scored="self")


def paths(plan: Plan, store: Store) -> pd.DataFrame:
    """Return the errors along every path, one row a point.

    Columns: attack, defense, seed, rho, name (the label in figures), start ("backdoored";
    "purified" for the path to EP), batch_norm, t, backdoor_error, clean_error (percent).
    """
    return _points(plan, store, "paths")


def transfers(plan: Plan, store: Store) -> pd.DataFrame:
    """Return the P-ASR of every QRA perturbation on the other models, one row a pair.

    Columns: attack, seed, source, target, name (the source's label in figures), p_asr (percent).
    """
    table = _points(plan, store, "transfers")
    return table.drop(columns=["defense", "rho"]) if len(table) else table


def _points(plan: Plan, store: Store, curve: str, **unless_said: Any) -> pd.DataFrame:
    rows, cells = [], []
    for stage in plan.stages():
        wanted = isinstance(stage.method, Measure) and stage.method.curve == curve
        run = store.find(stage.key) if wanted else None
        about = {**_about(plan, stage.cell), **unless_said}
        about |= dict(stage.method.about) if run else {}
        for point in checks.kept(store, run).info.get("rows", ()):
            rows.append({**about, **point})
            cells.append(
                stage.cell.but(defense=point["source"]) if "source" in point else stage.cell
            )
    return _named(plan, rows, cells)
