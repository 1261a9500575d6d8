"""The MLflow UI on the store: the cell runs, the chart views, an artifact."""

import pytest

from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reporting import comparison, plots, results
from tests.browser import driver
from tests.conftest import EXPLORED


@pytest.fixture(scope="module")
def experiment(page, folder):
    """Serve the UI; give the address of the study's experiment."""
    with driver.mlflow_ui(folder) as address:
        yield f"{address}#/experiments/{Store(folder / 'mlruns').experiment('tiny')}"


def test_the_table_of_cells_is_a_saved_view(page, experiment):
    driver.open_runs(page, experiment)
    driver.open_view(page, "cells: every figure")
    for name in ("badnet / ft s0", "badnet / pam rho 0.5 s0"):
        page.get_by_role("link", name=name, exact=True).wait_for()
    heads = page.locator('[data-testid^="sort-header-"]').all()
    ordered = sorted(heads, key=lambda head: head.bounding_box()["x"])
    assert [head.inner_text() for head in ordered[2:6]] == results.FIGURES
    assert page.get_by_text("badnet/ft retuned s0").count() == 0, "cells only"


def test_the_link_that_ui_prints_shows_that_table_at_once(page, experiment, folder):
    pages = comparison.pages(Store(folder / "mlruns"))
    assert list(pages) == ["tiny"]
    page.goto("about:blank")
    page.goto(experiment.partition("#")[0] + pages["tiny"])
    page.get_by_text("viewing a shared view").wait_for()
    page.get_by_role("link", name="badnet / ft s0", exact=True).wait_for()
    assert page.get_by_text("badnet/ft retuned s0").count() == 0, "cells only"


def test_parallel_coordinates_are_a_saved_view(page, experiment):
    driver.open_runs(page, experiment)
    driver.open_view(page, "cells: parallel coordinates", charts=True)
    axes = page.locator("svg text.label")
    axes.first.wait_for()
    assert axes.all_text_contents() == ["defense", "o_c_acc", "o_asr", "p_asr"]
    assert page.locator("svg text", has_text="pam 0.5").count() == 1


def test_the_epochs_of_ra_are_a_saved_view(page, experiment, folder):
    cells = Store(folder / "mlruns").search("tiny", kind="cell")
    retuned = sum("p_asr" in run.data.metrics for run in cells)
    driver.open_runs(page, experiment)
    driver.open_view(page, "RA: ASR by epoch", charts=True)
    page.locator(".js-plotly-plot .scatterlayer .trace").nth(retuned - 1).wait_for()
    assert page.locator(".js-plotly-plot").count() == 1


def test_a_result_and_a_figure_are_previewed(page, experiment, folder, tmp_path):
    store = Store(folder / "mlruns")
    [run] = store.search("tiny", stage="retuned", defense="ft")
    page.goto(f"{experiment}/runs/{run.info.run_id}/artifacts/result/result.json")
    page.get_by_text('"history"').first.wait_for()
    assert page.get_by_text('"sha256"').first.is_visible()
    rows = results.cells(Plan(Study(**EXPLORED)), store)
    plots.robustness_bars(rows).savefig(tmp_path / "bars.png")
    drawn = store.start("tiny", "drawn", tags={"kind": "notebook"})
    store.attach(drawn, tmp_path / "bars.png", "figures")
    page.goto("about:blank")
    page.goto(f"{experiment}/runs/{drawn}/artifacts/figures/bars.png")
    shown = page.locator("img[src^='blob:'], img[src^='data:'], canvas, .js-plotly-plot").first
    shown.wait_for()
    assert shown.bounding_box()["width"] > 100
