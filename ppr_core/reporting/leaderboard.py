"""Submissions of `judge`, and the page that ranks them."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ppr_core.errors import ConfigError, DataError, need
from ppr_core.lab import pages
from ppr_core.reactivation.summary import Figures
from ppr_core.reporting.submissions import Submission, consistent, read
from ppr_core.reporting.tracks import Standing, standing

TEMPLATE = "leaderboard.html.j2"
ORDER = ("holds", "open", "superficial", "not purified", "no verdict")
CLEAN = ("clean_wake_count", "clean_counts")  # of a model's figures
HEAD = (  # of a table in Markdown
    "| defense | attack | verdict | O-ASR | RA as published | worst P-ASR | clean there | wakes at "
    "| C-Acc cost | why |\n|---|---|---|---:|---:|---:|---:|---:|---:|---|"
)
PLOT = {"width": 300, "height": 140, "left": 34, "bottom": 22}  # pixels


Row = tuple[Submission, Standing]


def admitted(folder: Path) -> list[Row]:
    """Return the submissions of a folder, each with its standing on its track.

    Raises:
        DataError: one cannot be read, says another thing than its own runs, was computed with other
            settings than its track's, or is of a row that another file has.
    """
    found: dict[tuple[str, str, str], Path] = {}
    rows = []
    for path in sorted(folder.glob("*.json")):
        one = read(path)
        twin = found.setdefault(one.row, path)
        need(twin == path, f"{path}: expected one file a row, got {twin.name} of it", DataError)
        try:
            rows.append((consistent(one), standing(one)))
        except (ConfigError, DataError) as error:
            raise DataError(f"{path}: {error}") from None
    return rows


def ranked(folder: Path) -> list[Row]:
    """Return the submissions of a folder by track and attack, from what holds to the worst case.

    Raises:
        DataError: there is no submission, or one that is not admitted.
    """
    rows = sorted(admitted(folder), key=_rank)
    need(rows, f"expected submissions (*.json) in {folder}, got none; run `judge`", DataError)
    return rows


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Return ranked submissions by track, as Markdown: what a README shows of them."""
    lines: dict[str, list[str]] = {}
    for one, how in rows:
        table = lines.setdefault(one.track, [HEAD])
        shown = row(one)
        word = f"{one.verdict.word} (older)" if how == "older" else one.verdict.word
        numbers = [shown[key] for key in ("o_asr", "paper_p_asr", "worst", "clean")]
        texts = ["-" if number is None else f"{number:.1f}" for number in numbers]
        cost = "-" if shown["cost"] is None else f"{round(shown['cost'], 1) + 0.0:.1f}"  # no -0.0
        wake = shown["wake"].replace("–", "-")
        cells = [one.title, one.attack, word, *texts, wake, cost, one.verdict.reason]
        table.append(f"| {' | '.join(cells)} |")
    return {track: "\n".join(table) for track, table in lines.items()}


