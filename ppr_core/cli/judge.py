"""`ppr judge` and `ppr leaderboard`: what a defense is worth, and beside which others."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppr_core.cli import foreign
from ppr_core.cli.study import (
    named,
    need_groups,
    override,
    own_label,
    placed,
    read,
    reddened,
    where,
)
from ppr_core.errors import ConfigError, need
from ppr_core.lab.places import ROOT, results_folder

# What only models made elsewhere have.
FOREIGN = ("backdoored", "trigger", *foreign.FLAGS, "model", "mean", "std", "dataset")

if TYPE_CHECKING:  # late, so that --help imports neither torch nor mlflow
    from ppr_core.lab.plan import Plan
    from ppr_core.reporting.submissions import Submission


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the commands."""
    text = "run the reactivation battery on a defense, and say in words what it is worth"
    judge = command("judge", _judge, text)
    judge.add_argument("defense", nargs="?", help="registered name, module:Class or file.py:Class")
    judge.add_argument("--track", default="judge_demo", help="study file, or a name in params/")
    judge.add_argument("--purified", metavar="FILE", help="judge this model in place of a defense")
    judge.add_argument("--backdoored", metavar="FILE", help="its victim; the track's if not given")
    text = "one attack of the track; or, with --purified, whose trigger the victim knows"
    judge.add_argument("--attack", help=text)
    foreign.add_trigger(judge)
    foreign.add_model(judge)
    judge.add_argument("--dataset", help="that --purified and --backdoored were trained on")
    where(judge)
    judge.add_argument("--paper", default="", help="link that the leaderboard shows")
    judge.add_argument("--code", default="", help="link that the leaderboard shows")
    judge.add_argument("--out", metavar="FOLDER", type=Path, help="of the submission and the page")
    override(judge)
    board = command("leaderboard", _leaderboard, "turn submissions into one page")
    place = ROOT / "notebooks" / "results" / "leaderboard"
    board.add_argument("--folder", type=Path, default=place, help="of the submissions (*.json)")
    board.add_argument("--out", metavar="FILE", type=Path, help="page; default: beside them")
    text = "html: the page; markdown: a table a track, printed"
    board.add_argument("--format", choices=("html", "markdown"), default="html", help=text)


def _judge(arguments: argparse.Namespace) -> int:
    from ppr_core.lab import arrivals, engine
    from ppr_core.lab.checks import check
    from ppr_core.lab.desk import Lab
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.store import Store
    from ppr_core.lab.study import Study
    from ppr_core.reporting import judging, leaderboard, submissions, tracks

    values, label, name = _track(arguments)
    plan, standard = Plan(Study(**values)), _standard(arguments, values)
    wanted = judging.stages(plan, label)
    if arguments.purified:
        need(
            len(plan.study.seeds) == 1,
            f"expected one seed with --purified, got {plan.study.seeds}: a file is one model; add "
            f"-p seeds=[{plan.study.seeds[0]}]",
        )
        arrivals.need_known_trigger(plan)
    folder = _writable(arguments.out or results_folder() / "leaderboard")
    leaderboard.admitted(folder)  # the page is written beside what lies there
    check(plan)
    with contextlib.redirect_stdout(sys.stderr):  # the sentence comes first
        print(f"track {plan.study.name}: {name} on {', '.join(plan.attacks)}", flush=True)
        for attack in plan.attacks:
            if told := tracks.changed(plan, attack, standard):
                print(f"no row of the track {plan.study.name}: {told}", flush=True)
        failures = engine.run(plan, lab := Lab(Store()), wanted=wanted, **placed(arguments))
    for stage, reason in failures.items():
        print(f"error: {stage}: {reason}", file=sys.stderr)
    if failures:
        return 1
    links = {"paper": arguments.paper, "code": arguments.code}
    found = judging.judge(plan, lab, label, name, standard)
    found = [one.replace(**links) for one in found]
    for submission in found:
        print(reddened(leaderboard.sentence(submission)))
        for gate in leaderboard.gates(submission)[1:]:
            print(reddened(gate, gate))
    print("\n" + reddened(judging.table(found)) + "\n")
    for submission in found:
        if submission.track != plan.study.name:
            print(f"no row   of the track {plan.study.name}: judged as {submission.track}")
        print(f"{_replaces(submission, folder)}  {submissions.save(submission, folder)}")
    print(f"report   {leaderboard.write(folder, folder / 'leaderboard.html')}")
    return 0


