"""Where a purified model has moved, and which part of it keeps the backdoor asleep.

python -m tests.benchmarks.distances FILE [NAME=VALUE ...]: for every purified model of a study that
the store holds, its L2 distance from the backdoored model by part (a child module), and what the
model does with that part put back to the backdoored model's: ASR, the share of clean images of
other classes that follow, too, and `separation`. An ASR alone would not do: a last layer put back
on features that are no longer its own may send anything to the target.
"""

import copy
import sys
from collections import Counter

from ppr_core.cli.study import read
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.runtime import pick_device, set_threads
from ppr_core.separation import margins, separation


def by_part(start, end):
    """Return the L2 distance of two networks' weights, by child module."""
    squares = Counter()
    for (name, one), other in zip(start.named_parameters(), end.parameters(), strict=True):
        squares[name.partition(".")[0]] += float((one - other).detach().square().sum())
    return {part: total**0.5 for part, total in squares.items()}


def put_back(part, start, end):
    """Return the model at the path's end with one part, statistics included, as at its start."""
    mixed = copy.deepcopy(end)
    mixed.get_submodule(part).load_state_dict(start.get_submodule(part).state_dict())
    return mixed


def told(model, clean, stamped, target):
    """Say what a model does with triggered images, and with clean ones of other classes."""
    share = [100 * float((margins(model, x, target) > 0).float().mean()) for x in (stamped, clean)]
    apart = separation(model, clean, stamped, target)
    return f"ASR {share[0]:.1f}, clean {share[1]:.1f}, separation {apart:.1f}"


def main(file="params/demo.yaml", *pairs):
    """Print a line a model, and one a part of it."""
    set_threads(pick_device("auto"))
    plan, lab = Plan(Study(**read(file, list(pairs)))), Lab(Store())
    for stage in plan.stages():
        if stage.kind != "purified" or not stage.cell.attacked or not lab.cached(stage):
            continue
        start, end = lab.ends(plan.backdoored(stage.cell), stage)
        target, pictures = lab.trigger(stage).target, lab.outside_target(stage)
        print(f"{stage.name}: {told(end, *pictures, target)}")
        for part, far in by_part(start, end).items():
            mixed = told(put_back(part, start, end), *pictures, target)
            print(f"  {part}, {far:.2f} away, put back: {mixed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
