"""`ppr judge` and `ppr leaderboard`, on a tiny track and a user's own file."""

import re

import pytest
import yaml
from safetensors.torch import save_file

from ppr_core.cli.main import main
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting import leaderboard
from tests.conftest import TINY_STUDY
from tests.lab.test_measures import BATTERY

MINE = """
from ppr_core import Defense, Field, Outcome

class MyDefense(Defense):
    '''Leave the model as it is.'''

    strength: float = Field(1.0, description="of nothing")

    def run(self, model, data, *, rng):
        return Outcome(model)
"""


@pytest.fixture
def track(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "track.yaml"
    path.write_text(yaml.safe_dump({**TINY_STUDY, "measures": {"battery": BATTERY}}))
    (tmp_path / "mine.py").write_text(MINE)
    return str(path)


def test_a_defense_from_a_file_gets_a_sentence_a_table_and_a_page(store, track, tmp_path, capsys):
    out = tmp_path / "board"
    command = ["judge", "mine.py:MyDefense", "--track", track, "--out", str(out)]
    assert main([*command, "--paper", "https://example.org"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert re.search(r"MyDefense: \*\*[\w ]+\*\* on badnet: ", said)
    assert re.search(r"^attack +verdict +wakes at", said, re.MULTILINE)
    assert said.index("**") < said.index("wakes at") < said.index("report ")
    [path] = out.glob("*.json")
    submission = leaderboard.read(path)
    assert (submission.defense, submission.attack) == ("MyDefense", "badnet")
    assert submission.paper == "https://example.org" and submission.seeds == [0]
    assert "MyDefense" in (out / "leaderboard.html").read_text()
    computed = len(store.search(kind="stage"))
    assert main(command) == 0
    assert len(store.search(kind="stage")) == computed, "judged twice, it is computed twice"
    page = tmp_path / "page.html"
    assert main(["leaderboard", "--folder", str(out), "--out", str(page)]) == 0
    assert "MyDefense" in page.read_text()


def test_a_purified_model_made_elsewhere(store, track, tmp_path, capsys):
    plan = Plan(Study(**TINY_STUDY))
    model = Lab(store).model(plan.purified(Cell("badnet", "ft", 0)))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "theirs.safetensors")
    command = ["judge", "--purified", "theirs.safetensors", "--track", track]
    assert main(command) == 2
    assert "expected --attack with --purified" in capsys.readouterr().err
    assert main([*command, "--attack", "badnet"]) == 0, capsys.readouterr().err
    assert "theirs: **" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a defense, or --purified FILE"),
        (["fts"], "unknown defense: 'fts'"),
        (["mine.py:Nobody"], "expected a defense at mine.py:Nobody"),
        (["ft", "-p", "measures={}"], "expected a track that measures 'battery'"),
    ],
)
def test_a_mistake_is_one_line(store, track, capsys, arguments, message):
    assert main(["judge", *arguments, "--track", track]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_leaderboard_of_nothing_is_one_line(tmp_path, capsys):
    assert main(["leaderboard", "--folder", str(tmp_path)]) == 2
    assert "expected submissions" in capsys.readouterr().err
