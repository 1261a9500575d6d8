"""Several trainings at once on one card, over one at a time."""

import contextlib
import multiprocessing
import os
import subprocess
import tempfile
import threading
import time

import torch

from ppr_core.training.fit import fit
from tests.benchmarks.bench import Bench, recipe, seeded


def one_training(device, data, net, epochs):
    """One small training at batch 128, the recording of its step included."""
    size = min(128, len(data) // 2)
    fit(net, data, recipe(size, epochs=epochs), rng=seeded())
    if device.type == "cuda":
        torch.cuda.synchronize()


def worker(device, epochs, ready, times):
    """One process of a pack: warm up, wait for the others, train."""
    torch.set_num_threads(1)
    bench = Bench(device, "packing")
    data = bench.data()
    one_training(bench.device, data, bench.model(), 1)
    ready.wait()
    start = time.time()
    one_training(bench.device, data, bench.model(), epochs)
    times.put((start, time.time()))


def processes(bench, number, epochs):
    """Seconds from the first start to the last end of `number` trainings, a process each."""
    context = multiprocessing.get_context("spawn")
    ready, times = context.Barrier(number), context.Queue()
    given = (str(bench.device), epochs, ready, times)
    pack = [context.Process(target=worker, args=given, daemon=True) for _ in range(number)]
    for process in pack:
        process.start()
    spans = [times.get(timeout=300) for _ in pack]
    for process in pack:
        process.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def streams(bench, number, epochs):
    """The same in threads of this process, a CUDA stream each."""
    data, nets = bench.data(), [bench.model(seed=seed) for seed in range(number)]
    one_training(bench.device, data, bench.model(), 1)

    def train(net):
        stream = torch.cuda.stream(torch.cuda.Stream()) if bench.cuda else contextlib.nullcontext()
        with stream:
            one_training(bench.device, data, net, epochs)

    def together():
        threads = [threading.Thread(target=train, args=(net,)) for net in nets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return bench.seconds(together)


@contextlib.contextmanager
def mps():
    """NVIDIA's multi-process service for what starts inside: kernels of processes overlap."""
    with tempfile.TemporaryDirectory() as folder:
        names = dict.fromkeys(("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"), folder)
        os.environ |= names
        subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
        try:
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False)
            for name in names:
                del os.environ[name]


def packing(bench):
    """Aggregate speed of several trainings at once, over one at a time."""
    epochs = 20 if bench.cuda else 1
    alone = processes(bench, 1, epochs)
    bench.row("one training", bench.scale["count"] * epochs / alone, "images/s")
    ways = {"processes": processes, "streams of one process": streams}
    for way, run in ways.items():
        report(bench, way, run(bench, bench.pack, epochs), alone, epochs)
    if bench.mps:
        with mps():
            report(bench, "processes, MPS", processes(bench, bench.pack, epochs), alone, epochs)


def report(bench, way, seconds, alone, epochs):
    """One row of the packing table."""
    speed = bench.pack * bench.scale["count"] * epochs / seconds
    gain = bench.pack * alone / seconds
    bench.row(f"{bench.pack} {way}", speed, "images/s", f"{gain:.2f} x one at a time")
