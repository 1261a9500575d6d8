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
    if "path" not in type(plan.dataset).model_fields:  # their keys are the content of files
        assert plan.stages()
    assert all(find_notebook(name).exists() for name in plan.study.notebooks)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_file_says_what_it_costs_and_how_to_run_it(path):
    head = path.read_text().partition("\n\n")[0]
    assert f"params/{path.name}" in head or path.stem == "demo"
    index = (ROOT / "params" / "README.md").read_text()
    [line] = [line for line in index.splitlines() if line.startswith(f"| {path.name} |")]
    if "# Cost: " in head and "estimate" in line:
        cost = head.partition("# Cost: ")[2].partition("\n# python")[0].replace("\n# ", " ")
        assert cost.rstrip(".") in line, "the index and the file disagree"


def test_files_of_one_model_share_its_stages():
    keys = {}
    for name in ("table03", "table10", "table11"):
        plan = Plan(Study.load(ROOT / "params" / f"{name}.yaml"))
        keys[name] = {stage.key for stage in plan.stages() if stage.kind == "backdoored"}
    assert keys["table03"] == keys["table10"] == keys["table11"]


def test_anp_stands_twice_and_both_rows_share_their_masks():
    plan = Plan(Study.load(ROOT / "params" / "table03.yaml"))
    assert (plan.oracle("anp"), plan.oracle("anp_oracle")) == (False, True)
    honest, oracle = (plan.purified("badnet", name, 0) for name in ("anp", "anp_oracle"))
    assert honest.key != oracle.key
    assert honest.parent("inverted").key == oracle.parent("inverted").key
