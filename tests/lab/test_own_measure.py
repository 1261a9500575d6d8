"""A measure of a user's own: one file, and every table, metric and listing has it."""

import csv
import io
from pathlib import Path

import pytest
import yaml

from ppr_core.cli.main import main
from ppr_core.errors import ConfigError
from ppr_core.lab.graph import Cell
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from tests.conftest import TINY_STUDY

CODE = '''
from typing import ClassVar

from ppr_core.config import Field
from ppr_core.lab.measures import Column, Measure
from ppr_core.method import Result


class Size(Measure):
    """Return the length of a model's weights."""

    source: ClassVar[str] = "a test"
    columns: ClassVar[tuple[Column, ...]] = (Column("size", "length", "weights", "L2", "lower"),)

    scale: float = Field(2.0, gt=0, description="what the length is multiplied by")

    def measure(self, lab, stage):
        weights = lab.model(stage.parents[0]).parameters()
        return Result(metrics={"length": self.scale * float(sum((w**2).sum() for w in weights))})
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "sizes.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    study = tmp_path / "tiny.yaml"
    ft = {"ft": TINY_STUDY["defenses"]["ft"]}
    study.write_text(yaml.safe_dump({**TINY_STUDY, "defenses": ft, "clean_control": False}))
    return str(study)


def test_one_file_is_all_that_a_measure_takes(file, store, capsys):
    def said(*arguments):
        assert main(list(arguments)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    own = ("--measure", "sizes:Size")
    text = said("study", file, *own, "--no-notebooks")
    assert "weights" in text
    rows = list(csv.DictReader(io.StringIO(said("report", file, *own, "--format", "csv"))))
    [ft] = [row for row in rows if row["defense"] == "ft"]
    figure = f"{float(ft['size']):.1f}"
    assert float(figure) > 0
    assert figure in text
    markdown = said("report", file, *own, "--format", "markdown")
    assert "| weights |" in markdown and figure in markdown
    path = said("report", file, *own, "--format", "html").strip()
    html = Path(path).read_text()
    assert path.endswith("tiny-Size.html")
    assert "<th>weights</th>" in html and f"<td>{figure}</td>" in html
    [run] = [r for r in store.search("tiny", kind="cell") if r.data.params["defense"] == "ft"]
    assert run.data.metrics["size"] == round(float(ft["size"]), 2)
    listed = list(csv.DictReader(io.StringIO(said("list", "measures", *own, "--format", "csv"))))
    assert listed[-1]["name"] == "Size"
    assert listed[-1]["settings"] == "scale=2.0"
    assert said("study", file, *own, "--dry-run").splitlines()[-1].startswith("0 of")


def test_it_may_stand_in_the_studys_file_under_any_label(file):
    def stage(**measures):
        plan = Plan(Study(**{**TINY_STUDY, "measures": measures}))
        return plan.taken("norm", Cell("badnet", "ft", 0))

    one = stage(norm={"method": "sizes:Size"})
    other = stage(norm={"method": "sizes:Size", "scale": 3.0})
    assert (one.kind, one.method.scale, other.method.scale) == ("norm", 2.0, 3.0)
    assert one.key != other.key


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        ({"a": {"method": "sizes:Size"}, "b": {"method": "sizes:Size"}}, "both fill the column"),
        ({"a": {"method": "pathlib:Path"}}, "subclass of Measure"),
        ({"a": {"method": "no.such:Measure"}}, "module:Class"),
        ({"a": {"method": "sizes:Size", "scale": 0.0}}, "greater than 0"),
    ],
)
def test_what_cannot_be_is_refused(file, measures, words):
    with pytest.raises(ConfigError, match=words):
        Plan(Study(**{**TINY_STUDY, "measures": measures}))
