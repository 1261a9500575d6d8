"""What a GPU makes of the package: training, packing, methods, and bf16 against fp32.

`python -m tests.benchmarks gpu [section ...]`; each section takes less than ten minutes. Rows are
printed, and appended as CSV to the file that PPR_BENCHMARK names.
"""

import argparse
import os
import platform
import statistics

import torch
import torchvision
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from ppr_core.attacks import ATTACKS, Trigger
from ppr_core.connectivity import path
from ppr_core.data.images import to_float
from ppr_core.data.shapes import Shapes
from ppr_core.defenses import DEFENSES
from ppr_core.metrics import evaluate, triggered
from ppr_core.models.base import clone
from ppr_core.reactivation.query import Query
from ppr_core.reactivation.retuning import Retuning
from ppr_core.runtime import session
from ppr_core.training import capture
from ppr_core.training import fit as training
from ppr_core.training.fit import fit, make_optimizer
from ppr_core.weights import snapshot
from tests.benchmarks.bench import Bench, recipe, seeded
from tests.benchmarks.packing import packing
from tests.benchmarks.training import Pictures

# Each adds one thing to the line before it. fp32 convolutions are TF32's, torch's default.
VARIANTS = {
    "eager, fp32, contiguous": {"precision": "fp32", "capture": False, "contiguous": True},
    "+ channels last": {"precision": "fp32", "capture": False},
    "+ bf16": {"precision": "bf16", "capture": False},
    "+ CUDA graph": {"precision": "bf16"},
    "+ algorithms timed (cudnn.benchmark)": {"precision": "bf16", "timed": True},
    "+ compiled": {"precision": "bf16", "timed": True, "compile": True},
}


def throughput(bench, name):
    """Images a second of `fit` by variant, beside the same step on one batch that never changes."""
    data, loader = bench.data(), None
    probe, batch = bench.model(name), to_float(data.images[:2])
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(probe(batch), data.labels[:2]).backward()
    flops = counter.get_total_flops() / 2
    bench.row(f"{name}: operations of a training step", flops / 1e9, "GFLOP/image")
    for size in bench.scale["batches"]:
        if name == "resnet18":
            loader = usual(bench, name, data, size)
            bench.row(f"DataLoader + PIL, batch {size}", loader, "images/s", f"{cores()} cores")
        for variant, settings in VARIANTS.items():
            if settings.get("compile") and not bench.cuda:
                continue
            settings = dict(settings)
            contiguous = settings.pop("contiguous", False)
            torch.backends.cudnn.benchmark = settings.pop("timed", False)
            with session(**settings):
                ours = fitted(bench, name, data, size, contiguous)
                top = ceiling(bench, name, data, size, contiguous)
            note = f"{ours / top:.1%} of its ceiling {top:,.0f}"
            note += f", MFU {ours * flops / bench.peak:.1%}" if bench.peak else ", MFU unknown"
            note += f", {ours / loader:.1f} x DataLoader" if loader else ""
            bench.row(f"{name}, batch {size}, {variant}", ours, "images/s", note)
    torch.backends.cudnn.benchmark = False  # what comes next runs as the package does


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def usual(bench, name, data, size):
    """Images a second of the usual loop in its second epoch: PIL pictures, fp32."""
    net = bench.model(name).to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    workers = {"num_workers": cores(), "pin_memory": True, "persistent_workers": True}
    workers = workers if bench.cuda else {}
    loader = DataLoader(Pictures(data), size, shuffle=True, drop_last=True, **workers)

    def epoch():
        for images, labels in loader:
            images = images.to(bench.device, non_blocking=True)
            labels = labels.to(bench.device, non_blocking=True)
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

    epoch()
    return len(loader) * size / bench.seconds(epoch)


def fitted(bench, name, data, size, contiguous=False):
    """Images a second of `fit`, the best epoch after the first (which warms up and records)."""
    net, hook = bench.model(name), None
    if contiguous:
        net.to(memory_format=torch.contiguous_format)
        hook = lambda images, labels: (images.contiguous(), labels)  # noqa: E731
    how = recipe(size, epochs=bench.scale["epochs"])
    history = fit(net, data, how, rng=seeded(), on_batch=hook)
    best = min(record["seconds"] for record in history[1:])
    return len(data) // size * size / best


