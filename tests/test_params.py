import pytest

from ppr_core.cli import ROOT, find_notebook
from ppr_core.config import Study
from ppr_core.plan import Plan

FILES = sorted((ROOT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_file_resolves(path):
    plan = Plan(Study.load(path))
    assert plan.study.name == path.stem
    assert list(plan.cells())
    if plan.study.dataset["name"] == "shapes":
        assert plan.stages()
    assert all(find_notebook(name).exists() for name in plan.study.notebooks)
