"""Training throughput of `fit`, against its ceiling and against the usual loader loop."""

import copy
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ppr_core.data.images import Augment, to_float
from ppr_core.data.shapes import Shapes
from ppr_core.metrics import logits
from ppr_core.models import build
from ppr_core.runtime import autocast
from ppr_core.training.capture import _compiler as compiler
from ppr_core.training.fit import Schedule, fit, make_optimizer
from tests.benchmarks.timing import compare

BATCH = 128
WIDTHS = (16, 32, 64)
RECIPE = Schedule(epochs=1, batch_size=BATCH, lr=0.01, weight_decay=5e-4, drop_last=True)


class Pictures(Dataset):
    """The usual data set: a PIL picture an item, transformed in the loader."""

    def __init__(self, data):
        self.images = data.images.cpu().permute(0, 2, 3, 1).numpy()
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(np.asarray(self.images[index]))), self.labels[index]


def main():
    """Compare training loops at the field's widths, then augmentation and evaluation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = 20_000 if device.type == "cuda" else 2_560
    data = Shapes(train=count, test=10).load(None).train.to(device)
    for width in WIDTHS:
        some = data if device.type == "cuda" else data.spread(count * WIDTHS[0] // width)
        model = build({"name": "resnet18", "width": width}, 10, seed=0).to(device)
        print(f"training, ResNet-18 of width {width}, batch {BATCH}")
        compare(loops(model, some), len(some) // BATCH * BATCH, "images", rounds=3)

    augment = Augment(data, crop=4, flip=True)
    draws = augment.draw(len(data), torch.Generator().manual_seed(0))
    everything = torch.arange(len(data), device=device)
    parts = list(zip(everything.split(BATCH), draws.split(BATCH), strict=True))
    compare({"augmentation": lambda: [augment(*part) for part in parts]}, count, "images")
    model = build({"name": "resnet18", "width": WIDTHS[0]}, 10, seed=0).to(device)
    compare({"evaluation": lambda: logits(model, data.images)}, count, "images", rounds=3)


def loops(model, data):
    """Return an epoch of each rival: the usual loop, ours, its ceiling; compiled as well."""

    def ours(prepare=lambda net: None):
        net = copy.deepcopy(model)
        prepare(net)
        fit(net, data, RECIPE, rng=torch.Generator().manual_seed(0))

    def ceiling(prepare=lambda net: None):
        """The same step on one batch that never changes: no data pipeline at all."""
        net = copy.deepcopy(model).train()
        prepare(net)
        optimizer = make_optimizer(net.parameters(), RECIPE)
        images, labels = to_float(data.images[:BATCH]), data.labels[:BATCH]
        for _ in range(len(data) // BATCH):
            optimizer.zero_grad()
            with autocast(data.device):
                loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()

    def usual():
        net = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        workers = {"num_workers": 8, "pin_memory": True} if data.device.type == "cuda" else {}
        loader = DataLoader(Pictures(data), BATCH, shuffle=True, drop_last=True, **workers)
        for images, labels in loader:
            images, labels = images.to(data.device), labels.to(data.device)
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

    def compiled(net):
        net.backbone.forward = partial(compiler(), net.backbone)

    return {
        "DataLoader + PIL, fp32": usual,
        "fit: resident uint8, augmented": ours,
        "ceiling: one static batch": ceiling,
        "fit, backbone compiled": lambda: ours(compiled),
        "ceiling, backbone compiled": lambda: ceiling(compiled),
    }
