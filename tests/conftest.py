"""Tiny data and models: every test runs on a CPU in moments."""

import os
import re
import shutil
import sys
import traceback
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ppr_core.config import Settings
from ppr_core.data.images import ImageSet, look_up, picks
from ppr_core.models import build
from ppr_core.training.fit import Schedule

BUDGETS = {"epochs", "steps", "rounds", "iterations", "width"}  # width: of helper networks


def tiny_set(count=48, size=16, classes=4, seed=0):
    """Noise with a class-dependent colour: learnable in a few steps."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 120, (count, 3, size, size), generator=rng)
    images[torch.arange(count), labels % 3] += 30 + 30 * (labels // 3).view(-1, 1, 1)
    names = tuple(f"class{i}" for i in range(classes))
    return ImageSet(images.to(torch.uint8), labels, names)


def batches(data, schedule, *, rng, augment=None):
    """The shuffled batches of one epoch, as `fit` draws them."""
    augment = augment or schedule.augment(data)
    pictures = look_up(data, augment)
    drawn = picks(data, schedule.batch_size, rng=rng, augment=augment)
    return (pictures(*picked) for picked in drawn)


def tiny_model(classes=4, seed=0):
    return build({"name": "resnet18", "width": 4, "blocks": 1}, classes, seed=seed)


def torchvisions(model):
    """The weights of a ResNet under the names that torchvision gives them."""
    names = {"backbone.0.0.": "conv1.", "backbone.0.1.": "bn1.", "linear.": "fc."}
    names |= {f"backbone.{n}.": f"layer{n}." for n in range(1, 5)}
    found = {}
    for name, tensor in model.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        found[names[ours] + name.removeprefix(ours)] = tensor
    return found


def shrink(method: Settings) -> Settings:
    """Cut every budget of a method (and of its groups) to the least that still runs."""
    small = {}
    for name in type(method).model_fields:
        value = getattr(method, name)
        if isinstance(value, Schedule):
            small[name] = value.replace(epochs=1, steps=2, batch_size=16)
        elif isinstance(value, Settings):
            small[name] = shrink(value)
        elif name in BUDGETS or name.split("_")[-1] in BUDGETS:
            small[name] = min(value, 2) if isinstance(value, int) else value
    return method.replace(**small)


def library_example():
    """The README's example, on tiny data."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    [code] = re.findall(r"```python\n(import torch\nfrom ppr_core import.*?)```", readme, re.DOTALL)
    for large, small in (
        ('"train": 10000, "test": 1500', '"train": 200, "test": 60, "size": 16'),
        ("count=1250", "count=60"),
        ('"epochs": 8', '"epochs": 1'),
        ('"steps": 120', '"steps": 2'),
        ('"width": 8', '"width": 4'),
        ("poisoned=10", "poisoned=2"),
    ):
        assert large in code
        code = code.replace(large, small)
    return code


@pytest.fixture
def data():
    return tiny_set()


@pytest.fixture
def model():
    return tiny_model().eval()


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread_for_fixtures():
    """Tiny tensors gain nothing from threads; a bf16 backward with two crashed once."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    """An engine that ran in the test before has set more."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _forgotten(tmp_path_factory):
    """A module that a test wrote is not taken for one of its name that another test writes."""
    before, written = set(sys.modules), str(tmp_path_factory.getbasetemp())
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]


