"""A series of studies as one page: the paper's tables, figures and claims, ours over its own."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from ppr_core.config import digest
from ppr_core.lab import pages
from ppr_core.lab.series import Entry
from ppr_core.lab.store import Store
from ppr_core.reporting import claims, plots, report, results, tables
from ppr_core.reporting.claims import Verdict
from ppr_core.reporting.evidence import Evidence
from ppr_core.reporting.setting import PAPER
from ppr_core.reporting.tables import Printed

TEMPLATE = "joint.html.j2"


def gather(entries: Sequence[Entry], store: Store) -> Evidence:
    """Return what all studies of a series say, each under the setting that it stands for."""
    first, *further = [entry.plan for entry in entries]
    places = [results.place_of(entry.meant) for entry in entries]
    evidence = claims.gather(first, store, further, places)
    for frame in (evidence.cells, evidence.further):
        frame.attrs = {}  # which pandas copies at every step
    return evidence


def write(
    name: str, entries: Sequence[Entry], store: Store
) -> tuple[Path, list[Printed], list[Verdict]]:
    """Write tables, figures and claims of a series into the store's folder, and log them.

    Args:
        name: of the series, of its folder in reports/, and of its experiment.
        entries: its studies, computed.
        store: that holds their runs.

    Returns:
        The HTML page, which needs nothing beside itself; Tables 1 to 11; the verdict on each claim.
    """
    evidence = gather(entries, store)
    rows = pd.concat([evidence.cells, evidence.further], ignore_index=True)
    other = not (rows["level"] == PAPER).any()
    printed = tables.all_tables(rows, other_scale=other)
    verdicts, figures = claims.scoreboard(evidence), plots.paper_figures(evidence)
    folder = store.folder / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, figure in figures.items():
        png = report.drawn(figure)
        (folder / f"figure{number:02d}.png").write_bytes(png)
        title = f"Figure {number}. {plots.TITLES[number]}"
        pictures.append({"title": title, "source": report.embedded(png)})
    html = (
        pages.environment("ppr_core.reporting")
        .get_template(TEMPLATE)
        .render(
            name=name,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            machine=report.machine(entries[0].plan),
            studies=[entry.plan.study.name for entry in entries],
            scales=sorted(set(rows["scale"].dropna())) if other else [],
            failed=rows[rows["status"] != "done"].to_dict("records"),
            tables=printed,
            figures=pictures,
            undrawn=[number for number in plots.TITLES if number not in figures],
            claims=verdicts,
            tally=claims.tally(verdicts),
            rules=claims.rules()["version"],
        )
    )
    page = folder / "index.html"
    page.write_text(html)
    rows.to_csv(folder / "cells.csv", index=False)
    for kind, suffix in (("markdown", "md"), ("csv", "csv")):
        (folder / f"tables.{suffix}").write_text(tables.joined(printed, kind) + "\n")
    (folder / "claims.md").write_text(claims.markdown(verdicts) + "\n")
    mark = digest([entry.plan.mark for entry in entries])[:12]
    note = f"The paper's tables, figures and claims by these studies.\n\n{claims.tally(verdicts)}."
    files = sorted(path for path in folder.iterdir() if path.is_file())
    with store.owned(f"report-{digest(name)[:12]}"):  # two starts take turns
        report.keep(store, name, mark, files, note)
    return page, printed, verdicts
