import shutil
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from ppr_core.errors import ConfigError
from ppr_core.lab import desk as study
from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.metrics import triggered
from ppr_core.reporting import results
from ppr_core.runtime import share_cores
from tests.conftest import TINY_STUDY


def test_ray_reaches_the_numbers_of_this_process(store, store_template, tmp_path):
    plan = Plan(Study(**{**TINY_STUDY, "device": "cpu"}))
    assert engine.run(plan, Lab(store), "ray") == {}
    there = results.cells(plan, store)
    shutil.copytree(store_template, tmp_path / "here")
    local = Store(tmp_path / "here")
    threads = share_cores(64)  # one thread, like a worker: sums in the same order
    assert threads == 1
    for stage in plan.stages():
        Lab(local).result(stage)
    here = results.cells(plan, local)
    columns = ["defense", *results.FIGURES]
    pd.testing.assert_frame_equal(there[columns], here[columns])
    share_cores()


def test_a_worker_says_why_its_stage_failed_whatever_the_device_says_after(store, monkeypatch):
    def broken(*given):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    monkeypatch.setattr(Lab, "result", broken)
    monkeypatch.setattr(engine, "share_cores", lambda processes: 1)
    study = Study(**{**TINY_STUDY, "device": "cpu"})
    reason = engine._remote(study.model_dump(), Plan(study).stages()[0].key)
    engine._desk.cache_clear()
    assert reason == "RuntimeError: CUDA error: an illegal memory access was encountered"


def test_stages_share_a_gpu_as_asked(store, monkeypatch):
    ray = pytest.importorskip("ray")
    start = ray.init

    def assigned(settings, key, *before):  # in place of a stage: say what Ray gave it
        return str(ray.get_runtime_context().get_assigned_resources())

    monkeypatch.setattr(ray, "init", lambda **given: start(num_gpus=1, num_cpus=1, **given))
    monkeypatch.setattr(engine, "_remote", assigned)
    plan = Plan(Study(**TINY_STUDY))
    given = engine.run(plan, Lab(store), "ray", gpu_share=0.25)
    assert len(given) == len(plan.stages())
    assert all("'GPU': 0.25" in resources for resources in given.values())


class InPlaceOfRay:
    """Tasks that run as they are handed on; the stage of one key kills its worker each time."""

    def __init__(self, ray, error, key):
        self.ray, self.error, self.key = ray, error, key

    def put_in(self, monkeypatch):
        for name in ("remote", "wait", "get"):
            monkeypatch.setattr(self.ray, name, getattr(self, name))
        monkeypatch.setattr(self.ray, "init", lambda **given: None)
        monkeypatch.setattr(self.ray, "shutdown", lambda: None)
        monkeypatch.setattr(self.ray, "cluster_resources", dict)

    def remote(self, **options):
        return lambda function: SimpleNamespace(remote=partial(self.hand_on, function))

    def hand_on(self, function, settings, key, *before):
        future, errors = Future(), [parent.exception() for parent in before if parent.exception()]
        if errors:  # Ray gives it to what waits, as an error of both classes
            cause = self.ray.exceptions.RayTaskError("_remote", "its\ntrace", errors[0])
            future.set_exception(cause.as_instanceof_cause())
        elif key == self.key:
            future.set_exception(self.error)
        else:
            future.set_result(function(settings, key, *(parent.result() for parent in before)))
        return future

    def wait(self, futures, num_returns):
        return futures[:1], futures[1:]

    def get(self, future):
        return future.result()


@pytest.mark.parametrize("kind", ["WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"])
def test_a_worker_that_dies_is_its_stages_failure_only(kind, store, monkeypatch, capsys):
    ray = pytest.importorskip("ray")
    plan, ran = Plan(Study(**TINY_STUDY)), []
    stages = {stage.name: stage for stage in plan.stages()}
    dead = "badnet/ft purified s0"
    error = getattr(ray.exceptions, kind)(*([] if "Crashed" in kind else ["killed\nfor memory"]))
    InPlaceOfRay(ray, error, stages[dead].key).put_in(monkeypatch)
    monkeypatch.setattr(engine, "_remote", lambda settings, key, *before: ran.append(key))
    failures = engine.run(plan, Lab(store), "ray")
    text = str(error).splitlines()[0]
    assert failures.pop(dead) == f"worker died: {kind}: {text}"
    assert f"{dead}  " in capsys.readouterr().out
    assert failures["badnet/ft retuned s0"] == f"needs {dead}, which failed"
    assert all(reason.endswith("which failed") for reason in failures.values())
    assert "badnet/ep purified s0" not in failures
    assert len(ran) == len(stages) - 1 - len(failures)


def test_an_error_of_the_code_in_a_worker_is_not_hidden(store, monkeypatch):
    ray = pytest.importorskip("ray")
    plan = Plan(Study(**TINY_STUDY))
    error = ray.exceptions.RayTaskError("_remote", "its trace", TypeError("a slip"))
    InPlaceOfRay(ray, error.as_instanceof_cause(), plan.stages()[0].key).put_in(monkeypatch)
    monkeypatch.setattr(engine, "_remote", lambda settings, key, *before: None)
    with pytest.raises(TypeError, match="its trace"):
        engine.run(plan, Lab(store), "ray")


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
    monkeypatch.setattr(study, "triggered", lambda *given: made.append(1) or triggered(*given))
    one, two = (lab.stamped_test(stages[f"badnet/{d} purified s0"]) for d in ("ft", "ep"))
    assert one is two
    assert made == [1]


def test_progress_is_weighted_by_the_images_that_a_stage_trains_on(store):
    plan = Plan(Study(**TINY_STUDY))
    weights = {stage.name: plan.weight(stage) for stage in plan.stages()}
    assert weights["clean s0"] == weights["badnet backdoored s0"] == 0.6  # 300 images, 2 epochs
    assert weights["badnet/ft retuned s0"] == pytest.approx(0.6)
    assert 0 < weights["badnet/ft purified s0"] < weights["badnet/ep purified s0"] * 2
