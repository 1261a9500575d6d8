"""What the GPU benchmarks share: device, sizes, timing, and rows on the screen and in a file."""

import csv
import os
import platform
import time
from pathlib import Path

import torch

from ppr_core.data.shapes import Shapes
from ppr_core.models import build
from ppr_core.training.fit import Schedule

# Dense bf16 peaks by the vendors' data sheets, TFLOP/s; the first name that fits counts.
PEAKS = {
    "B200": 2250,
    "GH200": 990,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165,
    "A10G": 70,
}
FULL = {"count": 10_240, "batches": (128, 512), "epochs": 4}
TINY = {"count": 128, "batches": (16, 32), "epochs": 2}
TINY_WIDTH = {"resnet18": 4, "resnet50": 4, "densenet161": 2}
WIDTH = {"resnet18": 64, "resnet50": 64, "densenet161": 48}


class Bench:
    """The device, how large things are, and the rows so far."""

    def __init__(self, device, section, mps=False, pack=4):
        self.device, self.section, self.mps, self.pack = torch.device(device), section, mps, pack
        self.cuda = self.device.type == "cuda"
        self.scale = FULL if self.cuda else TINY
        self.name = torch.cuda.get_device_name() if self.cuda else platform.processor() or "CPU"
        self.peak = next((1e12 * peak for key, peak in PEAKS.items() if key in self.name), None)

    def model(self, name="resnet18", seed=0):
        """A fresh classifier of this benchmark's size."""
        width = (WIDTH if self.cuda else TINY_WIDTH)[name]
        return build({"name": name, "width": width}, 10, seed=seed).to(self.device)

    def data(self, count=None):
        """Embedded images on the device."""
        return Shapes(train=count or self.scale["count"], test=10).load(None).train.to(self.device)

    def seconds(self, run):
        """What a call takes, the device's work included."""
        wait = torch.cuda.synchronize if self.cuda else lambda: None
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start

    def row(self, what, value, unit, note=""):
        """Print one line, and append it to the file."""
        print(f"{what:46s} {value:12,.4g} {unit:12s} {note}", flush=True)
        if not (file := os.environ.get("PPR_BENCHMARK")):
            return
        new = not Path(file).exists()
        with open(file, "a", newline="") as handle:
            writer = csv.writer(handle)
            if new:
                writer.writerow(["chip", "torch", "section", "what", "value", "unit", "note"])
            chip = [self.name, torch.__version__]
            writer.writerow([*chip, self.section, what, f"{value:.6g}", unit, note])


def recipe(batch, **more):
    """The schedule of every training here."""
    return Schedule(**{"batch_size": batch, "weight_decay": 5e-4, "drop_last": True, **more})


def seeded(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)
