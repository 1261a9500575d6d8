"""What the README says is true."""

import re
import sys
import types

from ppr_core import defenses, engine, results
from ppr_core.cli import ROOT, _parser
from ppr_core.config import Study
from ppr_core.plan import Plan
from ppr_core.study import Lab
from tests.conftest import TINY_STUDY

README = (ROOT / "README.md").read_text()


def test_the_worked_example_is_a_defense_like_any_other(store, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    module = types.ModuleType("ppr_core.defenses.shrink")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    monkeypatch.setitem(defenses.DEFENSES, "shrink", module.Shrink)
    settings = {"shrink": {"factor": 0.8, "schedule": {"epochs": 1}}}
    plan = Plan(Study(**{**TINY_STUDY, "defenses": settings}))
    assert engine.run(plan, Lab(store)) == {}
    row = results.cells(plan, store).set_index("defense").loc["shrink"]
    assert row["status"] == "done"
    assert 0 <= row["p_asr"] <= 100


def test_its_commands_exist():
    known = _parser()._subparsers._group_actions[0].choices
    for name in re.findall(r"python -m ppr_core (\w+)", README):
        assert name in known
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_its_files_exist():
    for path in re.findall(r"(?:params|notebooks|ppr_core)/[\w/.]+\.\w+", README):
        if path != "ppr_core/defenses/shrink.py":
            assert (ROOT / path).exists(), path


def test_it_fits_a_page_and_is_finished():
    assert len(README.splitlines()) <= 130
    assert not re.search(r"[A-Z]+_(TABLE|TIME)", README)
