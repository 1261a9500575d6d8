"""The files that tools read agree with each other."""

import re
import tomllib

import yaml

from ppr_core.lab.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_hooks_run_what_is_pinned():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    pinned = (ROOT / "requirements.txt").read_text()
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    programs = {hook["entry"].split()[0] for hook in hooks}
    assert programs == {f".venv/bin/{name}" for name in ("ruff", "mypy", "nbstripout")}
    for program in programs:
        assert re.search(rf"^{program.rpartition('/')[2]}==", pinned, re.MULTILINE)
    assert all(repo["repo"] == "local" for repo in config["repos"]), "no network is needed"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
