"""What CONTRIBUTING.md shows works as it stands."""

import re
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core import ATTACKS, DATASETS, DEFENSES, MODELS, Architecture, Attack, Field
from ppr_core.attacks.base import State
from ppr_core.lab.places import ROOT
from ppr_core.models.base import Classifier
from tests.conftest import tiny_set

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
KNOWN = {
    known.__name__: known for known in (Architecture, Attack, Classifier, ClassVar, Tensor)
} | {"Field": Field, "State": State, "nn": nn}


def shown():
    """The classes that the page shows."""
    names = dict(KNOWN)
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, names)
    return names


def test_the_attack_poisons():
    attack = shown()["Stripe"](poison_rate=0.25)
    data = tiny_set()
    poisoned = attack.poison(data, seed=0, state={})
    assert len(poisoned.indices) == 12
    assert (poisoned.data.images[poisoned.indices][:, :, 0] == 255).all()
    assert (poisoned.data.labels[poisoned.indices] == 0).all()


def test_the_model_classifies():
    model = shown()["Small"]().build(4, seed=0)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 4)


def test_its_registries_and_folders_exist():
    for name in re.findall(r"`(ppr_core/[\w/]+/|notebooks/\w+/)`", TEXT):
        assert (ROOT / name).is_dir() or name == "ppr_core/lab/measures/", name
    for name, registry in {
        "ATTACKS": ATTACKS, "DEFENSES": DEFENSES, "MODELS": MODELS, "DATASETS": DATASETS
    }.items():  # fmt: skip
        assert f"registered in `{name}`" in TEXT
        assert registry
