"""Submissions of `judge`, and the page that ranks them."""

import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from ppr_core.config import Field, Settings
from ppr_core.errors import DataError, need
from ppr_core.lab import pages
from ppr_core.reactivation.cells import Cell
from ppr_core.reactivation.summary import Figures
from ppr_core.reactivation.verdicts import Verdict

TEMPLATE = "leaderboard.html.j2"
ORDER = ("holds", "open", "superficial", "not purified", "no verdict")
CLEAN = ("clean_wake_count", "clean_counts")  # of a model's figures
PLOT = {"width": 300, "height": 140, "left": 34, "bottom": 22}  # pixels


class Examined(Settings):
    """One seed of a submission."""

    seed: int = Field(description="of the victim and of every draw")
    figures: Figures = Field(description="what the battery says")
    cells: list[Cell] = Field([], description="what it ran")


class Submission(Settings):
    """What `judge` writes: one defense against one attack on one track."""

    schema_version: Literal[1] = Field(1, description="of this file's layout")
    defense: str = Field(min_length=1, description="its name")
    attack: str = Field(min_length=1, description="its name")
    track: str = Field(min_length=1, description="name of the track's file")
    settings_digest: str = Field(description="sha256 of the settings of all stages behind it")
    battery: str = Field(description="sha256 of the battery's settings and version")
    oracle: bool = Field(False, description="uses what a real defender cannot have")
    made: str = Field(description="date, ISO 8601, UTC")
    versions: dict[str, str] = Field(description="of Python and of the libraries")
    hardware: str = Field(description="processor or accelerator")
    victim_c_acc: float | None = Field(None, description="C-Acc before the defense, percent")
    c_acc: float | None = Field(None, description="C-Acc after it, on all test images, percent")
    seconds: float | None = Field(None, ge=0, description="of the defense, mean over seeds")
    battery_seconds: float | None = Field(None, ge=0, description="of the battery, a model")
    paper: str = Field("", description="link to the defense's paper")
    code: str = Field("", description="link to its code")
    runs: list[Examined] = Field(min_length=1, description="one a seed")
    verdict: Verdict = Field(description="over the seeds")

    @property
    def seeds(self) -> list[int]:
        """The seeds it was judged on."""
        return [run.seed for run in self.runs]

    @property
    def file(self) -> str:
        """The name of its file: one a defense, attack and track."""
        words = "-".join((self.track, self.attack, self.defense))
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in words) + ".json"


def environment() -> dict[str, Any]:
    """Return the fields of a submission that describe where and when it is made."""
    cuda = torch.cuda.is_available()
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
    }


def save(submission: Submission, folder: Path) -> Path:
    """Write a submission into a folder, in the place of an earlier one of the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / submission.file
    path.write_text(submission.model_dump_json(indent=1) + "\n")
    return path


def read(path: Path) -> Submission:
    """Read and check one submission.

    Raises:
        DataError: not JSON, or not the layout of a submission.
    """
    try:
        return Submission.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"expected a submission of schema 1 in {path}, got at {place}: {first['msg']}; write "
            "it anew with `judge`"
        ) from None


def write(folder: Path, target: Path) -> Path:
    """Turn all submissions of a folder into one HTML page that needs nothing beside itself.

    Raises:
        DataError: there is no submission, or one that cannot be read.
    """
    paths = sorted(folder.glob("*.json"))
    need(paths, f"expected submissions (*.json) in {folder}, got none; run `judge`", DataError)
    found = sorted(map(read, paths), key=_rank)
    html = (
        pages.environment("ppr_core.reporting")
        .get_template(TEMPLATE)
        .render(
            rows=[row(submission) for submission in found],
            tracks=sorted({submission.track for submission in found}),
            attacks=sorted({submission.attack for submission in found}),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html)
    return target


def _rank(submission: Submission) -> tuple[Any, ...]:
    """By track and attack, then from what holds to what has no verdict, then by the worst case."""
    worst = _over(submission, "p_asr")
    word = ORDER.index(submission.verdict.word)
    return submission.track, submission.attack, word, worst if worst is not None else 101.0


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
        "arms": sorted({f"{one.worst_arm}: {one.worst}" for one in figures if one.worst}),
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
    for at in zip(*(one.counts for one in figures), strict=True):
        clean = [dict(one.clean_counts).get(at[0][0], 100.0) for one in figures]
        after = math.fsum(asr for _, asr in at) / len(at)
        if after >= 50:
            return (at[0][0], after) if max(clean) < 50 else None
    return None


def wake_text(figures: Sequence[Figures], name: str, tried: str) -> str:
    """Return the median wake count over seeds; "> 50" where it is none of the counts tried."""
    largest = max((count for one in figures for count, _ in getattr(one, tried)), default=0)
    if not largest:
        return "–"
    middle = _middle([getattr(one, name) for one in figures])
    return f"> {largest}" if middle is None else f"{middle:.2g}" if middle < 1 else f"{middle:.0f}"


def _key(figures: Sequence[Figures], name: str, tried: str) -> float | None:
    """Return what a wake count is sorted by; None where no count was tried."""
    middle = _middle([getattr(one, name) for one in figures])
    known = any(getattr(one, tried) for one in figures)
    return (1e9 if middle is None else middle) if known else None


def curves(figures: Figures) -> dict[str, Any]:
    """Return the points of P-ASR over poisons, of the model and of the clean ones, in pixels."""
    counts = [count for count, _ in figures.clean_counts] or [1]
    span = math.log(max(counts) / min(counts)) or 1.0
    width, height = PLOT["width"] - PLOT["left"] - 8, PLOT["height"] - PLOT["bottom"] - 8

    def across(count: int) -> float:
        return PLOT["left"] + width * math.log(count / min(counts)) / span

    def points(values: Sequence[tuple[int, float]]) -> str:
        placed = [(across(count), 8 + height * (1 - asr / 100)) for count, asr in values]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)

    return {
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
