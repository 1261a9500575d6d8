import shutil

import pandas as pd
import pytest
import torch

from ppr_core import engine, results, study
from ppr_core.config import Study
from ppr_core.errors import ConfigError
from ppr_core.metrics import triggered
from ppr_core.plan import Plan
from ppr_core.runtime import share_cores
from ppr_core.study import Lab
from ppr_core.tracking import Store
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
