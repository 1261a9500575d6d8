"""Where I-BAU's perturbation leads: to the backdoor's target, or to another weakness.

python -m tests.benchmarks.perturbations FILE: over the models of a study that the store holds.
"""

import sys
from pathlib import Path

import torch

from ppr_core.data.images import to_float
from ppr_core.defenses.ibau import IBau, shifted
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.metrics import EVAL_BATCH
from ppr_core.runtime import pick_device, set_threads


@torch.no_grad()
def led_to(model, data, delta):
    """Count the predictions (classes,) on a set under a perturbation (1, C, H, W)."""
    parts = (shifted(model, to_float(part), delta) for part in data.images.split(EVAL_BATCH))
    return sum(part.argmax(1).bincount(minlength=data.num_classes) for part in parts)


def main(file="params/demo.yaml"):
    """Print, for each of them, what its last perturbation makes of the victim's predictions."""
    set_threads(pick_device("auto"))
    plan, lab = Plan(Study.load(Path(file))), Lab(Store())
    for (label, variant), method in plan.defenses.items():
        if not isinstance(method, IBau):
            continue
        for attack in plan.attacks:
            for seed in plan.study.seeds:
                cell = Cell(attack, label, seed, variant)
                stage = plan.purified(cell)
                if not lab.cached(stage):
                    print(f"{stage.name}: not in this store")
                    continue
                delta = lab.result(stage).tensors["perturbation"].to(plan.device)
                held, target = plan.setting.held(seed).tune, lab.trigger(stage).target
                for name, made in (("victim", plan.backdoored(cell)), (label, stage)):
                    shares = led_to(lab.model(made), held, delta) / len(held)
                    most = int(shares.argmax())
                    told = f"{name} predicts {most} on {shares[most]:.0%} of the reserve"
                    print(f"{stage.name}: {told}, the target {target} on {shares[target]:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
