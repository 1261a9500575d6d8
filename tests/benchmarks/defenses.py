"""Every core defense on one reserve, beside the plain way to write its step."""

import copy
import time

import torch
from torch.nn import functional as F

from ppr_core.attacks import ATTACKS, Trigger
from ppr_core.data.images import to_float
from ppr_core.data.shapes import Shapes
from ppr_core.defenses import DEFENSES
from ppr_core.models import build
from ppr_core.runtime import autocast
from ppr_core.training import Schedule, make_optimizer
from tests.benchmarks.timing import compare

BATCH = 128
ONE = {"epochs": 1, "steps": None, "batch_size": BATCH, "crop": 0, "flip": False}


def main():
    """Time one epoch of each tuning; methods without a plain rival print their seconds alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count, width = (10_240, 64) if device.type == "cuda" else (640, 16)
    data = Shapes(train=count, test=10).load(None).train.to(device)
    model = build({"name": "resnet18", "width": width}, 10, seed=0).to(device).eval()
    trigger = Trigger(ATTACKS["blended"](), {})

    def run(name, named, **settings):
        method = DEFENSES[name](**settings)
        return lambda: method(model, data, rng=torch.Generator().manual_seed(0), **named)

    pairs = {
        "ep": (run("ep", {"trigger": trigger}, schedule=ONE), plain(model, data, cross_entropy)),
        "ft_sam": (run("ft_sam", {}, schedule=ONE), plain(model, data, sam)),
        "fst": (run("fst", {}, schedule=ONE), plain(model, data, shift(model))),
    }
    for name, (ours, theirs) in pairs.items():
        compare({f"{name}, step written plainly": theirs, name: ours}, count, "images", rounds=3)
    inversion = {
        "width": 8,
        "pretrain": {"epochs": 1, "batch_size": BATCH},
        "decouple": {"steps": 5, "batch_size": BATCH},
        "generate": {"epochs": 1, "batch_size": BATCH},
        "regenerate_each_round": False,
    }
    pam = DEFENSES["pam"](rounds=1, inversion=inversion, tuning=ONE)
    state = pam.prepare(model, data, rng=torch.Generator().manual_seed(0))
    ours = run("pam", {"state": state}, rounds=1, inversion=inversion, tuning=ONE)
    moved = plain(model, data, path_aware(model))
    compare({"pam, by two deep copies a step": moved, "pam": ours}, count, "images", rounds=3)
    for name, settings in {
        "ibau": {"schedule": {**ONE, "lr": 1e-3}},
        "anp": {"schedule": {"steps": 10, "batch_size": BATCH}},
        "bti": {"rounds": 1, "inversion": inversion, "tuning": ONE},
    }.items():
        alone(name, DEFENSES[name](**settings), model, data)


def alone(name, method, model, data):
    """Print the seconds and passes of a method."""
    named, start = {}, time.perf_counter()
    if method.preparation() is not None:
        named["state"] = method.prepare(model, data, rng=torch.Generator().manual_seed(0))
    if name == "anp":
        named["validation"] = data.subset(torch.arange(256))
    cost = method(model, data, rng=torch.Generator().manual_seed(0), **named).cost
    seconds = time.perf_counter() - start
    print(f"{name:44s} {seconds:6.1f} s in all, {cost.images / cost.seconds:,.0f} images/s forward")


def plain(model, data, step):
    """Return the usual loop: a permutation, slices of it, zero_grad, step."""

    def loop():
        net = copy.deepcopy(model).train()
        optimizer = make_optimizer(net.parameters(), Schedule(lr=0.01))
        order = torch.randperm(len(data), device=data.device)
        for part in order.split(BATCH):
            optimizer.zero_grad()
            step(net, to_float(data.images[part]), data.labels[part])
            optimizer.step()

    return loop


def cross_entropy(net, images, labels):
    """A plain training step."""
    with autocast(images.device):
        loss = F.cross_entropy(net(images), labels)
    loss.backward()


def sam(net, images, labels):
    """SAM by a deep copy: gradients are taken on the copy and handed back."""
    cross_entropy(net, images, labels)
    copied = copy.deepcopy(net)
    length = sum(p.grad.norm() ** 2 for p in net.parameters()).sqrt()
    with torch.no_grad():
        for there, here in zip(copied.parameters(), net.parameters(), strict=True):
            there += here.grad / length
    copied.zero_grad()
    cross_entropy(copied, images, labels)
    for there, here in zip(copied.parameters(), net.parameters(), strict=True):
        here.grad = there.grad


def shift(start):
    """FST's loss, its head's norm restored after the step by hand."""
    old, length = start.linear.weight.detach().clone(), start.linear.weight.norm()

    def step(net, images, labels):
        with torch.no_grad():
            net.linear.weight.mul_(length / net.linear.weight.norm())
        with autocast(images.device):
            loss = F.cross_entropy(net(images), labels) + 0.1 * (net.linear.weight * old).sum()
        loss.backward()

    return step


def path_aware(start):
    """PAM's step by deep copies of both models, as its algorithm is written."""

    def step(net, images, labels):
        home, there = copy.deepcopy(start), copy.deepcopy(net)
        pairs = zip(home.parameters(), net.parameters(), strict=True)
        back = [a.detach() - b.detach() for a, b in pairs]
        length = sum(part.norm() ** 2 for part in back).sqrt() + 1e-12
        with torch.no_grad():
            for parameter, part in zip(there.parameters(), back, strict=True):
                parameter += 0.5 * part / length
        there.zero_grad()
        cross_entropy(there, images, labels)
        for moved, here in zip(there.parameters(), net.parameters(), strict=True):
            here.grad = moved.grad

    return step
