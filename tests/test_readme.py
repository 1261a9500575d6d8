"""What the README says is true."""

import io
import re

import pandas as pd
import pytest
import yaml
from safetensors.torch import save_file

from ppr_core.cli import ROOT, _parser, main
from ppr_core.config import Study
from ppr_core.plan import Plan
from ppr_core.study import Lab
from tests.conftest import TINY_STUDY

README = (ROOT / "README.md").read_text()


@pytest.fixture
def tiny_file(tmp_path, monkeypatch):
    """The tiny study, in a folder where a user stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY_STUDY, "measures": SMALL}))
    return tmp_path / "tiny.yaml"


SMALL = {
    "query": {"clean": 20, "poisoned": 20, "width": 8, "schedule": {"epochs": 1}},
    "path": {"points": 3},
}


def test_a_defense_from_a_users_own_file(store, tiny_file, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    (tiny_file.parent / "shrink.py").write_text(code)
    [command] = re.findall(r"`python -m ppr_core (study .* --defense \S+)`", README)
    words = command.replace("params/demo.yaml", str(tiny_file)).split()
    assert main([*words, "-p", "defenses.shrink.schedule.epochs=1"]) == 0, capsys.readouterr().err
    file = ["report", str(tiny_file), "--defense", words[-1], "--format", "csv"]
    capsys.readouterr()
    assert main([*file, "-p", "defenses.shrink.schedule.epochs=1"]) == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("defense")
    assert rows.loc["shrink", "status"] == "done"
    assert 0 <= rows.loc["shrink", "p_asr"] <= 100
    [run] = [run for run in store.search(stage="purified") if "shrink" in run.info.run_name]
    assert run.data.params["schedule.epochs"] == "1"


def test_models_made_elsewhere(store, tiny_file, capsys):
    plan, lab = Plan(Study(**TINY_STUDY)), Lab(store)
    for name, stage in (
        ("victim", plan.backdoored("badnet", 0)),
        ("purified", plan.purified("badnet", "ft", 0)),
    ):
        state = {n: t.contiguous() for n, t in lab.model(stage).state_dict().items()}
        save_file(state, f"{name}.safetensors")
    [command] = re.findall(r"python -m ppr_core (evaluate (?:.*\\\n)?.*)", README)
    words = command.replace("\\\n", " ").split()
    assert main([*words, "-f", str(tiny_file)]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "QRA P-ASR" in out
    assert re.search(r"badnet +purified +\d", out)


def test_its_commands_exist():
    known = _parser()._subparsers._group_actions[0].choices
    for name in re.findall(r"python -m ppr_core (\w+)", README):
        assert name in known
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_its_files_exist():
    for path in re.findall(r"(?:params|notebooks|ppr_core)/[\w/.]+\.\w+", README):
        assert (ROOT / path).exists(), path


def test_it_fits_a_page_and_is_finished():
    assert len(README.splitlines()) <= 145
    assert not re.search(r"[A-Z]+_(TABLE|TIME)", README)
