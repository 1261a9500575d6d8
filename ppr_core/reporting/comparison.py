"""What a person compares in the MLflow UI: a run a cell, means over seeds, and saved views."""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ppr_core.config import digest
from ppr_core.lab.graph import Cell, with_parents
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.runs import ENDED
from ppr_core.lab.store import Run, Store
from ppr_core.lab.study import Study
from ppr_core.reporting import checks, results
from ppr_core.reporting.checks import MARK
from ppr_core.reporting.results import COLOURS, FIGURES, cells, label

EPOCHS = {"p_asr": "asr", "p_c_acc": "c_acc"}  # figures kept with every epoch of RA
FIRST = ("p_asr", "o_asr", "o_c_acc")  # what a comparison of runs shows before all else
ABOUT = ["attack", "defense", "rho", "seed", "dataset", "model", "poison_rate"]
SHARED = "mlflow.sharedViewState."  # how the tags of saved views begin
CELLS = """tags."ppr.kind" = 'cell'"""
EARLIER = "earlier "  # before the kind of what other settings under the same name left
NOTE = f"""Study **{{name}}**: does a purified model keep a sleeping backdoor?

Choose a saved view under **Views**, or filter the runs by `{CELLS}`: one run a cell (attack,
defense, seed). `o_` is after the defense, `p_` after the retuning attack, `q_` under the
query-based one; all in percent. Cells of several seeds stand under a run with mean and spread.
What other settings left under this name is of the kind `{EARLIER}cell`."""


def log_cells(plan: Plan, store: Store) -> None:
    """Keep one MLflow run a finished cell; several seeds under one with their mean and spread."""
    # Two starts of one study take turns: each discards the runs that its own take the place of.
    with store.owned(f"cells-{digest(plan.study.name)[:12]}"):
        _log_cells(plan, store)


def _log_cells(plan: Plan, store: Store) -> None:
    rows = cells(plan, store)
    columns = results.columns_of(rows)
    rows = rows.assign(
        asr_change=rows["p_asr"].astype(float) - rows["o_asr"].astype(float),
        label=rows.apply(label, axis=1),
        last=[plan.last(cell).key for cell in plan.cells()],
        settings=[_settings(plan, cell) for cell in plan.cells()],
    )
    logged = [*columns, "asr_change", "seconds"]
    rows[logged] = rows[logged].astype(float).round(2)  # the UI's columns are narrow
    study = plan.study.name
    shown = [
        name for name in logged if name not in columns or name in FIGURES or columns[name].shown
    ]
    store.describe(study, NOTE.format(name=study), dict(_view(*view, shown) for view in VIEWS))
    names = list(dict.fromkeys(rows["label"]))  # the UI's own colours, of runs' ids, meet often
    rows["colour"] = [COLOURS[names.index(name) % len(COLOURS)] for name in rows["label"]]
    for (attack, name), group in rows[rows["status"] == "done"].groupby(
        ["attack", "label"], sort=False
    ):
        made = [_log_cell(plan, store, row, logged) for _, row in group.iterrows()]
        key = digest(["group", study, attack, name, made])
        tags = {"attack": str(attack), "defense": str(name)}
        mine = group.iloc[0]["settings"]
        if len(made) == 1 or _placed(store, study, key, mine, "group", **tags):
            continue
        run = store.start(
            study,
            f"{attack} / {name} (n={len(made)})",
            tags={**tags, "kind": "group", "key": key, "settings": mine},
            params=_about(group.iloc[0].drop("seed")) | _changes(plan.study),
            dataset=plan.setting.described,
            note=f"Mean and standard deviation (`_std`) of {len(made)} seeds; their cells below.",
        )
        figures = pd.concat([group[logged].mean(), group[logged].std(ddof=1).add_suffix("_std")])
        store.log(run, metrics=figures.dropna().round(2).to_dict())
        store.adopt(run, made)
        store.finish(run)
        store.settled(key, run)


def _log_cell(plan: Plan, store: Store, row: pd.Series, logged: list[str]) -> str:
    """Return the run of a cell; one with older figures makes room for it."""
    figures = {name: row[name] for name in logged if pd.notna(row[name])}
    about = ["cell: epochs, colour", plan.study.name, row["label"], row["last"], figures]
    key = digest([*about, row["checks"]] if row["checks"] else about)
    name = f"{row['attack']} / {row['label']} s{row['seed']}"
    if found := _placed(store, plan.study.name, key, row["settings"], "cell", cell=name):
        return found.info.run_id
    tags = {"kind": "cell", "key": key, "cell": name, "parent": row["last"]}
    tags |= {"settings": row["settings"]}
    tags |= {"no_verdict": row["checks"][:4000]} if row["checks"] else {}
    run = store.start(
        plan.study.name,
        name,
        tags={**tags, "attack": row["attack"], "defense": row["defense"]},
        params=_about(row) | _changes(plan.study),
        dataset=plan.setting.described,
        note=_tell(row),
        colour=row["colour"],
    )
    if "p_asr" in figures:
        before = checks.kept(store, store.held(row["last"])).history[:-1]
        for column, name in EPOCHS.items():  # the last value is the one that tables show
            course = [round(record[name], 2) for record in before]
            figures[column] = [*course, figures[column]]
    first = [name for name in FIRST if name in figures]  # the UI compares runs by these
    store.log(run, metrics={name: figures[name] for name in [*first, *figures]})
    store.finish(run)
    return store.settled(key, run)


