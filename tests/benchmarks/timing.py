"""Time rivals in turn, so that a ratio holds while the machine's speed drifts."""

import platform
import statistics
import time

import torch

from ppr_core.runtime import pick_device, set_threads


def heading(name):
    """Say what is measured, and where."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    threads = set_threads(pick_device("auto"))
    print(f"\n== {name} · torch {torch.__version__} · {device} · threads: {threads}")


def in_turn(rivals, rounds=5):
    """Run each rival once to warm up, then A B C A B C ...; return seconds by name."""
    for run in rivals.values():
        run()
    seconds = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(rivals, items, unit, rounds=5):
    """Print items a second and the median ratio of each rival to the first, pair by pair."""
    seconds = in_turn(rivals, rounds)
    first = next(iter(rivals))
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], times, strict=True))
        speed = items / statistics.median(times)
        print(f"{name:44s} {speed:12,.0f} {unit}/s   {ratio:6.2f} x {first}")
