import pytest
import torch

from ppr_core.runtime import autocast, cpu_has_bf16, in_bf16, session, share_cores

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


@pytest.mark.parametrize(("asked", "most"), [("1", 1), ("0", None), ("many", None), ("", None)])
def test_omp_num_threads_is_the_most_that_a_process_takes(asked, most, monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        free = share_cores()
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert share_cores() == torch.get_num_threads() == (most or free)
        monkeypatch.setenv("OMP_NUM_THREADS", "999")
        assert share_cores() == free
    finally:
        torch.set_num_threads(before)
