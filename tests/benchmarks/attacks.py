"""Stamping against a per-image loop, adversarial examples, and SSBA's encoder."""

import time

import torch

from ppr_core.attacks import ATTACKS
from ppr_core.attacks.parts.adversarial import pgd
from ppr_core.data.images import to_float
from ppr_core.data.shapes import Shapes
from ppr_core.models import build
from ppr_core.training.fit import Schedule
from tests.benchmarks.timing import compare, in_turn

FEW = 200  # images of the per-image loop


def main():
    """Stamp a training set with every attack; then the two costly preparations."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = 50_000 if device.type == "cuda" else 5_000
    data = Shapes(train=count, test=10).load(None).train.to(device)
    print(f"stamping {count} images at once, against one by one")
    for name, cls in ATTACKS.items():
        attack = cls()
        if attack.preparation() is None and not attack.learns_trigger:
            stamp(name, attack, data.images)
    ssba(data)
    model = build({"name": "resnet18", "width": 64 if device.type == "cuda" else 16}, 10, seed=0)
    model.to(device).eval()
    pixels, labels = to_float(data.images[:256]), data.labels[:256]
    budget = {"eps": 8 / 255, "step": 1.5 / 255, "iterations": 10}
    speed = {"PGD of 10 iterations": lambda: pgd(model, pixels, labels, **budget)}
    compare(speed, len(pixels), "images", rounds=3)


def stamp(name, attack, images):
    """Print images a second, batched and one by one, and their ratio."""

    def one_by_one():
        return [attack.stamp(image[None], stage="test", state={}) for image in images[:FEW]]

    def batched():
        return [attack.stamp(part, stage="test", state={}) for part in images.split(5_000)]

    seconds = in_turn({"loop": one_by_one, "batched": batched}, rounds=3)
    loop, fast = FEW / min(seconds["loop"]), len(images) / min(seconds["batched"])
    print(
        f"{name:20s} {fast:12,.0f} images/s batched, {loop:10,.0f} in a loop: {fast / loop:.1f} x"
    )


def ssba(data):
    """Print what SSBA's fast encoder costs a step, and its whole training by that."""
    steps, attack = 30, ATTACKS["ssba"]()
    few = attack.replace(fast=Schedule(**{**attack.fast.model_dump(), "steps": steps}))
    start = time.perf_counter()
    few.prepare(data.subset(torch.arange(2_000)), rng=torch.Generator().manual_seed(0))
    spent = (time.perf_counter() - start) / steps
    whole = spent * attack.fast.steps
    print(f"SSBA's fast encoder: {1000 * spent:.0f} ms a step, so {whole:.0f} s in all")
