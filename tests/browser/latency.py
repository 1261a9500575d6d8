"""How fast the explorer answers in JupyterLab: `python -m tests.browser.latency`."""

import statistics
import sys
import tempfile
import time

from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from tests.browser import driver
from tests.browser.screenshots import STUDY, check

MOVES = 10


def main():
    """Print the seconds from a key to the panel's new words: median and maximum of each slider."""
    plan, store = Plan(Study.load(ROOT / STUDY)), Store()
    check(plan, store)
    with tempfile.TemporaryDirectory() as scratch, driver.browser() as page:
        notebook = driver.explorer_notebook(scratch, {"name": plan.study.name})
        with driver.lab(notebook, scratch) as address:
            driver.open_lab(page, address)
            driver.run_all(page)
            for name in driver.PANELS:
                taken = [moved(page, name) for _ in range(MOVES)]
                median, worst = 1000 * statistics.median(taken), 1000 * max(taken)
                print(f"{name:8s} median {median:4.0f} ms   max {worst:4.0f} ms", flush=True)


def moved(page, name):
    """Press a key on a slider; return the seconds until its panel says something else."""
    before = driver.says(page, name)
    page.locator(f".ppr-{name} .noUi-handle").focus()
    start = time.perf_counter()
    page.keyboard.press("ArrowLeft")
    driver.settled(page, name, before)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