class Recordable(TorchDispatchMode):
    """Refuse what CUDA cannot record, or would replay unchanged: answers to the host, random draws,
    and tensors made from numbers of the host. What the optimizer does here, CUDA's fused one does
    not."""

    waits = {
        "_local_scalar_dense",  # item(), float(), bool()
        "bincount",
        "masked_select",
        "nonzero",
        "_unique2",
        "unique_dim",
        "lift_fresh",  # torch.tensor()
    }

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in self.waits or torch.Tag.nondeterministic_seeded in operation.tags:
            stack = traceback.extract_stack()
            if not any("/optim/" in frame.filename for frame in stack):
                raise AssertionError(f"{name} cannot be captured")
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def recorder(monkeypatch):
    """Record training steps without CUDA, as a graph would: replays call no hooks.

    Returns the number of replays, by recording.
    """
    from ppr_core.runtime import counted
    from ppr_core.training import capture

    replays = []

    def recorded(work, put_back):
        for _ in range(3):
            work()
        put_back()
        with Recordable():
            work()  # as what CUDA does while it records: hooks run, and nothing is computed
        passes = [cost.passes for cost in counted.get()]
        put_back()
        for cost, counts in zip(counted.get(), passes, strict=True):
            cost.passes = counts
        value, index = torch.zeros(()), len(replays)
        replays.append(0)

        def replay():
            passes = [cost.passes for cost in counted.get()]
            value.copy_(work())
            for cost, counts in zip(counted.get(), passes, strict=True):
                cost.passes = counts
            replays[index] += 1

        return value, replay

    monkeypatch.setattr(capture, "_can_capture", lambda optimizer, batch: True)
    monkeypatch.setattr(capture, "_captured", recorded)
    return replays


@pytest.fixture(scope="session")
def store_template(tmp_path_factory):
    """A store made once: creating one costs seconds of migrations, copying it nothing."""
    from ppr_core.lab.store import Store

    folder = tmp_path_factory.mktemp("template") / "mlruns"
    Store(folder)
    return folder


@pytest.fixture
def store(store_template, tmp_path, monkeypatch):
    """A fresh store in a folder of the test's own, also for the processes that it starts."""
    from ppr_core.lab.store import Store

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PPR_STORE", str(tmp_path / "mlruns"))
    monkeypatch.setenv("PPR_DATA", str(tmp_path / "data"))
    shutil.copytree(store_template, tmp_path / "mlruns")
    return Store()


TINY_STUDY = {
    "name": "tiny",
    "dataset": {"name": "shapes", "train": 300, "test": 100, "size": 16},
    "model": {"name": "resnet18", "width": 4, "blocks": 1},
    "training": {"epochs": 2, "batch_size": 50},
    "poison_rate": 0.1,
    "attacks": {"badnet": {}},
    "reserve": 60,
    "defenses": {"ft": {"schedule": {"epochs": 1}}, "ep": {"schedule": {"epochs": 1}}},
    "retuning": {"share": 0.2, "poisoned": 3, "schedule": {"epochs": 2}},
}


@pytest.fixture
def tiny_study():
    from ppr_core.lab.study import Study

    return Study(**TINY_STUDY)


TINY_PAM = {
    "rho": 0.5,
    "rounds": 1,
    "tuning": {"epochs": 1},
    "inversion": {
        "width": 4,
        "pretrain": {"epochs": 1},
        "decouple": {"steps": 2},
        "generate": {"epochs": 1},
    },
}
EXPLORED = {
    **TINY_STUDY,
    "defenses": {
        "ep": {"schedule": {"epochs": 1}},
        "ft": {"schedule": {"epochs": 1}},
        "pam": TINY_PAM,
    },
    "rho_grid": [0.0],
    "budgets": [0.0, 8 / 255],
    "measures": {
        "query": {"clean": 20, "poisoned": 20, "width": 16, "schedule": {"epochs": 2}},
        "path": {"points": 3},
    },
}


@pytest.fixture(scope="session")
def explored(store_template, tmp_path_factory):
    """A store's folder with a tiny study that has all that the explorer shows; read it only."""
    from ppr_core.lab import engine
    from ppr_core.lab.desk import Lab
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.store import Store
    from ppr_core.lab.study import Study
    from ppr_core.reporting import comparison

    folder = tmp_path_factory.mktemp("explored") / "mlruns"
    shutil.copytree(store_template, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PPR_DATA", str(folder.parent / "data"))
        plan, store = Plan(Study(**EXPLORED)), Store(folder)
        assert not engine.run(plan, Lab(store))
        comparison.log_cells(plan, store)
    return folder
