"""The battery on one model, over the same cells one by one through RA as it stands."""

import os
import time

import torch

from ppr_core.attacks.blended import Blended
from ppr_core.data.shapes import Shapes
from ppr_core.metrics import attack_success_rate, clean_accuracy, triggered
from ppr_core.models import build
from ppr_core.reactivation.battery import Battery
from ppr_core.reactivation.beside import Control
from ppr_core.reactivation.examination import examine
from ppr_core.runtime import pick_device, set_threads

# params/demo.yaml: 500 images, of which ten are poisoned.
DEMO = {"share": 0.05, "poisoned": 10, "schedule": {"batch_size": 64, "crop": 0}}
TINY = {"share": 0.1, "poisoned": 10, "schedule": {"batch_size": 64, "crop": 0}}
IMAGES = 500  # test images of each kind: at 50 % ASR a cell is known to 2 points


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def main():
    """Print the cost of all arms, and of the grid's cells one by one; PPR_FULL=1: at demo scale."""
    full = os.environ.get("PPR_FULL") == "1"
    set_threads(pick_device("auto"))
    battery = Battery(retuning=DEMO if full else TINY, images=IMAGES if full else 100)
    if not full:
        battery = battery.replace(counts=[1, 10], draws=2, epochs=[1, 5], relearn_epochs=[5])
    split = Shapes(train=10_000 if full else 1000, test=1500 if full else 200).load(None)
    train, test = split
    attack = Blended()
    others = train.subset(train.labels != 0).spread(200)
    poisons = others.with_images(attack.stamp(others.images, stage="train", state={}))
    poisons = poisons.with_labels(torch.zeros_like(others.labels))
    given = {
        "poisons": poisons,
        "test": test,
        "stamped": triggered(test, lambda x: attack.stamp(x, stage="test", state={}), 0),
        "originals": others.images,
    }
    models = [build({"name": "resnet18", "width": 16, "blocks": 1}, 10, seed=s) for s in range(2)]
    bench = battery.bench(train, rng=seeded(), **given)
    clock = time.perf_counter()
    cells = battery.grid(bench, models[0])
    together = time.perf_counter() - clock
    clock = time.perf_counter()
    control = Control(models[1], [cell.replace(p_asr=0.0, c_acc=100.0) for cell in cells])
    found, _ = examine(battery, bench, models[0], [control])
    whole = time.perf_counter() - clock
    print(f"{len(found)} cells, all arms: {whole:.1f} s (with one control in the worst cells)")
    clock = time.perf_counter()
    for cell in cells[1:]:
        rng = bench.stream(cell.setting.draw)
        made = battery.tuning(cell.setting)(models[0], train, rng=rng, poisons=poisons)
        attack_success_rate(made.model, given["stamped"])
        clean_accuracy(made.model, test)
    alone = time.perf_counter() - clock
    print(f"the grid's {len(cells)} cells together: {together:.1f} s")
    print(f"the same one by one through RA: {alone:.1f} s, {alone / together:.2f} x as long")
