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
from ppr_core.reporting import submissions
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
    assert said.startswith("MyDefense: **"), "the sentence is not what comes first"
    assert re.search(r"^attack +verdict +wakes at", said, re.MULTILINE)
    assert said.index("**") < said.index("wakes at") < said.index("report ")
    [path] = out.glob("*.json")
    submission = submissions.read(path)
    assert (submission.defense, submission.attack) == ("MyDefense", "badnet")
    assert submission.paper == "https://example.org" and submission.seeds == [0]
    assert "MyDefense" in (out / "leaderboard.html").read_text()
    computed = len(store.search(kind="stage"))
    assert main(command) == 0
    assert len(store.search(kind="stage")) == computed, "judged twice, it is computed twice"
    other = [*command, "-p", "measures.battery.limits.margin=90"]
    assert main(other) == 0
    told = capsys.readouterr()
    assert "battery.limits.margin is 90.0 (the track has 20.0)" in told.err
    assert "judged as tiny-changed-" in told.out
    tracks = {submissions.read(one).track for one in out.glob("*.json")}
    assert len(tracks) == 2 and "tiny" in tracks, "another row is overwritten"
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
        (["ft", "--backdoored", "nowhere.pt"], "expected --backdoored beside --purified"),
        (["ft", "--attack", "blended"], "expected one attack of the track (badnet), got 'blended'"),
        (["ft", "--out", "mine.py"], "expected a folder to write to, got mine.py"),
        (["ft", "-p", "attacks=null"], "expected a group of settings for attacks, got None"),
        (["ft", "-p", "defenses=null"], "expected a group of settings for defenses, got None"),
        (["ft", "-p", "defenses.ft=3"], "expected a group of settings for defenses.ft, got 3"),
        (["ft", "-p", "measures.battery.counts=[0,4]"], "counts"),
        (["ft", "-p", "measures.battery.counts=[]"], "counts"),
        (["ft", "-p", "measures.battery.factors=[-1]"], "factors"),
        (["ft", "-p", "measures.battery.epochs=[0]"], "epochs"),
        (["ft", "-p", "measures.battery.counts=[100000]"], "for a count of 100000"),
        (
            ["--purified", "mine.py", "--attack", "badnet", "-p", "seeds=[0,1]"],
            "expected one seed with --purified, got [0, 1]",
        ),
    ],
)
def test_a_mistake_is_one_line(store, track, capsys, arguments, message):
    assert main(["judge", *arguments, "--track", track]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_trigger_that_is_trained_here_is_not_a_file_s(store, track, capsys):
    """As `evaluate` has it: the victim of the file knows another one."""
    command = ["judge", "--purified", "mine.py", "--backdoored", "mine.py", "--attack", "ssba"]
    assert main([*command, "--track", track, "-p", "attacks.ssba={}"]) == 2
    error = capsys.readouterr().err
    assert "expected a trigger that is known for ssba" in error and len(error.splitlines()) == 1


def test_a_leaderboard_of_nothing_is_one_line(tmp_path, capsys):
    assert main(["leaderboard", "--folder", str(tmp_path)]) == 2
    assert "expected submissions" in capsys.readouterr().err
