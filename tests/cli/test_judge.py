"""`ppr judge` and `ppr leaderboard`, on a tiny track and a user's own file."""

import re

import pytest
import torch
import yaml
from PIL import Image
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
    torch.save({"w": torch.ones(2)}, tmp_path / "some.pt")
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
    assert "expected --attack or --trigger with --purified" in capsys.readouterr().err
    assert main([*command, "--attack", "badnet"]) == 0, capsys.readouterr().err
    assert "theirs: **" in capsys.readouterr().out


def test_a_trigger_and_a_normalisation_made_elsewhere(store, track, tmp_path, capsys):
    """The victim knows a patch that no attack of the track stamps; both files are raw networks."""
    torch.manual_seed(0)
    patch = torch.randint(0, 255, (3, 3, 3), dtype=torch.uint8).numpy()
    Image.fromarray(patch).save(tmp_path / "patch.png")
    trigger = {"method": "ppr_core.attacks.foreign:PictureTrigger", "path": "patch.png"}
    trigger |= {"at": [2, 2]}
    plan = Plan(Study(**{**TINY_STUDY, "attacks": {"picture": trigger}}))
    lab, cell = Lab(store), Cell("picture", "ft", 0)
    for name, stage in (("v", plan.backdoored(cell)), ("p", plan.purified(cell))):
        state = lab.model(stage).state_dict().items()
        kept = {key: tensor.contiguous() for key, tensor in state}
        save_file(kept, tmp_path / f"{name}.safetensors")
    files = ["--purified", "p.safetensors", "--backdoored", "v.safetensors"]
    flags = ["--trigger", "patch.png", "--at", "2,2", "--track", track]
    assert main(["judge", *files[:2], *flags]) == 2
    assert "expected --backdoored beside the trigger 'picture'" in capsys.readouterr().err
    assert main(["judge", *files, *flags, "--out", "board"]) == 0, capsys.readouterr().err
    told = capsys.readouterr()
    assert re.search(r"p: \*\*[\w ]+\*\* on picture: ", told.out)
    assert "no row of the track tiny: picture is no attack of it" in told.err
    [first] = (submissions.read(path) for path in (tmp_path / "board").glob("*.json"))
    shown = lab.result(plan.purified(cell)).metrics["asr"]
    assert first.runs[0].figures.o_asr == pytest.approx(shown, abs=5), "another trigger was stamped"
    wrong = ["--mean", "0.1,0.1,0.1", "--std", "0.9,0.9,0.9", "--out", "other"]
    assert main(["judge", *files, *flags, *wrong]) == 0, capsys.readouterr().err
    [second] = (submissions.read(path) for path in (tmp_path / "other").glob("*.json"))
    assert "0.9" in str(second.conditions["model"]), "the normalisation was not taken"
    assert second.runs[0].cells != first.runs[0].cells


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ft", "--trigger", "patch.png"], "expected --trigger beside --purified"),
        (["ft", "--mean", "0,0,0"], "expected --mean beside --purified"),
        (["--purified", "no.pt", "--attack", "badnet"], "expected a file, got no.pt"),
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
            ["--purified", "some.pt", "--attack", "badnet", "-p", "seeds=[0,1]"],
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
    command = ["judge", "--purified", "some.pt", "--backdoored", "some.pt", "--attack", "ssba"]
    assert main([*command, "--track", track, "-p", "attacks.ssba={}"]) == 2
    error = capsys.readouterr().err
    assert "expected a trigger that is known for ssba" in error and len(error.splitlines()) == 1


def test_a_leaderboard_of_nothing_is_one_line(tmp_path, capsys):
    assert main(["leaderboard", "--folder", str(tmp_path)]) == 2
    assert "expected submissions" in capsys.readouterr().err
