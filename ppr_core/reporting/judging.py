"""Judge one defense on a track: its submissions, and the table that a person reads."""

import json
import statistics

from ppr_core.config import digest
from ppr_core.errors import need
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell, Stage
from ppr_core.lab.plan import Plan
from ppr_core.lab.reader import Reader
from ppr_core.reactivation.cells import load
from ppr_core.reactivation.summary import Figures, combine
from ppr_core.reactivation.verdicts import Limits
from ppr_core.reporting import leaderboard, results, submissions, tracks
from ppr_core.reporting.submissions import Examined, Submission
from ppr_core.reporting.tracks import MEASURE

HEADS = ("attack", "verdict", "wakes at", "clean at", "worst", "clean there", "O-ASR", "C-Acc")


def stages(plan: Plan, label: str) -> list[Stage]:
    """Return what is computed of a defense: its battery against every attack and seed.

    Args:
        plan: of a track, with the defense among its own.
        label: of the defense in the plan.

    Raises:
        ConfigError: the track does not take the battery, or has no such defense.
    """
    need(
        MEASURE in plan.measures,
        f"expected a track that measures {MEASURE!r}, got {plan.study.name!r}; add `measures: "
        f"{{{MEASURE}: {{}}}}` to its file",
    )
    found = []
    for cell in (Cell(attack, label, s) for attack in plan.attacks for s in plan.study.seeds):
        stage = plan.taken(MEASURE, cell)
        found.append(need(stage, f"expected a purified model to judge, got {cell.label}"))
    return found


def settings_of(batteries: list[Stage]) -> str:
    """Return a digest of all that a submission depends on; its seeds among them.

    Args:
        batteries: of one attack, see `stages`.
    """
    return digest([stage.key for stage in batteries])


def judge(
    plan: Plan, lab: Lab, label: str, name: str = "", standard: Plan | None = None
) -> list[Submission]:
    """Return what the battery says of a defense, a submission an attack; compute what is missing.

    Args:
        plan: of a track, with the defense among its own.
        lab: computes and reads.
        label: of the defense in the plan.
        name: that people read; the label if not given.
        standard: the track as its file has it; a shipped one of the plan's name if not given. What
            is judged with other settings gets a track of its own.
    """
    batteries = stages(plan, label)
    found = []
    for attack in plan.attacks:
        own = [one for one in batteries if one.cell.attack == attack]
        found.append(_judged(plan, lab, own, name or label, standard))
    return found


def held(plan: Plan, lab: Reader) -> list[Submission]:
    """Return what the battery says of every defense whose batteries the store holds.

    Args:
        plan: of a study that takes the battery.
        lab: reads results; nothing is computed.
    """
    found = []
    for label, variant in plan.defenses:
        here = stages(plan, label) if variant is None else []
        for attack in plan.attacks:
            own = [one for one in here if one.cell.attack == attack]
            if own and all(lab.cached(one) for one in own):
                found.append(_judged(plan, lab, own, label))
    return found


def _judged(
    plan: Plan, lab: Reader, stages: list[Stage], name: str, standard: Plan | None = None
) -> Submission:
    standard = standard or tracks.shipped(plan.study.name)
    first = stages[0].cell
    runs, before, after, seconds, took = [], [], [], [], []
    for stage in stages:
        cell, result = stage.cell, lab.result(stage)
        figures = Figures.model_validate_json(json.dumps(result.info["figures"]))
        runs.append(Examined(seed=cell.seed, figures=figures, cells=load(result.info["cells"])))
        before.append(lab.result(plan.backdoored(cell)).metrics["c_acc"])
        purified = plan.purified(cell)
        after.append(lab.result(purified).metrics["c_acc"])
        seconds.append(results.seconds_of(purified, lab.store))
        took.append(result.metrics["seconds"])
    limits: Limits = stages[0].method.limits
    known = [one for one in seconds if one is not None]
    shared = tracks.conditions(plan, first.attack)
    return Submission(
        defense=name,
        attack=first.attack,
        track=tracks.name_of(plan, first.attack, standard),
        settings_digest=settings_of(stages),
        battery=digest(shared["battery"]),
        conditions=shared,
        oracle=plan.oracle(first),
        victim_c_acc=statistics.fmean(before),
        c_acc=statistics.fmean(after),
        seconds=statistics.fmean(known) if len(known) == len(seconds) else None,
        battery_seconds=statistics.fmean(took),
        runs=runs,
        verdict=combine([run.figures for run in runs], limits),
        **submissions.environment(),
    )


def table(submissions: list[Submission]) -> str:
    """Return the table of what was judged: a line an attack."""
    lines = [HEADS]
    for submission in submissions:
        row = leaderboard.row(submission)
        numbers = [_percent(row[name]) for name in ("worst", "clean", "o_asr", "c_acc")]
        words = (submission.attack, submission.verdict.word, row["wake"], row["clean_wake"])
        lines.append((*words, *numbers))
    widths = [max(len(line[index]) for line in lines) for index in range(len(HEADS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