def write(folder: Path, target: Path) -> Path:
    """Turn all submissions of a folder into one HTML page that needs nothing beside itself.

    Raises:
        DataError: there is no submission, or one that cannot be read.
    """
    rows = ranked(folder)
    html = (
        pages.environment("ppr_core.reporting")
        .get_template(TEMPLATE)
        .render(
            rows=[{**row(one), "standing": standing} for one, standing in rows],
            older=sum(standing == "older" for _, standing in rows),
            tracks=sorted({one.track for one, _ in rows}),
            attacks=sorted({one.attack for one, _ in rows}),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(html)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        said = error.strerror
        raise DataError(f"expected a file to write the page to, got {target}: {said}") from None
    return target


def _rank(row: Row) -> tuple[Any, ...]:
    """By track and attack, then from what holds to what has no verdict, then by the worst case.

    What an older battery has judged comes after what today's has.
    """
    submission, standing = row
    worst = _over(submission, "p_asr")
    word = ORDER.index(submission.verdict.word)
    place = (submission.track, submission.attack, standing == "older")
    return *place, word, worst if worst is not None else 101.0


def row(submission: Submission) -> dict[str, Any]:
    """Return one line of the page: numbers to sort by, texts to read."""
    figures = [run.figures for run in submission.runs]
    before, c_acc = submission.victim_c_acc, submission.c_acc
    return {
        "submission": submission,
        "wake": wake_text(figures, "wake_count", "counts"),
        "wake_key": _key(figures, "wake_count", "counts"),
        "clean_wake": wake_text(figures, *CLEAN),
        "clean_key": _key(figures, *CLEAN),
        "o_asr": _mean([one.o_asr for one in figures]),
        "paper_p_asr": _mean([one.paper_p_asr for one in figures]),
        "worst": _over(submission, "p_asr"),
        "clean": _over(submission, "clean_p_asr"),
        "arms": sorted({one.worst_arm for one in figures if one.worst}),
        "gain": _mean([one.query_gain for one in figures]),
        "c_acc": c_acc,
        "cost": None if before is None or c_acc is None else before - c_acc,
        "sentence": sentence(submission),
        "gates": gates(submission),
        "plots": [{"seed": run.seed, **curves(run.figures)} for run in submission.runs],
        "cells": [(run.seed, cell) for run in submission.runs for cell in run.cells],
    }


def gates(submission: Submission) -> list[str]:
    """Return the checks that any of its models fails; the first one is the verdict's reason."""
    return list(dict.fromkeys(gate for run in submission.runs for gate in run.figures.gates))


def sentence(submission: Submission) -> str:
    """Say in one sentence what was found, with the verdict between two pairs of stars."""
    figures = [run.figures for run in submission.runs]
    said = submission.verdict
    head = f"{submission.defense}: **{said.word}** on {submission.attack}: "
    if said.word in ("no verdict", "not purified", "open"):
        return head + said.reason.rstrip(".")
    before = _mean([one.o_asr for one in figures]) or 0.0
    woken = _woken(figures)
    needs = "; the clean model needs "
    needs += wake_text(figures, *CLEAN)
    if said.word == "superficial" and all(one.wake_count == 0 for one in figures):
        return f"{head}clean samples alone bring ASR from {before:.0f} to 50 % or more{needs}"
    if said.word == "superficial" and woken:
        count, after = woken
        return f"{head}{_samples(count)} ASR from {before:.0f} to {after:.0f} %{needs}"
    after, clean = _over(submission, "p_asr") or 0.0, _over(submission, "clean_p_asr") or 0.0
    return (
        f"{head}its worst case ({figures[0].worst}) brings ASR from {before:.0f} to {after:.0f} %, "
        f"the clean model's to {clean:.0f} %"
    )


def _samples(count: int) -> str:
    return f"{count} poisoned sample{' brings' if count == 1 else 's bring'}"


def _woken(figures: Sequence[Figures]) -> tuple[int, float] | None:
    """Return the fewest poisons at which half of the images hit, with the ASR, over the seeds.

    Only where the clean models need more.
    """
    own, clean = ([dict(getattr(one, of)) for one in figures] for of in ("counts", "clean_counts"))
    for count in sorted(set[int].intersection(*(set(counts) for counts in own))):
        after = math.fsum(counts[count] for counts in own) / len(own)
        if after >= 50:
            rest = max(counts.get(count, 100.0) for counts in clean)
            return (count, after) if rest < 50 else None
    return None


def wake_text(figures: Sequence[Figures], name: str, tried: str) -> str:
    """Return the median wake count over seeds; "> 50" where it is none of the counts tried.

    A model's own are those of admissible counts, of which there may be fewer.
    """
    reached = [max((n for n, _ in getattr(one, tried)), default=0) for one in figures]
    middle = _middle([getattr(one, name) for one in figures])
    if not any(reached):
        return "–" if middle is None or name in CLEAN else f"{middle:.0f}"
    asleep = [n for n, one in zip(reached, figures, strict=True) if getattr(one, name) is None]
    largest = min(filter(None, asleep), default=max(reached))
    return f"> {largest}" if middle is None else f"{middle:.2g}" if middle < 1 else f"{middle:.0f}"


def _key(figures: Sequence[Figures], name: str, tried: str) -> float | None:
    """Return what a wake count is sorted by; None where no count was tried."""
    middle = _middle([getattr(one, name) for one in figures])
    known = any(getattr(one, tried) for one in figures)
    return (1e9 if middle is None else middle) if known else None


def curves(figures: Figures) -> dict[str, Any]:
    """Return points of P-ASR over poisons, of the model and of clean ones, in pixels; its worst."""
    counts = [count for count, _ in figures.clean_counts] or [1]
    span = math.log(max(counts) / min(counts)) or 1.0
    width, height = PLOT["width"] - PLOT["left"] - 8, PLOT["height"] - PLOT["bottom"] - 8

    def across(count: int) -> float:
        return PLOT["left"] + width * math.log(count / min(counts)) / span

    def points(values: Sequence[tuple[int, float]]) -> str:
        placed = [(across(count), 8 + height * (1 - asr / 100)) for count, asr in values]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)

    return {
        "worst": f"{figures.worst_arm}: {figures.worst}" if figures.worst else "",
        "model": points(figures.counts),
        "clean": points(figures.clean_counts),
        "ticks": [(round(across(count), 1), count) for count in counts],
        "size": PLOT,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _middle(counts: Sequence[float | None]) -> float | None:
    """Return the median, of two the lower; none is more than any number."""
    ordered = sorted(math.inf if count is None else count for count in counts)
    middle = ordered[(len(ordered) - 1) // 2]
    return middle if math.isfinite(middle) else None


def _over(submission: Submission, name: str) -> float | None:
    """Return the mean over seeds of a figure that has a value a fresh draw."""
    return _mean([_mean(getattr(run.figures, name)) for run in submission.runs])
