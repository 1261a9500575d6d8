"""`ppr judge` and `ppr leaderboard`: what a defense is worth, and beside which others."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppr_core.cli.study import override, own_label, placed, read, reddened, where
from ppr_core.errors import need
from ppr_core.lab.places import ROOT, results_folder


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the commands."""
    text = "run the reactivation battery on a defense, and say in words what it is worth"
    judge = command("judge", _judge, text)
    judge.add_argument("defense", nargs="?", help="registered name, module:Class or file.py:Class")
    judge.add_argument("--track", default="judge_demo", help="study file, or a name in params/")
    judge.add_argument("--purified", metavar="FILE", help="judge this model in place of a defense")
    judge.add_argument("--backdoored", metavar="FILE", help="its victim; the track's if not given")
    judge.add_argument("--attack", help="one attack of the track; needed with --purified")
    where(judge)
    judge.add_argument("--paper", default="", help="link that the leaderboard shows")
    judge.add_argument("--code", default="", help="link that the leaderboard shows")
    judge.add_argument("--out", metavar="FOLDER", type=Path, help="of the submission and the page")
    override(judge)
    board = command("leaderboard", _leaderboard, "turn submissions into one page")
    place = ROOT / "notebooks" / "results" / "leaderboard"
    board.add_argument("--folder", type=Path, default=place, help="of the submissions (*.json)")
    board.add_argument("--out", metavar="FILE", type=Path, help="page; default: beside them")


def _judge(arguments: argparse.Namespace) -> int:
    from ppr_core.lab import engine
    from ppr_core.lab.desk import Lab
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.store import Store
    from ppr_core.lab.study import Study
    from ppr_core.reporting import judging, leaderboard

    values, label, name = _track(arguments)
    plan, lab = Plan(Study(**values)), Lab(Store())
    wanted = judging.stages(plan, label)
    print(f"track {plan.study.name}: {name} on {', '.join(plan.attacks)}", flush=True)
    failures = engine.run(plan, lab, wanted=wanted, **placed(arguments))
    for stage, reason in failures.items():
        print(f"error: {stage}: {reason}", file=sys.stderr)
    if failures:
        return 1
    print()
    links = {"paper": arguments.paper, "code": arguments.code}
    found = [one.replace(**links) for one in judging.judge(plan, lab, label, name)]
    for submission in found:
        print(reddened(leaderboard.sentence(submission)))
        for gate in leaderboard.gates(submission)[1:]:
            print(reddened(gate, gate))
    print("\n" + reddened(judging.table(found)) + "\n")
    folder = arguments.out or results_folder() / "leaderboard"
    for submission in found:
        print(f"written  {leaderboard.save(submission, folder)}")
    print(f"report   {leaderboard.write(folder, folder / 'leaderboard.html')}")
    return 0


def _track(arguments: argparse.Namespace) -> tuple[dict[str, Any], str, str]:
    """Return the settings of the track with one defense, that defense's label, and its name."""
    values = read(arguments.track, arguments.set)
    attack, file = arguments.attack, arguments.purified
    need(
        (arguments.defense is None) != (file is None),
        "expected a defense, or --purified FILE, and not both",
    )
    need(not file or attack, "expected --attack with --purified: whose trigger the victim knows")
    if attack:
        values["attacks"] = {attack: values.get("attacks", {}).get(attack, {})}
    known = values.get("defenses", {})
    exact = {"ep": known.get("ep", {})}
    values |= {"rho_grid": [], "notebooks": []}
    if file:
        made = {attack: arguments.backdoored, f"{attack}/purified": file}
        values["checkpoints"] = {name: path for name, path in made.items() if path}
        values["defenses"] = exact
        return values, "purified", Path(file).stem
    spec = arguments.defense
    own = ":" in spec
    label = own_label(spec) if own else spec
    settings = {**known.get(label, {}), **({"method": spec} if own else {})}
    values["defenses"] = {**exact, label: settings}
    return values, label, spec.rpartition(":")[2] if own else spec


def _leaderboard(arguments: argparse.Namespace) -> int:
    from ppr_core.reporting import leaderboard

    target = arguments.out or arguments.folder / "leaderboard.html"
    print(leaderboard.write(arguments.folder, target))
    return 0
