"""Train every architecture for one epoch on real images: `python -m tests.benchmarks.architectures
TREE CSV [NAME ...] [--images N] [--lr RATE]`.

TREE is an ImageFolder tree of CIFAR-10. Widths are those of the registry; ConvNeXt and ViT start at
random, without ImageNet weights, and ViT, which sees 224 pixels, takes fewer images. A row tells
what a network is (parameters and state entries, as specified) and that it learns: the loss of the
first and of the last tenth of its steps, C-Acc before and after on held-out images, and images a
second of processor time.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch

from ppr_core.config import from_registry
from ppr_core.data import load
from ppr_core.metrics import clean_accuracy
from ppr_core.models import MODELS
from ppr_core.training.fit import Schedule, fit

IMAGES, FEWER = 4000, {"vit_b_16": 256, "densenet161": 1000}
RECIPE = {"epochs": 1, "weight_decay": 5e-4, "batch_size": 32}


def trial(name, images, count, lr):
    """Return the row of one network, trained on so many images at a rate."""
    spec = from_registry(MODELS, name, "model")
    if hasattr(spec, "pretrained"):
        spec = spec.replace(pretrained=False)
    model = spec.build(images.train.num_classes, seed=0)
    train = images.train.spread(count)
    test = images.test.spread(min(1000, len(train)))
    before, losses = clean_accuracy(model, test), []

    def loss(pixels, labels):
        value = torch.nn.functional.cross_entropy(model(pixels), labels)
        losses.append(float(value.detach()))
        return value

    start = time.process_time()
    fit(model, train, Schedule(**RECIPE, lr=lr), rng=torch.Generator().manual_seed(0), loss=loss)
    spent, tenth = time.process_time() - start, max(1, len(losses) // 10)
    return {
        "model": name,
        "parameters": sum(one.numel() for one in model.parameters()),
        "state_entries": len(model.state_dict()),
        "images": len(train),
        "lr": lr,
        "loss_first": statistics.mean(losses[:tenth]),
        "loss_last": statistics.mean(losses[-tenth:]),
        "c_acc_before": before,
        "c_acc_after": clean_accuracy(model, test),
        "images_per_cpu_second": len(train) / spent,
    }


def main():
    """Print and keep a row a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--images", type=int, help=f"of each; default: {IMAGES}, or {FEWER}")
    parser.add_argument("--lr", type=float, default=0.01)
    asked = parser.parse_args()
    asked.csv.parent.mkdir(parents=True, exist_ok=True)
    wanted = {"name": "folder", "path": str(asked.tree.absolute())}
    images = load(wanted, asked.csv.absolute().parent)
    for name in asked.names:
        row = trial(name, images, asked.images or FEWER.get(name, IMAGES), asked.lr)
        print(row, flush=True)
        new = not asked.csv.exists()
        with asked.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