def _settings(plan: Plan, cell: Cell) -> str:
    """Return a digest of the settings behind a cell; another version of the code has the same."""
    chain = with_parents([plan.last(cell), *plan.measured(cell).values()])
    return digest([[stage.kind, {**stage.settings, "version": ""}] for stage in chain])[:8]


def _placed(store: Store, study: str, key: str, mine: str, kind: str, **tags: str) -> Run | None:
    """Return the run of a key, where there is one, as that which the views show.

    What the same settings left makes room; what others did is kept, as of an earlier kind.
    """
    found = store.find(key)
    if found and found.data.tags["ppr.kind"] == kind:
        return found
    for name in (kind, EARLIER + kind):
        for old in store.search(study, query=ENDED, kind=name, **tags):
            if old.data.tags.get("ppr.settings", mine) != mine:
                store.log(old.info.run_id, tags={"kind": EARLIER + kind})
            elif not found or found.info.run_id != old.info.run_id:
                store.discard(old.info.run_id)
    if found:
        store.log(found.info.run_id, tags={"kind": kind})
    return found


def _changes(study: Study) -> dict[str, str]:
    """Return what a study changes of its file in params/, as a parameter of its cells."""
    file = ROOT / "params" / f"{study.name}.yaml"
    told = Study.load(file).flat() if file.is_file() else study.flat()
    changed = [f"{k}={v}" for k, v in study.flat().items() if k != "seeds" and v != told.get(k)]
    return {"changes": ", ".join(changed)} if changed else {}


def _tell(row: pd.Series) -> str:
    """Return what a cell's page says first."""
    named = {"before": ("o_asr", "o_c_acc"), "after": ("p_asr", "p_c_acc")}
    says = [
        f"{when} the retuning attack ASR {row[asr]:.1f} %, C-Acc {row[c_acc]:.1f} %"
        for when, (asr, c_acc) in named.items()
        if pd.notna(row[asr])
    ]
    text = f"**{row['attack']} / {row['label']}**, seed {row['seed']}: {'; '.join(says)}."
    if row["checks"]:
        text += f"\n\n**No verdict.** {row['checks'].replace(MARK, ' ')}\n\n"
    if len(says) > 1:
        text += " `p_asr` and `p_c_acc` have a step for each epoch of that attack, 0 before it."
    return text


def _about(row: pd.Series) -> dict[str, Any]:
    """Return what a run is about; charts cut names after ten characters, so "pam 0.5" it is."""
    short = row["label"].replace(" rho ", " ").replace("(oracle)", "oracle")
    return {**row.reindex(ABOUT).dropna(), "defense": short}


def _chart(kind: str, **settings: Any) -> dict[str, Any]:
    """Return one chart as the UI describes it."""
    section = {"uuid": "ppr", "name": "Compare", "display": True, "isReordered": False}
    section |= {"columns": 1, "cardHeight": 480}
    chart = {"uuid": "ppr-chart", "type": kind, "metricSectionId": "ppr", "runsCountToCompare": 100}
    chart |= {"deleted": False, "isGenerated": False, **settings}
    return {"compareRunCharts": [chart], "compareRunSections": [section]}


# Name, filter of the runs, and what else the view sets. MLflow has no public way to save a view of
# its run page: these are the tags that the page itself writes where a person shares one. A version
# that cannot read them shows its default view; runs and metrics are logged by the public API.
VIEWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("cells: every figure", CELLS, {}),
    (
        "cells: parallel coordinates",
        CELLS,
        _chart(
            "PARALLEL",
            selectedParams=["defense"],
            selectedMetrics=["o_c_acc", "o_asr", "p_asr"],
            showAllRuns=True,
        ),
    ),
    (
        "RA: ASR by epoch",
        CELLS,
        _chart(
            "LINE",
            metricKey="p_asr",
            selectedMetricKeys=["p_asr"],
            xAxisKey="step",
            yAxisKey="metric",
            lineSmoothness=0,
            useGlobalLineSmoothing=True,
            useGlobalXaxisKey=True,
        ),
    ),
)


def _view(name: str, query: str, more: dict[str, Any], shown: list[str]) -> tuple[str, str]:
    """Return a saved view of the UI's run page: the tag that holds it, and its text."""
    widths = {f"metrics.`{name}`": max(84, 8 * len(name)) for name in shown}  # all in sight
    columns = list(widths)
    state = {
        "searchFilter": query,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
        **more,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": name, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
    return SHARED + _share(name), json.dumps(view)


def _share(name: str) -> str:
    """Return by what key links name a saved view."""
    return f"ppr{digest(name)[:10]}"


def pages(store: Store, studies: Sequence[str] = ()) -> dict[str, str]:
    """Return, by study, the place in the MLflow UI that shows the table of its cells at once.

    Args:
        store: that holds them.
        studies: names; all of the store's if none are given.
    """
    first = _share(VIEWS[0][0])
    return {
        one.name: f"#/experiments/{one.experiment_id}/runs?workflowType=machine_learning"
        f"&viewStateShareKey={first}"
        for one in store.client.search_experiments()
        if SHARED + first in one.tags and (not studies or one.name in studies)
    }
