import re
import subprocess
import sys
import time

import psutil
import pytest
import torch

from ppr_core.runtime import (
    autocast,
    cpu_has_bf16,
    free_cores,
    in_bf16,
    rivals,
    session,
    set_threads,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_bf16_is_the_default_on_cuda_and_where_the_processor_has_it():
    with session():
        assert in_bf16(CUDA)
        assert in_bf16(CPU) == cpu_has_bf16()
    with session(precision="fp32"):
        assert not in_bf16(CUDA)
        assert not in_bf16(CPU)
    with session(precision="bf16"):
        assert in_bf16(CPU)


@pytest.mark.parametrize(("precision", "product"), [("bf16", 1.0), ("fp32", 1.001953125)])
def test_a_matrix_product_in_each_precision(precision, product):
    """1 + 2**-9: bf16 keeps 8 binary digits, and so rounds it to 1."""
    one, more = torch.ones(1, 1), torch.full((1, 1), 1 + 2**-9)
    with session(precision=precision), autocast(CPU):
        assert (one @ more).item() == product


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_computes_with_one_thread_unless_omp_num_threads_says_otherwise(monkeypatch):
    before, cores = torch.get_num_threads(), free_cores()
    try:
        for asked, expected in {"1": 1, "2": min(2, cores), "999": cores}.items():
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
            assert set_threads(CPU) == set_threads(GPU) == torch.get_num_threads() == expected
        for asked in ("0", "many", ""):
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
            assert set_threads(GPU) == cores
            assert set_threads(CPU) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="no pinning to cores")
def test_a_busy_rival_is_said():
    own = psutil.Process()
    cores = own.cpu_affinity()
    own.cpu_affinity(cores[:1])
    rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.1)
        assert re.match(r"other processes leave 0\.\d of 1 cores to 2 thread\(s\)", rivals(2))
        assert rivals(0) == ""
    finally:
        own.cpu_affinity(cores)
        rival.kill()
        rival.wait()
