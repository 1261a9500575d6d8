"""Sessions in float64, and the small model and images that every comparison uses."""

import pytest
import torch

from ppr_core.runtime import session
from tests.conftest import tiny_set
from tests.parity import plain


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch):
    """Full precision is float64 here: what is made without a type, and what `.float()` restores."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    with session(precision="fp32"):
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def data():
    return tiny_set(count=15, size=8, classes=3)


@pytest.fixture
def model(_in_float64):
    return plain.classifier(seed=0)
