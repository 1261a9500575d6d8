"""The wheel, installed into an empty environment, works outside the checkout."""

import ast
import importlib.metadata
import os
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml

from ppr_core.lab import notebooks
from tests.conftest import TINY_STUDY, library_example

CHECKOUT = Path(__file__).parent.parent
SHIPPED = ("ppr_core", "params", "notebooks", "README.md", "LICENSE", "pyproject.toml")


def run(*command, **named):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **named)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy: building leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        path = CHECKOUT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name)
    program = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    run(sys.executable, "-c", program, cwd=source)
    [made] = (source / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel, and beside it what third parties wrote.

    Their folder is a plain entry of its path: the links in it, to a checkout, do not count.
    """
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    own = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    (own / "third_parties.pth").write_text("\n".join(site.getsitepackages()))
    return python


def outside(folder, **more):
    """An environment that leads to no checkout."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("PPR_")}
    return {"cwd": folder, "env": {**kept, "OMP_NUM_THREADS": "1", **more}}


def test_the_library_example_runs_from_the_wheel(installed, tmp_path):
    (tmp_path / "example.py").write_text(
        f"{library_example()}\nimport ppr_core\nprint('from', ppr_core.__file__)\n"
    )
    out = run(installed, "example.py", **outside(tmp_path)).splitlines()
    assert [line.split()[0] for line in out] == ["victim", "O-ASR", "P-ASR", "from"]
    place = Path(out[-1].removeprefix("from "))
    assert place.is_relative_to(installed.parents[1])
    assert (place.parent / "py.typed").is_file()
    assert (tmp_path / "data").is_dir(), "data is kept where one stands"


def test_a_study_finds_the_shipped_files_and_stores_where_one_stands(
    installed, store_template, tmp_path
):
    shutil.copytree(store_template, tmp_path / "mlruns")
    assert "usage: ppr" in run(installed.with_name("ppr"), "--help", **outside(tmp_path))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY_STUDY, "defenses": {}}))
    program = """
from ppr_core.cli.main import main
from ppr_core.lab import notebooks
small = ["-p", "defenses={}", "-p", "measures={}", "-p", "rho_grid=[]"]
assert not main(["study", "demo", "--dry-run", *small])
assert not main(["study", "tiny.yaml", "--no-notebooks"])
print(notebooks.find("06_claims"), notebooks.code())
"""
    *out, last = run(installed, "-c", program, **outside(tmp_path)).splitlines()
    assert "compute  blended backdoored s0" in out
    assert (tmp_path / "mlruns" / "reports" / "tiny.html").is_file()
    found, code = last.split()
    assert Path(found).is_relative_to(installed.parents[1])
    assert code == notebooks.code(), "notebooks are executed again where the package changes"


def test_what_the_wheel_asks_for_is_what_is_imported():
    """Every third-party import is declared; the core's without any extra."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    core = names(project["dependencies"])
    lab = core | names(extras["lab"]) | names(extras["ray"])
    packages = importlib.metadata.packages_distributions()
    floors = ("lab", "reporting", "explorer", "cli")
    for path in sorted((CHECKOUT / "ppr_core").rglob("*.py")):
        inner = path.relative_to(CHECKOUT / "ppr_core").parts[0] in floors
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top == "ppr_core":
                    continue
                known = {name.lower().replace("_", "-") for name in packages.get(top, [top])}
                assert known & (lab if inner else core), f"{path} imports {top}, not declared"


def test_the_pins_cover_what_is_declared():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    pinned = names((CHECKOUT / "requirements.txt").read_text().splitlines())
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        assert names(group) - {"ppr-core"} <= pinned


def names(requirements):
    """`ray>=2.40` -> `ray`."""
    lines = [line.split("#")[0].strip() for line in requirements]
    parts = [line.replace("=", ">").partition(">")[0].partition("[")[0] for line in lines]
    return {part.strip().lower().replace("_", "-") for part in parts if part}
