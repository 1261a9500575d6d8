"""What `judge` writes of a defense on a track: its layout, and whether it agrees with itself."""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import ValidationError, model_validator

from ppr_core.config import Field, Settings
from ppr_core.errors import DataError, need
from ppr_core.reactivation.cells import Cell
from ppr_core.reactivation.figures import counted, started, wake_count
from ppr_core.reactivation.summary import Figures, combine, conclude
from ppr_core.reactivation.verdicts import Limits, Percent, Verdict

CLOSE = 1e-6  # points: what one machine's arithmetic may differ from another's


class Examined(Settings):
    """One seed of a submission."""

    seed: int = Field(description="of the victim and of every draw")
    figures: Figures = Field(description="what the battery says")
    cells: list[Cell] = Field([], description="what it ran")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for cell in self.cells:
            for rate in (cell.p_asr, cell.c_acc):
                need(0 <= (rate or 0) <= 100, f"expected percent of a cell, got {rate}")
        return self


class Submission(Settings):
    """What `judge` writes: one defense against one attack on one track."""

    schema_version: Literal[1] = Field(1, description="of this file's layout")
    defense: str = Field(min_length=1, description="its name")
    attack: str = Field(min_length=1, description="its name")
    track: str = Field(min_length=1, description="name of the track's file")
    settings_digest: str = Field(description="sha256 of the settings of all stages behind it")
    battery: str = Field(description="sha256 of the battery's settings and version")
    conditions: dict[str, Any] = Field(
        {}, description="what all rows of the track share: data, victims, EP and the battery"
    )
    oracle: bool = Field(False, description="uses what a real defender cannot have")
    made: str = Field(description="date, ISO 8601, UTC")
    versions: dict[str, str] = Field(description="of Python and of the libraries")
    hardware: str = Field(description="processor or accelerator")
    victim_c_acc: Percent | None = Field(None, description="C-Acc before the defense, percent")
    c_acc: Percent | None = Field(None, description="C-Acc after it, on all test images, percent")
    seconds: float | None = Field(None, ge=0, description="of the defense, mean over seeds")
    battery_seconds: float | None = Field(None, ge=0, description="of the battery, a model")
    paper: str = Field("", description="link to the defense's paper")
    code: str = Field("", description="link to its code")
    runs: list[Examined] = Field(min_length=1, description="one a seed")
    verdict: Verdict = Field(description="over the seeds")

    @model_validator(mode="after")
    def _check(self) -> Self:
        need(len({*self.seeds}) == len(self.runs), f"expected distinct seeds, got {self.seeds}")
        return self

    @property
    def title(self) -> str:
        """How tables and figures name its defense."""
        return f"{self.defense} (oracle)" if self.oracle else self.defense

    @property
    def seeds(self) -> list[int]:
        """The seeds it was judged on."""
        return [run.seed for run in self.runs]

    @property
    def file(self) -> str:
        """The name of its file: one a defense, attack and track."""
        words = "-".join((self.track, self.attack, self.defense))
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in words) + ".json"

    @property
    def row(self) -> tuple[str, str, str]:
        """What no other submission may be of, too."""
        return self.track, self.attack, self.defense

    @property
    def limits(self) -> Limits:
        """The thresholds of its verdict; RB-1's where it does not name its settings."""
        given: Any = self.conditions
        for name in ("battery", "settings", "limits", "settings"):
            given = given.get(name) if isinstance(given, dict) else None
        return Limits(**given) if isinstance(given, dict) else Limits()


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
        DataError: not a file, not JSON, or not the layout of a submission.
    """
    try:
        return Submission.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"expected a submission in {path}, got: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"expected a submission of schema 1 in {path}, got at {place}: {first['msg']}; write "
            "it anew with `judge`"
        ) from None


def consistent(one: Submission) -> Submission:
    """Return a submission with the verdict, and its reason, that its own runs lead to.

    Raises:
        DataError: it says another one, or figures that are not those of its cells.
    """
    limits = one.limits
    for run in one.runs:
        _need_same(run.figures.verdict, conclude(run.figures, limits), f"seed {run.seed}")
        if one.conditions:  # what names its settings was written with all of its cells
            _need_of_its_cells(run, limits)
    found = combine([run.figures for run in one.runs], limits)
    _need_same(one.verdict, found, "all seeds")
    return one.replace(verdict=found)


def _need_same(said: Verdict, found: Verdict, where: str) -> None:
    pairs = ((said.above_clean, found.above_clean), (said.above_ep, found.above_ep))
    same = said.word == found.word and all(
        (a is None) == (b is None) and (a is None or b is None or abs(a.mean - b.mean) < CLOSE)
        for a, b in pairs
    )
    need(
        same,
        f"expected the verdict that its runs lead to ({where}: {found.word}, {found.reason}), got "
        f"{said.word} ({said.reason}); write it anew with `judge`",
        DataError,
    )


def _need_of_its_cells(run: Examined, limits: Limits) -> None:
    figures, cells = run.figures, run.cells
    starts = [cell for cell in cells if cell.arm == "start"]
    found: dict[str, tuple[Any, Any]] = {"cells": (len(starts), 1)}
    if len(starts) == 1:
        fresh = [cell for cell in cells if cell.arm == "fresh"]
        there = [cell for cell in fresh if cell.setting.place == figures.worst]
        p_asr = [cell.p_asr for cell in counted([started(cells), *there], limits)]
        found["o_asr"] = (starts[0].p_asr or 0.0, figures.o_asr)
        found["p_asr"] = (p_asr, figures.p_asr)
        if figures.paper_p_asr is not None:
            woken = wake_count([cell for cell in cells if cell.admissible], limits.woken)
            own = float("inf") if figures.wake_count is None else figures.wake_count
            found["wake_count"] = (woken, own)
    for name, (cells_say, said) in found.items():
        need(
            cells_say == said,
            f"expected the figures of its cells (seed {run.seed}: {name} {cells_say}), got {said}; "
            "write it anew with `judge`",
            DataError,
        )