def _writable(folder: Path) -> Path:
    """Return a folder, made before anything is computed for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"expected a folder to write to, got {folder}: {error.strerror}"
        ) from None
    return folder


def _replaces(submission: "Submission", folder: Path) -> str:
    """Say whether a submission is written in the place of another one."""
    from ppr_core.reporting import submissions

    path = folder / submission.file
    if not path.exists():
        return "written "
    before = submissions.read(path)
    same = before.settings_digest == submission.settings_digest
    return "written " if same else f"written  in place of {before.verdict.word!r} of {before.made}:"


def _standard(arguments: argparse.Namespace, values: dict[str, Any]) -> "Plan":
    """Return the track as a shipped file of its name has it, or as the file given has it."""
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.study import Study
    from ppr_core.reporting import tracks

    shipped = tracks.shipped(str(values.get("name")))
    return shipped or Plan(Study(**tracks.alone(read(arguments.track, []))))


def _track(arguments: argparse.Namespace) -> tuple[dict[str, Any], str, str]:
    """Return the settings of the track with one defense, that defense's label, and its name."""
    from ppr_core.lab.study import Study
    from ppr_core.reporting import tracks

    values = read(arguments.track, arguments.set)
    file, spec = arguments.purified, arguments.defense
    need(
        (spec is None) != (file is None),
        "expected a defense, or --purified FILE, and not both",
    )
    need_groups(values)
    if file:
        return _theirs(arguments, values), "purified", Path(file).stem
    for name in FOREIGN:
        need(
            getattr(arguments, name) is None,
            f"expected --{name} beside --purified, got it with a defense, which starts from the "
            "track's own victim; add --purified FILE, or leave it out",
        )
    groups = {name: field.default for name, field in Study.model_fields.items()} | values
    if arguments.attack:
        need(
            arguments.attack in groups["attacks"],
            f"expected one attack of the track ({', '.join(groups['attacks'])}), got "
            f"{arguments.attack!r}",
        )
        values["attacks"] = {arguments.attack: groups["attacks"][arguments.attack]}
    known, values = groups["defenses"], tracks.alone(values)
    own = ":" in spec
    label = own_label(spec) if own else spec
    settings = {**known.get(label, {}), **({"method": spec} if own else {})}
    values["defenses"] = {**values["defenses"], label: settings}
    return values, label, spec.rpartition(":")[2] if own else spec


def _theirs(arguments: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the track with models, trigger and architecture made elsewhere."""
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.study import Study
    from ppr_core.reporting import tracks

    file, victim = arguments.purified, arguments.backdoored
    for given in filter(None, (file, victim)):
        foreign.need_weights(Path(given))
    need(
        arguments.attack or arguments.trigger or victim,
        "expected --attack or --trigger with --purified: what trigger its victim knows",
    )
    head = foreign.head_of(Path(victim or file))
    label, attack = foreign.attack_of(arguments, head)
    known = values.get("attacks", Study.model_fields["attacks"].default)
    need(
        label in known or victim,
        f"expected --backdoored beside the trigger {label!r}: the track's own victims know "
        f"{', '.join(known)}",
    )
    values = named(values, arguments)
    values["attacks"] = {label: {**known.get(label, {}), **attack}}
    model = values.get("model", Study.model_fields["model"].default)
    model = head.spec() if head and not arguments.model else model
    values["model"] = foreign.as_given(model, arguments, file)
    values = tracks.alone(values)
    made = {label: victim, f"{label}/purified": file}
    values["checkpoints"] = {name: path for name, path in made.items() if path}
    if attack.get("method") in foreign.REPLAYED:
        values["defenses"] = {}  # EP would have to show the trigger on other images
        share = foreign.stored_share(Plan(Study(**values)), label, needed=True)
        values["attacks"][label]["poison_rate"] = share
    return values


def _leaderboard(arguments: argparse.Namespace) -> int:
    from ppr_core.reporting import leaderboard

    if arguments.format == "markdown":
        need(arguments.out is None, "expected --out with the page alone; --format markdown prints")
        for track, table in leaderboard.tables(leaderboard.ranked(arguments.folder)).items():
            print(f"## {track}\n\n{table}\n")
        return 0
    target = arguments.out or arguments.folder / "leaderboard.html"
    print(leaderboard.write(arguments.folder, target))
    return 0
