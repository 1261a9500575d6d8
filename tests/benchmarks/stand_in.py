"""How well a scan's stand-in predicts the real wake count, over a study's purified models.

python -m tests.benchmarks.stand_in FILE OUT [SCAN] [NAME=VALUE ...]: a row a model and search,
appended to OUT as it is computed; what OUT has already is not computed again. SCAN: settings of the
scan, as YAML; NAME=VALUE: of the study.
"""

import sys
from pathlib import Path

import pandas as pd
import yaml

from ppr_core.cli.study import read
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reactivation.scan import Scan
from ppr_core.reporting import stand_in
from ppr_core.runtime import pick_device, set_threads


def main(file, out, scan="{}", *pairs):
    """Compute what is missing, then print the correlations over all that is there."""
    set_threads(pick_device("auto"))
    plan, lab, out = Plan(Study(**read(file, list(pairs)))), Lab(Store()), Path(out)
    search = Scan.labelled("scan", yaml.safe_load(scan))
    for stage in stand_in.models(plan, lab):
        done = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=["model", "seed"])
        done = done[(done["model"] == stage.cell.label) & (done["seed"] == stage.cell.seed)]
        missing = [name for name in search.searches if name not in list(done.get("search", []))]
        if not missing:
            continue
        rows = stand_in.wake_counts(stage, lab, search.replace(searches=missing))
        print(rows.to_string(header=False), flush=True)
        if len(rows):  # no search may have found anything
            rows.to_csv(out, mode="a", header=not out.exists(), index=False)
    for found in stand_in.correlations(pd.read_csv(out), plan.study.name):
        print(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
