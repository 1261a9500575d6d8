"""One self-contained HTML file a study: table, figures, settings."""

import base64
import io
import platform
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from markupsafe import Markup

from ppr_core.config import digest
from ppr_core.lab import pages
from ppr_core.lab.marks import commit
from ppr_core.lab.plan import Plan
from ppr_core.lab.runs import ENDED
from ppr_core.lab.store import Store
from ppr_core.reporting import captions, checks, claims, findings, paper, plots, results, tables
from ppr_core.reporting.evidence import Evidence

TEMPLATE = "report.html.j2"
DPI = 110


def write(plan: Plan, store: Store, evidence: Evidence, beside: Sequence[str] = ()) -> Path:
    """Write a study's report into the store's folder, and log it to MLflow.

    That of a store that can only be read goes into a temporary folder, and is not logged.

    Args:
        plan: of the study.
        store: that holds its runs.
        evidence: what its runs say, by `claims.gather`.
        beside: labels of a user's own methods that ran with it: that report has a name of its own,
            and the study's own one stays.

    Returns:
        The path of the HTML file, which needs nothing beside itself.
    """
    rows, verdicts = evidence.cells, claims.scoreboard(evidence)
    red = checks.listed(rows)
    said = [line for line in findings.of_robustness(rows) if line not in red]
    union = pd.concat([rows, evidence.further], ignore_index=True)
    summary = results.summary(rows)
    heads = results.further_heads(summary)
    html = (
        pages.environment("ppr_core.reporting")
        .get_template(TEMPLATE)
        .render(
            study=plan.study.name,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            heads=[*heads.values()],
            table=[_line(row, heads) for _, row in summary.iterrows()],
            seeds=plan.study.seeds,
            red=red,
            findings=[*said, claims.tally(verdicts) + "."],
            claims=verdicts,
            rules=claims.rules()["version"],
            tables=[table for table in tables.all_tables(union) if table.filled[0]],
            numbers=[_beside(row) for _, row in paper.compare(union, other_scale=True).iterrows()],
            figures=_figures(plan, store, evidence),
            settings=yaml.safe_dump(plan.study.model_dump(), sort_keys=False),
            failed=rows[rows["status"] != "done"].to_dict("records"),
            machine=machine(plan),
        )
    )
    name = "-".join([plan.study.name, *beside])
    if store.readonly:
        path = Path(tempfile.mkdtemp(prefix="ppr-report-")) / f"{name}.html"
        path.write_text(html)
        return path
    path = store.folder / "reports" / f"{name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    note = "\n\n".join(["The report of this study, one HTML file.", *red, *said])
    with store.owned(f"report-{digest(name)[:12]}"):  # two starts take turns
        path.write_text(html)
        keep(store, plan.study.name, plan.mark, [path], note)
    return path


def keep(store: Store, experiment: str, mark: str, files: Iterable[Path], note: str) -> None:
    """Log a report's files under a run, in place of an older one of the same studies.

    Args:
        store: that holds the runs.
        experiment: of the run.
        mark: digest of what the report is about.
        files: of the report.
        note: shown on the run's page.
    """
    tags = {"kind": "report", "settings": mark}
    for old in store.search(experiment, query=ENDED, **tags):
        store.discard(old.info.run_id)
    run = store.start(experiment, "report", tags=tags, note=note)
    for path in files:
        store.attach(run, path)
    store.finish(run)


def _line(row: "results.pd.Series", heads: Iterable[str]) -> dict[str, Any]:
    figures = {name: results.cell_text(row, name) for name in results.FIGURES}
    change = row["change"]
    woken = change == change and change >= results.WOKEN_BY
    told = f"{change:+.1f}" if change == change else ""
    return {
        "attack": row["attack"],
        "defense": results.label(row),
        "change": "no verdict" if row["checks"] else told,
        "mark": "woken" if woken or row["checks"] else "",
        "further": [results.cell_text(row, name) for name in heads],
        **figures,
    }


def _beside(row: "results.pd.Series") -> list[str]:
    """Return a number of the paper beside ours, as texts; no spread where there is one seed."""
    figures = [f"{row[name]:.2f}" for name in ("paper", "ours")] + [f"{row['difference']:+.2f}"]
    rho = f" rho {row['rho']:g}" if row["rho"] == row["rho"] else ""
    spread = f"{row['spread']:.2f}" if row["spread"] == row["spread"] else "-"
    about = [f"{row['table']}", row["attack"], f"{row['defense']}{rho}", row["figure"]]
    return [*about, *figures, spread, row["scale"]]


def _figures(plan: Plan, store: Store, evidence: Evidence) -> list[dict[str, str]]:
    """Return the newest figures of each notebook, executed for this very study, as data URIs.

    The explorer's come last. With further studies, the paper's figures are those of the union.
    """
    figures = []
    union = bool(len(evidence.further))
    for notebook in sorted(plan.study.notebooks, key=lambda name: name.startswith("00")):
        runs = store.search(
            plan.study.name,
            query="attributes.status = 'FINISHED'",
            kind="notebook",
            notebook=notebook,
            settings=plan.mark,
        )
        if not runs:
            continue
        for path in sorted(store.artifacts(runs[0].info.run_id, "figures").glob("*.png")):
            if union and captions.of_the_paper(path.stem):
                continue
            title = captions.caption(path.stem, evidence)
            source = embedded(path.read_bytes())
            figures.append({"title": title, "notebook": notebook, "source": source})
    for number, figure in plots.paper_figures(evidence).items() if union else ():
        title = f"The paper's Figure {number}, from this study and those beside it."
        figures.append({"title": title, "notebook": "union", "source": embedded(drawn(figure))})
    return figures


def drawn(figure: plots.Figure) -> bytes:
    """Return a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight")
    return file.getvalue()


def embedded(png: bytes) -> Markup:
    """Return a picture as a page holds it in itself."""
    return Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}")


def machine(plan: Plan) -> str:
    """Return what a page says of where it was made."""
    device = torch.cuda.get_device_name() if plan.device.type == "cuda" else "CPU"
    python = platform.python_version()
    return f"{device}, torch {torch.__version__}, Python {python}, commit {commit()[:12]}"
