"""Training throughput of `fit`, against its ceiling and against the usual loader loop."""

import copy

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
from ppr_core.training.fit import Schedule, fit, make_optimizer
from tests.benchmarks.timing import compare

BATCH = 128
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
    """Compare training loops, then augmentation and evaluation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = 20_000 if device.type == "cuda" else 2_560
    width = 64 if device.type == "cuda" else 16
    data = Shapes(train=count, test=10).load(None).train.to(device)
    model = build({"name": "resnet18", "width": width}, 10, seed=0).to(device)

    def ours():
        fit(copy.deepcopy(model), data, RECIPE, rng=torch.Generator().manual_seed(0))

    def ceiling():
        """The same step on one batch that never changes: no data pipeline at all."""
        net = copy.deepcopy(model).train()
        optimizer = make_optimizer(net.parameters(), RECIPE)
        images, labels = to_float(data.images[:BATCH]), data.labels[:BATCH]
        for _ in range(count // BATCH):
            optimizer.zero_grad()
            with autocast(device):
                loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()

    def usual():
        net = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        workers = {"num_workers": 8, "pin_memory": True} if device.type == "cuda" else {}
        loader = DataLoader(Pictures(data), BATCH, shuffle=True, drop_last=True, **workers)
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

    rivals = {
        "DataLoader + PIL, fp32": usual,
        "fit: resident uint8, augmented": ours,
        "ceiling: one static batch": ceiling,
    }
    print(f"training, ResNet-18 of width {width}, batch {BATCH}")
    compare(rivals, count // BATCH * BATCH, "images", rounds=3)

    augment = Augment(data, crop=4, flip=True)
    draws = augment.draw(len(data), torch.Generator().manual_seed(0))
    everything = torch.arange(len(data), device=device)
    parts = list(zip(everything.split(BATCH), draws.split(BATCH), strict=True))
    compare({"augmentation": lambda: [augment(*part) for part in parts]}, count, "images")
    compare({"evaluation": lambda: logits(model, data.images)}, count, "images", rounds=3)
