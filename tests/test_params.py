import json
import re
import shlex
from collections import Counter

import pytest

from ppr_core.attacks import ATTACKS
from ppr_core.cli.study import read
from ppr_core.defenses import Bti
from ppr_core.defenses.parts.unlearning import Stepping
from ppr_core.lab import notebooks
from ppr_core.lab.graph import CLEAN, NO_DEFENSE, Cell, Setting
from ppr_core.lab.measures import MEASURES
from ppr_core.lab.places import ROOT, study_file
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study

FILES = sorted((ROOT / "params").glob("*.yaml"))
INDEX = (ROOT / "params" / "README.md").read_text()
COSTS = re.findall(
    r"^\| (\w+)\.yaml .* (\d+) trainings(?: and|,) (\d+) purified", INDEX, re.MULTILINE
)
LATER = re.findall(r"^\| (\w+)\.yaml .*; ([^;]+) after (\w+)\.yaml", INDEX, re.MULTILINE)


FIGURES = dict(re.findall(r"^\| ([\d, to]+) \| `([^`]+)`", INDEX, re.MULTILINE))


def needed(notebook):
    """The measures that a notebook shows."""
    cells = json.loads(notebooks.find(notebook).read_text())["cells"]
    source = "".join(line for cell in cells for line in cell["source"])
    return re.findall(r'section\.need\("(\w+)"\)', source)


def load(name):
    return Plan(Study.load(ROOT / "params" / f"{name}.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_file_resolves(path):
    plan = Plan(Study.load(path))
    assert plan.study.name == path.stem
    assert list(plan.cells())
    if "path" not in type(plan.setting.dataset).model_fields:  # their keys are the content of files
        assert plan.stages()
    assert all(notebooks.find(name).exists() for name in plan.study.notebooks)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_file_says_what_it_costs_and_how_to_run_it(path):
    head = path.read_text().partition("\n\n")[0]
    assert f"params/{path.name}" in head or path.stem == "demo"
    [line] = [line for line in INDEX.splitlines() if line.startswith(f"| {path.name} |")]
    if "# Cost: " in head and "estimate" in line:
        cost = head.partition("# Cost: ")[2].partition("\n# python")[0].replace("\n# ", " ")
        assert cost.rstrip(".") in line, "the index and the file disagree"


def test_each_table_of_the_paper_has_its_file():
    assert {f"table{number:02d}" for number in range(1, 12)} <= {path.stem for path in FILES}


def test_each_figure_of_the_paper_has_its_command():
    named = set()
    for first, last, more in re.findall(r"(\d+)(?: to (\d+))?((?:, \d+)*)", " ".join(FIGURES)):
        named |= {*range(int(first), int(last or first) + 1), *map(int, more.split(", ")[1:])}
    assert named == set(range(1, 17))


@pytest.mark.parametrize(("figure", "command"), FIGURES.items(), ids=list(FIGURES))
def test_a_figure_is_its_table_with_fewer_measures(figure, command):
    table, *_ = words = shlex.split(command)
    assert Study.load(study_file(table)).name == table
    plan = Plan(Study(**read(words[0], words[2::2])))
    there = {stage.key for stage in load(table).stages()}
    assert {stage.key for stage in plan.stages()} <= there, "it costs something after its table"
    assert set(plan.study.measures) <= set(load(table).study.measures)
    [notebook] = plan.study.notebooks
    for measure in needed(notebook):
        assert measure in plan.measures, f"{notebook} needs {measure}"


@pytest.mark.parametrize(("name", "trainings", "purified"), COSTS, ids=[row[0] for row in COSTS])
def test_the_models_it_names_are_those_of_its_plan(name, trainings, purified):
    plan = load(name)
    cells = {(cell.attack, cell.defense, cell.variant) for cell in plan.cells()}
    assert int(trainings) == len(plan.attacks) + any(defense == CLEAN for _, defense, _ in cells)
    assert int(purified) == sum(defense not in (NO_DEFENSE, CLEAN) for _, defense, _ in cells)


@pytest.mark.parametrize(("name", "costs", "first"), LATER, ids=[row[0] for row in LATER])
def test_a_table_costs_only_what_is_its_own_after_another(name, costs, first, monkeypatch):
    # Tiny-ImageNet's key is the content of its files, which are not here.
    monkeypatch.setattr(Setting, "images_key", property(lambda setting: setting.study.dataset))
    there = {stage.key for stage in load(first).stages()}
    new = Counter(stage.kind for stage in load(name).stages() if stage.key not in there)
    if costs == "nothing":
        assert not new
    else:
        count, kind = costs.split()[:2]
        assert new[kind.removesuffix("s")] == int(count)
        assert not set(new) & {"clean", "backdoored", "prepared", "inverted", "query"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bti_trains_its_generator_in_every_round_as_its_own_code_does(path):
    defenses = load(path.stem).defenses.values()
    sources = [method.inversion for method in defenses if isinstance(method, Bti)]
    assert all(source.regenerate_each_round for source in sources)


@pytest.mark.parametrize("name", ["demo", "cifar10_small", "defenses"])
def test_the_small_studies_keep_pam_s_first_generator_as_the_released_code_does(name):
    defenses = load(name).defenses
    stepping = [method for method in defenses.values() if isinstance(method, Stepping)]
    assert stepping
    assert not any(method.inversion.regenerate_each_round for method in stepping)
    found = defenses["bti", None].preparation()
    assert all(method.preparation() == found for method in stepping), "the first round is shared"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_measures_what_its_notebooks_show(path):
    plan = load(path.stem)
    for notebook in plan.study.notebooks:
        for measure in needed(notebook):
            assert measure in plan.measures, f"{notebook} needs {measure}"


def test_the_study_of_every_attack_has_every_attack():
    assert set(load("attacks").attacks) == set(ATTACKS)


def test_files_of_one_model_share_its_stages():
    keys = {}
    for name in ("table03", "table10", "table11"):
        keys[name] = {stage.key for stage in load(name).stages() if stage.kind == "backdoored"}
    assert keys["table03"] == keys["table10"] == keys["table11"]


def test_the_demo_s_track_judges_the_models_of_the_demo():
    demo, track = load("demo"), load("judge_demo")
    for name in demo.study.defenses:
        cell = Cell("blended", name, 0)
        assert demo.purified(cell).key == track.purified(cell).key, f"{name} is purified twice"


def test_anp_stands_twice_and_both_rows_share_their_masks():
    plan = load("table03")
    cells = [Cell("badnet", name, 0) for name in ("anp", "anp_oracle")]
    assert [plan.oracle(cell) for cell in cells] == [False, True]
    honest, oracle = (plan.purified(cell) for cell in cells)
    assert honest.key != oracle.key
    assert honest.parent("inverted").key == oracle.parent("inverted").key


def test_the_index_names_every_measure_and_what_each_needs():
    _, table = INDEX.split("| measure |")
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", table, re.MULTILINE))
    assert set(rows) == {name for name in MEASURES if name != "retuning"}
    for name, cls in MEASURES.items():
        for other in {*cls.reads, cls.like} - {"", "retuning"}:
            assert f"needs `{other}`" in rows[name]
