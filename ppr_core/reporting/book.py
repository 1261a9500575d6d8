"""The gallery: a static site from executed notebooks, reports, leaderboard and reference pages."""

import inspect
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup

import ppr_core
from ppr_core.attacks import ATTACKS
from ppr_core.config import Settings
from ppr_core.data import DATASETS
from ppr_core.defenses import DEFENSES
from ppr_core.errors import StoreError, need
from ppr_core.lab import pages
from ppr_core.lab.measures import MEASURES
from ppr_core.lab.store import Run, Store
from ppr_core.models import MODELS
from ppr_core.reporting import leaderboard

# The figure that stands for a notebook on the front page; its first one else.
TELLING = {
    "00_explorer": "0_epsilon",
    "01_backdoors": "1_triggers",
    "02_retuning_attack": "2_robustness",
    "05_path_aware_minimization": "5_rho",
    "07_judge": "7_battery",
}
INDEX, API, BOARD = "index.html", "api.html", "leaderboard.html"
REGISTRIES: Mapping[str, Mapping[str, type[Settings]]] = {
    "attacks": ATTACKS,
    "defenses": DEFENSES,
    "datasets": DATASETS,
    "models": MODELS,
    "measures": MEASURES,
}


def build(store: Store, names: Sequence[str], target: Path, submissions: Path) -> Path:
    """Write the site into a folder; return its first page.

    Args:
        store: that holds the executed notebooks.
        names: of studies; one without executed notebooks is left out.
        target: folder; pages of an earlier site are written anew.
        submissions: folder of the leaderboard's JSON files; left out where it has none.

    Raises:
        StoreError: no study has an executed notebook.
    """
    found = {name: executed(store, name) for name in names}
    need(
        any(found.values()),
        f"expected executed notebooks of {', '.join(names)} in {store.folder}, got none; run "
        f"`python -m ppr_core study {names[0]}`",
        StoreError,
    )
    target.mkdir(parents=True, exist_ok=True)
    board = BOARD if any(submissions.glob("*.json")) else ""
    if board:
        leaderboard.write(submissions, target / board)
    studies = [_study(store, name, runs, target) for name, runs in found.items() if runs]
    links = [("Gallery", INDEX)]
    for study in studies:
        links += [(one["title"].partition(":")[0], one["link"]) for one in study["pages"]]
        links += [(f"Report {study['name']}", study["report"])] if study["report"] else []
    links += [("Leaderboard", board)] if board else []
    links += [("Reference", API)]
    for study in studies:
        for one in study["pages"]:
            page = pages.page(one["file"], nav=links, here=one["link"])
            (target / one["link"]).write_text(page)
    made = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    front = _rendered("book.html.j2", studies=studies, board=board, api=API, made=made)
    reference = _rendered("api.html.j2", parts=_reference())
    for name, title, body in (
        (INDEX, "Is a purified model really safe?", front),
        (API, "Reference", reference),
    ):
        (target / name).write_text(pages.framed(title, body, nav=links, here=name))
    return target / INDEX


def executed(store: Store, study: str) -> dict[str, Run]:
    """Return a study's newest executed notebooks, by name in their order."""
    if store.client.get_experiment_by_name(study) is None:
        return {}
    runs = store.search(study, query="attributes.status = 'FINISHED'", kind="notebook")
    newest = {run.data.tags["ppr.notebook"]: run for run in reversed(runs)}
    return {n: newest[n] for n in sorted(newest) if _file(store, newest[n], n).is_file()}


def _file(store: Store, run: Run, notebook: str) -> Path:
    return store.artifacts(run.info.run_id, f"{notebook}.ipynb")


def _study(store: Store, name: str, runs: Mapping[str, Run], target: Path) -> dict[str, Any]:
    """Return what the front page shows of a study; copy its report and a picture a notebook."""
    shown = []
    for notebook, run in runs.items():
        file = _file(store, run, notebook)
        figures = {p.stem: p for p in store.artifacts(run.info.run_id, "figures").glob("*.png")}
        chosen = TELLING.get(notebook, "")
        picture = f"{notebook}.png" if figures else ""
        if figures:
            shutil.copyfile(figures.get(chosen) or figures[min(figures)], target / picture)
        title = pages.title(nbformat.read(file, as_version=4))
        shown.append({"title": title, "link": f"{notebook}.html", "picture": picture, "file": file})
    report, made = f"report-{name}.html", store.folder / "reports" / f"{name}.html"
    if made.is_file():
        shutil.copyfile(made, target / report)
    return {"name": name, "pages": shown, "report": report if made.is_file() else ""}


def _reference() -> list[dict[str, Any]]:
    """Return the front door's names and every registered method, as the reference shows them."""
    offered = [
        _entry(name, value)
        for name in ppr_core.__all__
        if getattr(value := getattr(ppr_core, name), "__module__", "").startswith("ppr_core")
    ]
    parts = [{"name": "ppr_core", "entries": offered}]
    for kind, registry in REGISTRIES.items():
        entries = [_entry(name, cls) for name, cls in registry.items()]
        parts.append({"name": kind, "entries": entries})
    return parts


def _entry(name: str, what: Any) -> dict[str, Any]:
    settings = inspect.isclass(what) and issubclass(what, Settings)
    return {
        "name": name,
        "signature": str(inspect.signature(what)) if inspect.isfunction(what) else "",
        "about": inspect.getdoc(what) or "",
        "source": getattr(what, "source", "") if settings else "",
        "fields": what.describe() if settings else [],
    }


def _rendered(template: str, **values: Any) -> Markup:
    environment = pages.environment("ppr_core.reporting")
    return Markup(environment.get_template(template).render(**values))
