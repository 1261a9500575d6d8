"""The price of looking a finished stage up, in a store of a thousand runs."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from ppr_core.lab.store import Store
from ppr_core.method import Result

RUNS = 300


def main():
    """Fill a store, then look results up and read them."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        weights = {f"model.layer{i}": torch.zeros(1000) for i in range(60)}
        for index in range(RUNS):
            run = store.start("bench", f"r{index}", tags={"key": f"k{index}"}, params={"a": index})
            if index == RUNS - 1:
                store.save(run, Result(weights))
            store.finish(run)
        looks, reads = [], []
        for _ in range(20):
            start = time.perf_counter()
            run = store.find(f"k{RUNS - 1}")
            looks.append(time.perf_counter() - start)
            start = time.perf_counter()
            store.load(run)
            reads.append(time.perf_counter() - start)
    print(f"look-up among {RUNS} runs {1000 * statistics.median(looks):6.1f} ms")
    print(f"reading its result     {1000 * statistics.median(reads):6.1f} ms")
