"""One study from its settings to its rows: what a script calls instead of the command line."""

import pandas as pd

from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reporting import comparison, results


def run_study(
    study: Study,
    store: Store | None = None,
    *,
    backend: engine.Backend = "local",
    gpu_share: float = 1.0,
    workers: int | None = None,
) -> pd.DataFrame:
    """Compute what the store does not hold of a study, log its cells, and return them.

    Args:
        study: the settings.
        store: where results are looked up and kept; the default store if not given.
        backend: "local" is this process; "ray" starts Ray or joins RAY_ADDRESS.
        gpu_share: share of a GPU that one stage takes under Ray.
        workers: processes that share the stages; if not given, one a core of a CPU, one of a GPU.

    Returns:
        One row a cell (attack, defense, seed); `status` says what became of it.
    """
    plan, store = Plan(study), store or Store()
    engine.run(plan, Lab(store), backend, gpu_share, workers=workers)
    comparison.log_cells(plan, store)
    return results.cells(plan, store)