def ceiling(bench, name, data, size, contiguous=False):
    """Images a second of the very step of `fit` on one resident batch."""
    net, images = bench.model(name).train(), to_float(data.images[:size])
    if contiguous:
        net, images = net.to(memory_format=torch.contiguous_format), images.contiguous()
    how, batch = recipe(size), (images, data.labels[:size])
    step = capture.Step(
        net,
        training.cross_entropy(net),
        training.plain_gradient,
        make_optimizer(net.parameters(), how),
        load=training._unchanged,
        capturable=training.current().capture,
    )

    def epoch():
        for _ in range(len(data) // size):
            step(batch, how.lr)

    epoch()
    return len(data) // size * size / min(bench.seconds(epoch) for _ in range(2))


# -- methods -----------------------------------------------------------------------------------


def methods(bench):
    """Seconds of defenses, RA, QRA and LMC on a reserve of the paper's size, by kind of step."""
    reserve, epochs = (2_560, 10) if bench.cuda else (64, 1)
    data, model = bench.data(reserve), bench.model().eval()
    size = min(128, reserve // 2)
    tuning = {"epochs": epochs, "batch_size": size}
    trigger = Trigger(ATTACKS["badnet"](), {})
    search = {"pretrain": tuning, "generate": tuning, "decouple": {"steps": 20 * epochs}}
    search |= {} if bench.cuda else {"width": 4}
    poisons = triggered(data, trigger, 0)
    rest = {"retuned": clone(model), "surrogate": clone(model), "triggered": poisons}
    pair = [snapshot(bench.model(seed=seed)) for seed in (0, 1)]
    share = {"share": 1.0, "poisoned": 5, "schedule": tuning}
    asked = {"clean": reserve // 4, "poisoned": reserve // 4, "schedule": tuning}
    runs = {
        "ep": lambda: call(DEFENSES["ep"](schedule=tuning), trigger=trigger),
        "ft_sam": lambda: call(DEFENSES["ft_sam"](schedule=tuning)),
        "fst": lambda: call(DEFENSES["fst"](schedule=tuning)),
        "pam, its inversion included": lambda: call(
            DEFENSES["pam"](rounds=1, tuning=tuning, inversion=search)
        ),
        "RA": lambda: call(Retuning(**share), poisons=poisons),
        "QRA": lambda: call(Query(**asked), **rest),
        "LMC, 21 points": lambda: path(model, *pair, test=data, stamped=poisons),
        "LMC, 21 points one by one": lambda: path(
            model, *pair, test=data, stamped=poisons, together=1
        ),
    }

    def call(method, **named):
        method(model, data, rng=seeded(), **named)

    for name, run in runs.items():
        run()  # algorithms are chosen and memory is taken
        with session(capture=False):
            eager = bench.seconds(run)
        recorded = bench.seconds(run)
        note = f"eager {eager:.2f} s: {eager / recorded:.2f} x; {epochs} epochs of {reserve} images"
        bench.row(name, recorded, "s", note)


# -- numerics ----------------------------------------------------------------------------------


def precision(bench):
    """How far bf16 takes the figures of a seed, beside how far another seed takes them."""
    count, epochs, seeds = (4_000, 15, 5) if bench.cuda else (64, 1, 2)
    split = Shapes(train=count, test=count).load(None)
    train, test = split.train.to(bench.device), split.test.to(bench.device)
    attack = ATTACKS["badnet"](poison_rate=0.05)
    stamped = triggered(test, Trigger(attack, {}), 0)
    figures = {"fp32": [], "bf16": []}
    for kind, found in figures.items():
        for seed in range(seeds):
            net = bench.model(seed=seed)
            how = recipe(min(128, count // 2), epochs=epochs, lr=0.05, decay="cosine")
            poisoned = attack.poison(train, seed=seed, state={}).data
            with session(precision=kind):
                fit(net, poisoned, how, rng=seeded(seed))
                found.append(evaluate(net, test, stamped))
    for name in ("c_acc", "asr"):
        exact, rough = ([record[name] for record in figures[kind]] for kind in figures)
        moved = statistics.mean(abs(a - b) for a, b in zip(exact, rough, strict=True))
        apart = [abs(a - b) for i, a in enumerate(exact) for b in exact[:i]]
        note = f"two seeds of fp32 differ by {statistics.mean(apart):.3f}; mean {exact}"
        bench.row(f"{name}: bf16 from fp32, same seed", moved, "points", note)


SECTIONS = {
    "resnet18": lambda bench: throughput(bench, "resnet18"),
    "resnet50": lambda bench: throughput(bench, "resnet50"),
    "densenet161": lambda bench: throughput(bench, "densenet161"),
    "packing": packing,
    "methods": methods,
    "precision": precision,
}


def main(arguments=()):
    """Run the sections that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks gpu", description=__doc__)
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--device", default="cuda", help="cpu: a tiny run, to see that it works")
    parser.add_argument("--pack", type=int, default=4, help="trainings at once")
    parser.add_argument("--mps", action="store_true", help="also pack under NVIDIA's MPS")
    given = parser.parse_args(arguments)
    if odd := set(given.section) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(odd))}; one of {', '.join(SECTIONS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure (--device cpu tries the code)")
        return 0
    for section in given.section or SECTIONS:
        bench = Bench(given.device, section, given.mps, given.pack)
        cudnn = torch.backends.cudnn.version() if bench.cuda else None
        versions = f"Python {platform.python_version()} · torch {torch.__version__}"
        versions += f" · torchvision {torchvision.__version__} · CUDA {torch.version.cuda}"
        print(f"\n== {section} · {bench.name} · {versions} · cuDNN {cudnn} · {cores()} cores")
        SECTIONS[section](bench)
    return 0
