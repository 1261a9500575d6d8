import os
import pickle
import shutil
import sys

import pandas as pd
import pytest
import torch

from ppr_core.errors import ConfigError
from ppr_core.lab import cluster, engine, reader
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.metrics import triggered
from ppr_core.reporting import results
from tests.conftest import TINY_STUDY


def test_a_worker_says_why_its_stage_failed_whatever_the_device_says_after(store, monkeypatch):
    def broken(*given):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    monkeypatch.setattr(Lab, "result", broken)
    study = Study(**{**TINY_STUDY, "device": "cpu"})
    reason = cluster.compute(Plan(study).stages()[0])
    cluster._lab.cache_clear()
    assert reason == "RuntimeError: CUDA error: an illegal memory access was encountered"


def test_a_stage_arrives_at_a_worker_as_planned_with_its_share_of_a_gpu(store, monkeypatch):
    """What is handed on is the method itself; its key is digested anew where it runs."""
    ray = pytest.importorskip("ray")
    start = ray.init

    def arrived(stage, *before, key):  # in place of a stage: say what Ray gave it
        resources = ray.get_runtime_context().get_assigned_resources()
        found = (os.getpid(), resources, stage.key, key, stage.method)
        return pickle.dumps(found).hex()  # a reason is a text

    monkeypatch.setattr(ray, "init", lambda **given: start(num_gpus=1, num_cpus=1, **given))
    monkeypatch.setattr(cluster, "compute", arrived)
    query = {"width": 8, "clean": 20, "poisoned": 20}
    measures = {"query": query, "query_alone": query, "path": {"points": 3}, "controls": {}}
    plan = Plan(Study(**{**TINY_STUDY, "measures": measures}))
    there = engine.run(plan, Lab(store), "ray", gpu_share=0.25, memory_gb=0.1)
    assert len(there) == len(plan.stages())
    for stage in plan.stages():
        found = pickle.loads(bytes.fromhex(there[stage.name]))
        pid, resources, digested, key, method = found
        assert pid != os.getpid()
        assert (resources["GPU"], resources["memory"]) == (0.25, 1e8)
        assert digested == key == stage.key
        assert (type(method), method) == (type(stage.method), stage.method)


OWN = """
import os, signal
from ppr_core.defenses import Defense

class Dies(Defense):
    def run(self, model, data, *, rng):
        os.kill(os.getpid(), signal.SIGKILL)

class Slips(Defense):
    def run(self, model, data, *, rng):
        raise TypeError("a slip of the code")
"""


@pytest.fixture
def with_own(tmp_path, monkeypatch):
    """A study with a user's own defense, found by this process and by Ray's workers."""
    (tmp_path / "failing.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))

    def plan(cls):
        defenses = {**TINY_STUDY["defenses"], "bad": {"method": f"failing:{cls}"}}
        return Plan(Study(**{**TINY_STUDY, "device": "cpu", "defenses": defenses}))

    return plan


def test_ray_reaches_the_numbers_of_this_process_though_a_worker_dies(
    store, with_own, store_template, tmp_path, capsys
):
    """What kills its worker is a failure of its stage alone."""
    pytest.importorskip("ray")
    plan, dead = with_own("Dies"), "badnet/bad purified s0"
    failures = engine.run(plan, Lab(store), "ray")
    assert failures.pop(dead).startswith("worker died: WorkerCrashedError: ")
    assert f"{dead}  " in capsys.readouterr().out
    assert failures == {"badnet/bad retuned s0": f"needs {dead}, which failed"}
    there = results.cells(plan, store)
    shutil.copytree(store_template, tmp_path / "here")
    plan, local = Plan(Study(**{**TINY_STUDY, "device": "cpu"})), Store(tmp_path / "here")
    assert engine.run(plan, Lab(local)) == {}  # one thread, like a worker
    here, columns = results.cells(plan, local), ["defense", "status", *results.FIGURES]
    alive = there[there["defense"] != "bad"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alive[columns], here[columns])
    assert set(here["status"]) == {"done"}


def test_an_error_of_the_code_in_a_worker_is_not_hidden(store, with_own):
    pytest.importorskip("ray")
    with pytest.raises(TypeError, match="a slip of the code"):
        engine.run(with_own("Slips"), Lab(store), "ray")


@pytest.mark.parametrize(
    ("backend", "share", "message"),
    [("ray", 0.0, "above 0"), ("ray", 1.5, "up to 1"), ("local", 0.5, "add --engine ray")],
)
def test_a_share_that_cannot_be_had_is_refused(store, backend, share, message):
    with pytest.raises(ConfigError, match=message):
        engine.run(Plan(Study(**TINY_STUDY)), Lab(store), backend, share)


def test_test_images_are_stamped_once_for_all_stages_of_a_victim(store, monkeypatch):
    plan, lab, made = Plan(Study(**TINY_STUDY)), Lab(store), []
    stages = {stage.name: stage for stage in plan.stages()}
    lab.result(stages["badnet backdoored s0"])
    monkeypatch.setattr(reader, "triggered", lambda *given: made.append(1) or triggered(*given))
    one, two = (lab.stamped_test(stages[f"badnet/{d} purified s0"]) for d in ("ft", "ep"))
    assert one is two
    assert made == [1]


def test_progress_is_weighted_by_the_images_that_a_stage_trains_on(store):
    plan = Plan(Study(**TINY_STUDY))
    weights = {stage.name: engine.weight(stage) for stage in plan.stages()}
    assert weights["clean s0"] == weights["badnet backdoored s0"] == 0.6  # 300 images, 2 epochs
    assert weights["badnet/ft retuned s0"] == pytest.approx(0.6)
    assert 0 < weights["badnet/ft purified s0"] < weights["badnet/ep purified s0"] * 2
