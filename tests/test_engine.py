import shutil

import pandas as pd
import pytest

from ppr_core import engine, results
from ppr_core.config import Study
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


def test_progress_is_weighted_by_the_images_that_a_stage_trains_on(store):
    plan = Plan(Study(**TINY_STUDY))
    weights = {stage.name: plan.weight(stage) for stage in plan.stages()}
    assert weights["clean s0"] == weights["badnet backdoored s0"] == 0.6  # 300 images, 2 epochs
    assert weights["badnet/ft retuned s0"] == pytest.approx(0.6)
    assert 0 < weights["badnet/ft purified s0"] < weights["badnet/ep purified s0"] * 2
