"""Pictures of the explorer, the MLflow UI and the dashboard: `make screenshots`.

python -m tests.browser.screenshots [FOLDER]     (notebooks/results/ unless named)
"""

import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ppr_core.errors import ConfigError, DataError, StoreError, need
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reporting import comparison
from tests.browser import driver

STUDY = "params/demo.yaml"
FREQUENT = 128  # colours of a picture that are kept exactly
QUIET_MS = 1500  # in which an animation ends
# Where the sliders stand, and the panel that comes first in the picture.
POSITIONS = {
    "explorer_1": ({"rho": 0, "epsilon": 4, "t": 0.5}, "rho"),
    "explorer_2": ({"rho": 1, "epsilon": 16, "t": 0.9}, "epsilon"),
}
VIEWS = {
    "mlflow_table": "cells: every figure",
    "mlflow_parallel": "cells: parallel coordinates",
    "mlflow_epochs": "RA: ASR by epoch",
}


def main(arguments):
    """Take every picture; return 2 where a user has something to do first."""
    folder = Path(arguments[0] if arguments else ROOT / "notebooks" / "results")
    try:
        plan, store = Plan(Study.load(ROOT / STUDY)), Store()
        check(plan, store)
    except (ConfigError, DataError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PPR_STORE"] = str(store.folder)  # the servers run elsewhere
    comparison.log_cells(plan, store)
    with tempfile.TemporaryDirectory() as scratch, driver.browser() as page:
        for take in (explorer, dashboard, tracked):
            for name, picture in take(page, plan, store, scratch):
                (folder / f"{name}.png").write_bytes(picture)
                print(f"{folder / name}.png {len(picture) / 1000:.0f} kB", flush=True)
    return 0


def check(plan, store):
    """Refuse a machine without a browser, and a store without the finished study."""
    need(driver.missing() is None, f"expected a browser, got none: {driver.missing()}")
    stages = plan.stages()
    done = sum(store.find(stage.key) is not None for stage in stages)
    need(
        done == len(stages),
        f"expected the finished study {plan.study.name} in {store.folder}, got {done} of its "
        f"{len(stages)} stages; run `python -m ppr_core study {STUDY}`",
    )


def explorer(page, plan, store, scratch):
    """Take JupyterLab at two positions of the sliders."""
    page.set_viewport_size({"width": 1280, "height": 1480})
    notebook = driver.explorer_notebook(scratch, {"name": plan.study.name})
    with driver.lab(notebook, scratch) as address:
        driver.open_lab(page, address)
        page.keyboard.press("Control+B")  # no file browser
        driver.run_all(page)
        for name, (places, top) in POSITIONS.items():
            for panel, value in places.items():
                before = driver.says(page, panel)
                driver.put(page, panel, value)
                if not before.startswith(f"{panel} = {value:.2f}"):
                    driver.settled(page, panel, before)
            page.locator("h1").click()  # no cell in sight is marked
            page.locator("h2", has_text=f"{top}: ").evaluate("head => head.scrollIntoView()")
            yield name, shot(page)


def dashboard(page, plan, store, scratch):
    """Take the whole page of Voila."""
    page.set_viewport_size({"width": 1280, "height": 3000})
    notebook = driver.explorer_notebook(scratch, {"name": plan.study.name})
    with driver.voila(notebook, scratch) as address:
        page.goto(address)
        driver.drawn(page)
        last = page.locator(".ppr-t-out").bounding_box()
        clip = {"x": 0, "y": 0, "width": 1280, "height": last["y"] + last["height"]}
        yield "dashboard", shot(page, clip=clip)


def tracked(page, plan, store, scratch):
    """Take the saved views of the MLflow UI, and the page of a run."""
    study = plan.study.name
    runs = store.search(study, kind="cell")
    woken = max(runs, key=lambda run: run.data.metrics.get("asr_change", 0)).info.run_id
    with driver.mlflow_ui(scratch) as address:
        experiment = f"{address}#/experiments/{store.experiment(study)}"
        for name, view in VIEWS.items():
            charts = name != "mlflow_table"
            page.set_viewport_size({"width": 1380, "height": 920 if charts else 760})
            driver.open_runs(page, experiment)
            driver.open_view(page, view, charts)
            plain(page)
            page.get_by_label("Hide banner").click()
            drawn = ".js-plotly-plot .trace, svg text.label" if charts else "[col-id*=o_asr]"
            page.locator(drawn).first.wait_for()
            yield name, shot(page)
        page.set_viewport_size({"width": 1200, "height": 860})
        page.goto("about:blank")
        page.goto(f"{experiment}/runs/{woken}?workflowType=machine_learning")
        page.get_by_text("o_c_acc", exact=True).wait_for()
        plain(page)
        yield "mlflow_run", shot(page)


def plain(page):
    """Fold MLflow's side bar, and hide the button of its assistant, which stands before charts."""
    page.get_by_label("Toggle sidebar").click()
    page.add_style_tag(content="[data-assistant-ui] { display: none }")


def shot(page, **settings):
    """Return what the page shows once it is still, as a small PNG."""
    page.mouse.move(1, 1)
    page.wait_for_timeout(QUIET_MS)
    return small(Image.open(io.BytesIO(page.screenshot(**settings))).convert("RGB"))


def small(picture):
    """Return a picture as a PNG of 256 colours: the frequent ones exactly, others by the nearest.

    Pillow's own search among a palette is too coarse: it would tint white.
    """
    colours, places, counts = np.unique(
        np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    kept = colours[counts.argsort()[: -FREQUENT - 1 : -1]]
    others = picture.quantize(256 - FREQUENT, Image.Quantize.MAXCOVERAGE).getpalette()
    palette = np.vstack([kept, np.reshape(others, (-1, 3))]).astype(np.uint8)
    far = np.linalg.norm(colours[:, None].astype(np.float32) - palette, axis=2)
    indices = far.argmin(1).astype(np.uint8)[places.reshape(-1)]
    shown = Image.fromarray(indices.reshape(picture.height, picture.width), "P")
    shown.putpalette(palette.tobytes())
    shown.save(out := io.BytesIO(), "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
