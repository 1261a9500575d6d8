"""`import ppr_core` offers what a researcher needs, and costs nothing before it is used."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import ppr_core
from tests.conftest import library_example

HEAVY = {"torch", "mlflow", "numpy", "pandas", "pydantic", "matplotlib"}
DESIGNED = (
    "Attack Defense Measure Field ImageSet Outcome Schedule fit load_data build_model Study "
    "run_study ATTACKS DEFENSES DATASETS MODELS MEASURES"
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import ppr_core"],
        ["-m", "ppr_core", "--help"],
        ["-m", "ppr_core", "study", "--help"],
        ["-m", "ppr_core", "lab", "--help"],
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ppr_core" in loaded
    assert not loaded & HEAVY


def test_what_type_checkers_see_is_what_is_loaded():
    tree = ast.parse(Path(ppr_core.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert seen == ppr_core._PLACES


@pytest.mark.parametrize("name", sorted({*DESIGNED.split(), *ppr_core.__all__}))
def test_every_name_is_there(name):
    places = importlib.util.find_spec("ppr_core.lab.measures").submodule_search_locations
    if "measure" in name.lower() and not places:
        pytest.skip("the measures are not yet files of their own")
    assert getattr(ppr_core, name) is not None
    assert name in dir(ppr_core)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        _ = ppr_core.Nobody


def test_the_library_example_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PPR_DATA", str(tmp_path))
    code = library_example()
    assert len(code.splitlines()) <= 20
    exec(compile(code, "README.md", "exec"), {})
    rates = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(rates) == ["victim", "O-ASR", "P-ASR"]
    assert all(0 <= float(rate) <= 100 for rate in rates.values())


def test_a_study_from_python_gives_a_row_a_cell(store, tiny_study):
    rows = ppr_core.run_study(tiny_study)
    assert list(rows["status"]) == ["done"] * len(rows)
    assert set(rows["defense"]) == {"none", "clean", "ep", "ft"}
    assert len(store.search("tiny", kind="cell")) == len(rows)
