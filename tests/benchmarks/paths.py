"""LMC and the epsilon sweep, against one full evaluation a point."""

import copy

import torch

from ppr_core.attacks import ATTACKS, Trigger
from ppr_core.connectivity import path
from ppr_core.data.shapes import Shapes
from ppr_core.metrics import evaluate, triggered
from ppr_core.models import build
from ppr_core.reactivation.perturbation import aimed, along, success_rates, within
from ppr_core.weights import interpolate, snapshot
from tests.benchmarks.timing import compare


def main():
    """Time both on a model of the study's size."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count, width = (10_000, 64) if device.type == "cuda" else (600, 16)
    test = Shapes(train=10, test=count).load(None).test.to(device)
    models = [build({"name": "resnet18", "width": width}, 10, seed=s).to(device) for s in (0, 1)]
    states = [snapshot(model.eval()) for model in models]
    stamped = triggered(test, Trigger(ATTACKS["badnet"](), {}), 0)

    def naive():
        for index in range(21):
            net = copy.deepcopy(models[0])
            net.load_state_dict(interpolate(*states, index / 20))
            evaluate(net, test, stamped)

    rivals = {
        "LMC, a copied model a point": naive,
        "LMC": lambda: path(models[0], *states, test=test, stamped=stamped),
    }
    compare(rivals, 21, "points", rounds=3)
    direction = torch.rand(1, *test.images.shape[1:], device=device) * 2 - 1
    budgets = [2 * step / 255 for step in range(9)]
    clean = aimed(test, 0)

    def loop():
        for eps in budgets:
            moved = clean.images.float() / 255
            moved = (255 * within(moved, direction, eps)).round().to(torch.uint8)
            evaluate(models[0], clean.with_images(moved), stamped)

    def swept():
        perturb = along(lambda images: direction)
        for part in (clean, stamped):
            success_rates({"": models[0]}, part, perturb, budgets)

    rivals = {"epsilon sweep, a budget at a time": loop, "epsilon sweep": swept}
    compare(rivals, len(budgets), "budgets", rounds=3)
