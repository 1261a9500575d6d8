"""A row of the leaderboard, drawn at random and computed anew: is it what was submitted?

`python -m tests.benchmarks.leaderboard [defense ...]`: minutes, in an empty store. Rows that were
computed with other settings than their track has now are listed, and not drawn.
"""

import os
import random
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from ppr_core.cli import judge
from ppr_core.cli.main import main as ppr
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting import judging, leaderboard, submissions

FOLDER = ROOT / "notebooks" / "results" / "leaderboard"
SLACK = 5.0  # points: another processor rounds otherwise, and two draws differ by as much
COMPARED = ("p_asr", "clean_p_asr", "ep_p_asr")  # a value a fresh draw


def rows():
    """Return what was submitted."""
    return [submissions.read(path) for path in sorted(FOLDER.glob("*.json"))]


def words(row):
    """Return the arguments that `judge` made a row of."""
    return [row.defense, "--track", row.track, "--attack", row.attack, "-p", f"seeds={row.seeds}"]


def is_current(row):
    """Say whether a row's track would compute it with the same settings today; it need not."""
    given = dict.fromkeys(("purified", *judge.FOREIGN)) | {"set": [f"seeds={row.seeds}"]}
    named = {"defense": row.defense, "track": row.track, "attack": row.attack}
    values, label, _ = judge._track(Namespace(**given, **named))
    return judging.settings_of(judging.stages(Plan(Study(**values)), label)) == row.settings_digest


def differences(old, new):
    """Say where a row that was computed anew is another one than before, beyond its spread."""
    found = []
    if old.verdict.word != new.verdict.word:
        found.append(f"verdict {old.verdict.word!r}, now {new.verdict.word!r}")
    for before, after in zip(old.runs, new.runs, strict=True):
        for name in COMPARED:
            was, now = (list(getattr(run.figures, name)) for run in (before, after))
            spread = max(was, default=0) - min(was, default=0)
            far = any(abs(a - b) > spread + SLACK for a, b in zip(was, now, strict=False))
            if far or len(was) != len(now):
                found.append(f"seed {before.seed}: {name} {was}, now {now}")
        o_asr = [run.figures.o_asr for run in (before, after)]
        if None not in o_asr and abs(o_asr[0] - o_asr[1]) > SLACK:
            found.append(f"seed {before.seed}: O-ASR {o_asr[0]}, now {o_asr[1]}")
    return found


def anew(row):
    """Compute a row in an empty store."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PPR_STORE"] = f"{scratch}/store"
        assert ppr(["judge", *words(row), "--out", f"{scratch}/out"]) == 0
        [path] = Path(scratch, "out").glob("*.json")
        return submissions.read(path)


def main(*names):
    """Print a random row as it was submitted and as it is now; return how many figures differ."""
    known = rows()
    current = [row for row in known if is_current(row)]
    for row in known:
        if row not in current:
            print(f"{row.track} / {row.attack} / {row.defense}: of other settings than today's")
    drawn = [row for row in current if not names or row.defense in names]
    if not drawn:
        wanted = f" of {', '.join(names)}" if names else ""
        print(
            f"nothing compared: no kept row{wanted} is of today's settings; `judge` makes one anew"
        )
        return 1
    old = random.choice(drawn)
    new = anew(old)
    print(leaderboard.sentence(old), leaderboard.sentence(new), sep="\n")
    found = differences(old, new)
    print(*(found or ["the same within its spread"]), sep="\n")
    return len(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
