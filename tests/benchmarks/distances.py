"""Where a purified model has moved: its L2 distance from the backdoored one, by part.

python -m tests.benchmarks.distances FILE: over the models of a study that the store holds.
"""

import sys
from collections import Counter
from pathlib import Path

from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study


def by_part(start, end):
    """Return the L2 distance of two networks' weights, by child module."""
    squares = Counter()
    for (name, one), other in zip(start.named_parameters(), end.parameters(), strict=True):
        squares[name.partition(".")[0]] += float((one - other).detach().square().sum())
    return {part: total**0.5 for part, total in squares.items()}


def main(file="params/demo.yaml"):
    """Print a line a model."""
    plan, lab = Plan(Study.load(Path(file))), Lab(Store())
    for stage in plan.stages():
        if stage.kind != "purified" or not lab.cached(stage):
            continue
        apart = by_part(*lab.ends(plan.backdoored(stage.cell), stage))
        parts = ", ".join(f"{part} {far:.2f}" for part, far in apart.items())
        print(f"{stage.name}: {parts}")


if __name__ == "__main__":
    main(*sys.argv[1:])
