"""Notebooks are thin, declare what a study declares, and run."""

import ast
import re

import nbformat
import pandas as pd
import pytest
import yaml

from ppr_core.cli.main import main
from ppr_core.lab import notebooks
from ppr_core.lab.notebooks import declared
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from tests.conftest import TINY_PAM, TINY_STUDY
from tests.lab.test_measures import BATTERY

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@each
def test_it_is_valid_and_stripped(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in code_cells(path):
        assert not cell.outputs
        assert cell.execution_count is None


@each
def test_it_is_thin(path):
    source = "\n".join(cell.source for cell in code_cells(path))
    lines = [line for line in source.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) <= 60
    banned = ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.For | ast.While | ast.Try
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, banned), f"{type(node).__name__} belongs into the package"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"^\.{0,2}/\w", node.value), f"path literal {node.value!r}"


@each
def test_its_parameters_are_few_and_the_studys(path):
    [cell] = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    names = list(declared(path))
    assert names[:2] == ["name", "seeds"] and names[-1] == "overrides" and len(names) <= 6
    assert set(names[:-1]) <= set(Study.model_fields)
    for line in cell.source.splitlines():
        assert line.partition("  # ")[2], f"{line}: what does it mean?"


@each
def test_it_opens_with_a_question_and_asks_before_it_answers(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert "?" in cells[0].source
    words = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "**What do you expect?**" in words


SECTIONS = [path for path in NOTEBOOKS if path.stem[:2] in ("01", "02", "03", "04", "05", "07")]


@pytest.mark.parametrize("path", SECTIONS, ids=lambda path: path.stem)
def test_a_section_has_its_equation_its_symbols_its_code_and_exercises(path):
    cells = nbformat.read(path, as_version=4).cells
    words = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert words.count("$$") >= 2
    assert "| symbol | meaning | in the code |" in words
    assert "## Try it" in words and "**Next:**" in words
    assert any("source(" in cell.source for cell in cells if cell.cell_type == "code")


def test_a_misspelt_parameter_fails_under_plain_papermill(store, tmp_path):
    import papermill

    given = {"name": "tiny", "seedss": [1]}
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'seeds'"):
        papermill.execute_notebook(
            str(NOTEBOOKS[1]), str(tmp_path / "o.ipynb"), given, kernel_name="python3"
        )


def test_source_is_shown_without_its_docstring():
    from ppr_core.defenses.pam import path_gradient
    from ppr_core.lab.section import source

    shown = source(path_gradient).data.removeprefix("```python\n").removesuffix("\n```")
    assert shown.startswith("def path_gradient(") and "value.backward()" in shown
    assert '"""' not in shown and "\n\n\n" not in shown
    ast.parse(shown)


STUDY = {
    **TINY_STUDY,
    "defenses": {
        "ep": {"schedule": {"epochs": 1}},
        "pam": TINY_PAM,
    },
    "rho_grid": [0.0, 0.5],
    "budgets": [0.0, 8 / 255],
    "measures": {
        "query": {"clean": 20, "poisoned": 20, "width": 16, "schedule": {"epochs": 2}},
        "transfer": {},
        "controls": {
            "images": 20,
            "pgd": {"iterations": 2},
            "universal": {"images": 20, "schedule": {"steps": 2}},
        },
        "path": {"points": 3},
        "connection": {},
        "battery": BATTERY,
    },
    "notebooks": [path.stem for path in NOTEBOOKS],
}


def test_a_study_executes_its_notebooks_and_keeps_what_they_make(store, tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    assert main(["study", str(file)]) == 0, capsys.readouterr().err
    for path in NOTEBOOKS:
        [run] = store.search("tiny", kind="notebook", notebook=path.stem)
        assert run.info.status == "FINISHED"
        assert "?\n" in run.data.tags["mlflow.note.content"], "its question"
        copy = nbformat.read(store.artifacts(run.info.run_id, path.name), as_version=4)
        assert any(cell.get("outputs") for cell in copy.cells)
        kept = "tables" if path.stem == "06_claims" else "figures"
        assert list(store.artifacts(run.info.run_id, kept).iterdir())
        for table in store.artifacts(run.info.run_id, "tables").glob("*.csv"):
            if table.stem not in ("4_regression", "6_numbers"):  # too small a study for these
                assert len(pd.read_csv(table)), table.stem
    report = (store.folder / "reports" / "tiny.html").read_text()
    assert report.count("data:image/png;base64,") >= 2 * (len(NOTEBOOKS) - 1)
    before = len(store.search("tiny"))
    assert main(["study", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.count("executed before, nothing has changed") == len(NOTEBOOKS)
    assert len(store.search("tiny")) <= before + 1, "only the report is made anew"
    check_book(store, tmp_path / "book")


def check_book(store, folder):
    """The gallery of the study just executed: every page there, none of another host."""
    assert main(["book", "tiny", "unknown", "--out", str(folder)]) == 0
    assert "unknown" not in {e.name for e in store.client.search_experiments()}
    names = {f"{path.stem}.html" for path in NOTEBOOKS}
    assert names | {"index.html", "api.html", "report-tiny.html", "leaderboard.html"} == {
        path.name for path in folder.glob("*.html")
    }
    pages = {path.name: path.read_text() for path in folder.glob("*.html")}
    for name, html in pages.items():
        assert not re.search(r"""<(script|link|img)[^>]+(src|href)=["']?(https?:)?//""", html), name
        for link in re.findall(r'href="([\w.-]+\.(?:html|png))', html):
            assert (folder / link).is_file(), f"{name} leads to {link}"
    for name in names - {"00_explorer.html", "06_claims.html"}:
        assert "<math" in pages[name], name
    for name in names:
        assert "&lt;Figure" not in pages[name] and "VBox(" not in pages[name], name
        assert "Traceback (most recent call last)" not in pages[name]
    assert pages["index.html"].count("<img") >= len(NOTEBOOKS) - 1
    assert "path_gradient" in pages["05_path_aware_minimization.html"]
    assert "<code>pam</code>" in pages["api.html"] and "<code>rho</code>" in pages["api.html"]
    assert "0. Explorer" in pages["index.html"]


def test_plain_papermill_works_too(store, tmp_path):
    import papermill

    file = {key: value for key, value in STUDY.items() if key != "notebooks"}
    copy = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "02_retuning_attack.ipynb"),
        str(copy),
        {**file, "defenses": {}, "rho_grid": [], "measures": {}},
        kernel_name="python3",
        cwd=str(tmp_path),
        progress_bar=False,
    )
    [run] = store.search("tiny", kind="notebook")
    assert run.info.status == "FINISHED"
    study = {**file, "defenses": {}, "rho_grid": [], "measures": {}}
    assert run.data.tags["ppr.settings"] == Plan(Study(**study)).mark


def test_a_failing_notebook_is_an_honest_exit_code(store, tmp_path, capsys):
    source = nbformat.read(ROOT / "notebooks" / "02_retuning_attack.ipynb", as_version=4)
    source.cells[6].source = "raise ValueError('broken on purpose')"
    broken = tmp_path / "broken.ipynb"
    nbformat.write(source, broken)
    study = tmp_path / "tiny.yaml"
    study.write_text(yaml.safe_dump({**TINY_STUDY, "defenses": {}}))
    assert main(["run", str(broken), "-f", str(study)]) == 1
    assert "broken on purpose" in capsys.readouterr().err
    [run] = store.search("tiny", kind="notebook")
    assert run.info.status == "FAILED"
    assert store.artifacts(run.info.run_id, "broken.ipynb").exists()


def test_notebooks_run_at_once_and_one_that_dies_stops_no_other(store, tmp_path, capsys):
    source = nbformat.read(ROOT / "notebooks" / "02_retuning_attack.ipynb", as_version=4)
    source.cells = source.cells[4:7]  # a note, the parameters, and what stands here
    endings = {
        "dies": "import os; os.write(2, b'out of memory'); os._exit(9)",
        "says": "import os; print(os.environ['PPR_RUN'], os.environ['PPR_COMPUTED'], os.getcwd())",
    }
    for name, code in endings.items():
        source.cells[2].source = code
        nbformat.write(source, tmp_path / f"{name}.ipynb")
    plan = Plan(Study(**TINY_STUDY))
    files = [tmp_path / f"{name}.ipynb" for name in endings]
    assert notebooks.execute_all(files, plan, store) == 1
    assert "out of memory" in capsys.readouterr().err
    [dead] = store.search("tiny", notebook="dies")
    [run] = store.search("tiny", notebook="says")
    assert (dead.info.status, run.info.status) == ("FAILED", "FINISHED")
    copy = nbformat.read(store.artifacts(run.info.run_id, "says.ipynb"), as_version=4)
    assert copy.cells[-1].outputs[0].text.split() == [run.info.run_id, "1", str(ROOT)]


def test_other_code_executes_a_notebook_again(store, tmp_path, capsys, monkeypatch):
    source = nbformat.read(ROOT / "notebooks" / "02_retuning_attack.ipynb", as_version=4)
    source.cells = source.cells[4:6]  # a note, and the parameters
    nbformat.write(source, tmp_path / "short.ipynb")
    plan = Plan(Study(**TINY_STUDY))
    for code, runs in (("one", 1), ("one", 1), ("other", 2)):
        monkeypatch.setattr(notebooks, "code", lambda code=code: code)
        assert notebooks.execute(tmp_path / "short.ipynb", plan, store) == 0
        assert len(store.search("tiny", notebook="short")) == runs
    assert capsys.readouterr().out.count("executed before") == 1
    monkeypatch.undo()
    assert len(notebooks.code()) == 64
