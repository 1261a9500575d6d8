"""How AC splits each class of the poisoned training sets, and which part the poisons are.

python -m tests.benchmarks.clusters FILE [NAME=VALUE ...]: over the victims that the store holds.
AC flags the smaller part of a class where it is less than `share` of it.
"""

import sys

import torch

from ppr_core.cli.study import read
from ppr_core.defenses.ac import Ac, penultimate, reduced, two_means
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.runtime import pick_device, set_threads


def main(file="params/defenses.yaml", *pairs):
    """Print, for every class: the smaller part's share of it, and the poisons' share of each."""
    set_threads(pick_device("auto"))
    plan, lab, method = Plan(Study(**read(file, list(pairs)))), Lab(Store()), Ac()
    for attack in plan.attacks:
        for seed in plan.study.seeds:
            stage = plan.purified(Cell(attack, "ac", seed))
            victim, images = stage.parents[0], stage.setting.images.train
            if not lab.cached(victim):
                continue
            poisoned = torch.zeros(len(images), dtype=torch.bool)
            poisoned[victim.method.select(images.labels, seed=seed)] = True
            data = lab.training_set(stage)
            features, labels = penultimate(lab.model(victim), data), data.labels.cpu()
            for label in labels.unique().tolist():
                own, rng = labels == label, torch.Generator().manual_seed(seed)
                points = reduced(features[own], method.dims, method.reduction, rng)
                parts = two_means(points, rng)
                smaller = int(parts.bincount(minlength=2).argmin())
                shares = [
                    100 * poisoned[own][parts == k].float().mean() for k in (smaller, 1 - smaller)
                ]
                size = 100 * (parts == smaller).float().mean()
                print(
                    f"{attack} seed {seed} class {label}: smaller part {size:.1f} % of it; poisons "
                    f"{shares[0]:.1f} % of that, {shares[1]:.1f} % of the other"
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
