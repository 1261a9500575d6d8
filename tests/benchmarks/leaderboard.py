"""A row of the leaderboard, drawn at random and computed anew: is it what was submitted?

`python -m tests.benchmarks leaderboard`; it is not among those that run without a name.
"""

import os
import random
import tempfile
from pathlib import Path

from ppr_core.cli.main import main as ppr
from ppr_core.lab.places import ROOT
from ppr_core.reporting import leaderboard

FOLDER = ROOT / "notebooks" / "results" / "leaderboard"
SLACK = 5.0  # points: another processor rounds otherwise, and two draws differ by as much


def main():
    """Judge one registered defense in an empty store; print both rows."""
    old = leaderboard.read(random.choice(sorted(FOLDER.glob("*.json"))))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PPR_STORE"] = f"{scratch}/store"
        command = ["judge", old.defense, "--track", old.track, "--attack", old.attack]
        assert ppr([*command, "-p", f"seeds={old.seeds}", "--out", f"{scratch}/out"]) == 0
        [path] = Path(scratch, "out").glob("*.json")
        new = leaderboard.read(path)
    print(leaderboard.sentence(old), leaderboard.sentence(new), sep="\n")
    assert old.verdict.word == new.verdict.word, "another verdict"
    for before, after in zip(old.runs, new.runs, strict=True):
        for name in ("p_asr", "clean_p_asr", "ep_p_asr"):
            was, now = (getattr(run.figures, name) for run in (before, after))
            spread = max(was, default=0) - min(was, default=0)
            assert len(was) == len(now), name
            for one, other in zip(was, now, strict=True):
                assert abs(one - other) <= spread + SLACK, (name, was, now)
    print("the same within its spread")
