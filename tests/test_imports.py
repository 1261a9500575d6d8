"""The import direction, and a core that runs without tracking, plots, widgets and clusters."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ppr_core"

# Three floors; a module imports only from those above it, and so from no floor below its own.
CORE = [
    "errors",
    "config",
    "runtime",
    "data",
    "models",
    "training",
    "metrics",
    "weights",
    "alignment",
    "curves",
    "sharpness",
    "behaviour",
    "method",
    "attacks",
    "checkpoints",
    "bench",
    "defenses",
    "reactivation",
    "connectivity",
    "existence",
    "separation",
]
LAB = [
    "lab.places",
    "lab.settings_file",
    "lab.study",
    "lab.marks",
    "lab.guards",
    "lab.database",
    "lab.graph",
    "lab.kept",
    "lab.artifacts",
    "lab.runs",
    "lab.store",
    "lab.dropping",
    "lab.leases",
    "lab.chains",
    "lab.reader",
    "lab.measures",
    "lab.plan",
    "lab.checks",
    "lab.arrivals",
    "lab.desk",
    "lab.turns",
    "lab.cluster",
    "lab.engine",
    "lab.series",
    "lab.costs",
    "lab.section",
    "lab.pages",
    "lab.notebooks",
]
REPORTING = [
    "reporting.setting",
    "reporting.rules",
    "reporting.checks",
    "reporting.results",
    "reporting.findings",
    "reporting.victims",
    "reporting.comparison",
    "reporting.run",
    "reporting.evidence",
    "reporting.paper",
    "reporting.tables",
    "reporting.regression",
    "reporting.claims",
    "reporting.submissions",
    "reporting.tracks",
    "reporting.leaderboard",
    "reporting.judging",
    "reporting.ranking",
    "reporting.boards",
    "reporting.plots",
    "reporting.frames",
    "reporting.drawings",
    "reporting.toy",
    "reporting.captions",
    "reporting.report",
    "reporting.joint",
    "reporting.book",
    "reporting.scanned",
    "reporting.stand_in",
    "explorer",
    "cli.study",
    "cli.paper",
    "cli.foreign",
    "cli.evaluate",
    "cli.scan",
    "cli.judge",
    "cli.book",
    "cli.listings",
    "cli.servers",
    "cli.doctor",
    "cli.main",
    "__main__",
]
ORDER = [*CORE, *LAB, *REPORTING]
ONLY_IMPORTER = {
    "mlflow": {"lab.guards", "lab.database", "lab.artifacts", "lab.runs", "lab.store"},
    "papermill": {"lab.notebooks"},
    "matplotlib": {"reporting.plots", "reporting.toy", "reporting.drawings", "lab.section"},
    "seaborn": {"reporting.plots"},
    "ray": {"lab.cluster"},
    "ipywidgets": {"explorer"},
}
FLOORS = ("lab", "reporting", "cli")  # packages whose modules have places of their own


def module_of(path: Path) -> str:
    return place_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def place_of(name: str) -> str:
    """ "lab.measures.path" -> "lab.measures"; "attacks.parts.cover" -> "attacks"."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in FLOORS else 1])


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "ppr_core":
            names |= {f"ppr_core.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in [f"ppr_core.{f}" for f in FLOORS]:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


BARE = [PACKAGE / floor / "__init__.py" for floor in ("", *FLOORS)]  # docstrings
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path not in BARE]


def test_every_module_has_its_place():
    assert {module_of(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path):
    own = ORDER.index(module_of(path))
    for name in imported(path):
        if name.startswith("ppr_core."):
            other = place_of(name.removeprefix("ppr_core."))
            if other in FLOORS:  # a package's own docstring
                continue
            assert ORDER.index(other) <= own, f"{path.name} imports {name}, which stands below it"


@pytest.mark.parametrize("library", sorted(ONLY_IMPORTER))
def test_only_one_module_imports(library):
    users = {
        module_of(path)
        for path in FILES
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users <= ONLY_IMPORTER[library]


def test_what_only_posix_has_is_imported_where_it_is_there():
    for path in FILES:
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import)]
        names = {alias.name for node in top for alias in node.names}
        assert not names & {"fcntl", "grp", "pwd", "resource", "termios"}, path


def test_the_core_needs_no_tracking_plots_widgets_or_cluster():
    blocked = ["mlflow", "papermill", "matplotlib", "seaborn", "ipywidgets", "ray"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        + "\n".join(f"import ppr_core.{name}" for name in CORE)
        + "\nprint('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


def test_the_benchmarks_of_a_gpu_need_no_store():
    """A GPU server may have torch and little else."""
    blocked = ["mlflow", "papermill", "ipywidgets", "ray"]
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "sys.argv = ['benchmarks', 'gpu', 'no such section']\n"
        "runpy.run_module('tests.benchmarks', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert "unknown section" in done.stderr, done.stderr


def test_files_and_functions_stay_small():
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                start = body[0].lineno if body else node.lineno
                assert node.end_lineno - start < 60, f"{path.name}: {node.name} is too long"
        if module_of(path) in ("attacks", "defenses", "reactivation"):
            assert code_lines(path) <= 150, f"{path} has {code_lines(path)} code lines"


def code_lines(path: Path) -> int:
    """Lines that are neither blank, comment, import nor docstring."""
    source = path.read_text()
    skipped = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            text = node.body[0]
            skipped |= set(range(text.lineno, text.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(
        1 for n, line in lines if n not in skipped and line.strip() and line.strip()[0] != "#"
    )
