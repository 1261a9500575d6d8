"""A series of studies, such as the whole paper: its parts, at one scale, and what they share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ppr_core.config import Field, Settings, unknown
from ppr_core.errors import ConfigError, DataError, need
from ppr_core.lab.checks import check
from ppr_core.lab.graph import Stage
from ppr_core.lab.plan import Plan
from ppr_core.lab.settings_file import based, pair_of, put, read
from ppr_core.lab.study import Study

OWN_SCALE = "paper"  # at which studies are as their files say


class Scale(Settings):
    """What a scale changes of the studies, and what a training step is taken to cost there."""

    machine: str = Field("", description="the machine that the estimates are for")
    changes: dict[str, dict[str, Any]] = Field(
        {}, description="`key` or `key=value` of a study -> settings laid over those that have it"
    )
    image_us: dict[str, float] = Field(
        {}, description="model -> microseconds of a training step for an image"
    )


class Images(Settings):
    """What estimates take a data set to be that is not here."""

    count: int = Field(50000, ge=1, description="training images")
    side: int = Field(32, ge=1, description="height and width, pixels")


class Series(Settings):
    """Parts such as tables and figures, each a list of studies; as params/paper.yml has them."""

    name: str = Field(description="name of the series, of its experiment and of its report")
    seeds: list[int] = Field([0], description="seeds of every study")
    parts: dict[str, list[dict[str, Any]]] = Field(
        description="part -> its studies: `base`, a study file, and what they change of it"
    )
    scales: dict[str, dict[str, Any]] = Field({}, description="scale -> settings of `Scale`")
    images: dict[str, dict[str, Any]] = Field({}, description="data set -> settings of `Images`")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a series from a YAML file.

        Raises:
            ConfigError: no such file, not YAML, an unknown key, a wrong type, or out of range.
        """
        try:
            return cls(**read(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def scale(self, name: str) -> Scale:
        """Return a scale by its name."""
        known = {OWN_SCALE: {}, **self.scales}
        need(name in known, unknown("scale", name, known))
        return Scale.labelled(f"scale {name}", known[name])

    def entries(
        self,
        folder: Path,
        only: Sequence[str] = (),
        scale: str = OWN_SCALE,
        pairs: Sequence[str] = (),
    ) -> list["Entry"]:
        """Return the studies of some parts, resolved.

        Args:
            folder: that holds the files named as `base`.
            only: parts; all where none are named.
            scale: whose changes are laid over every study.
            pairs: further settings of every study, such as "seeds=[0]".

        Raises:
            ConfigError: an unknown part or scale, or settings that no study can have.
        """
        for part in only:
            need(part in self.parts, unknown(f"part of {self.name}", part, self.parts))
        changes, given = self.scale(scale).changes, [pair_of(pair) for pair in pairs]
        made = []
        for part, studies in self.parts.items():
            for number, values in enumerate(studies if not only or part in only else (), 1):
                name = part if number == 1 else f"{part}_{number}"
                name += "" if scale == OWN_SCALE else f"_{scale}"
                own = {**based(values, folder), "name": name, "seeds": self.seeds}
                laid = scaled(own, changes)
                for key, value in given:
                    put(laid, key, value)
                try:
                    plan = Plan(Study(**laid))
                except ConfigError as error:
                    raise ConfigError(f"{part}: {error}") from None
                made.append(Entry(part, plan, Plan(Study(**own))))
        return made


@dataclass(frozen=True)
class Entry:
    """One study of a series.

    Attributes:
        part: the table, figure or claim that it belongs to.
        plan: what is computed.
        meant: the study at the paper's own scale, which it stands for.
    """

    part: str
    plan: Plan
    meant: Plan


@dataclass(frozen=True)
class Share:
    """What one part of a series holds.

    Attributes:
        part: its name.
        stages: all of them, each once.
        shared: how many an earlier part has as well.
        cached: how many of the others the store holds.
        own: the stages that no earlier part has.
        left: those of them that are to be computed.
    """

    part: str
    stages: int
    shared: int
    cached: int
    own: list[Stage]
    left: list[Stage]


def scaled(values: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a study's settings with the changes of a scale laid over them."""
    laid = Study(**values).model_dump(exclude_unset=True)
    flat = Study(**values).flat()
    for condition, settings in changes.items():
        if _has(flat, condition):
            for key, value in settings.items():
                put(laid, key, value)
    return laid


def _has(flat: Mapping[str, Any], condition: str) -> bool:
    if "=" in condition:
        key, value = pair_of(condition)
        return key in flat and flat[key] == value
    return any(name == condition or name.startswith(f"{condition}.") for name in flat)


def shares(entries: Iterable[Entry], held: set[str]) -> list[Share]:
    """Say what each part holds, what it shares with earlier ones, and what the store has of it.

    Args:
        entries: in the order in which they run.
        held: keys of the stages that the store holds.
    """
    parts: dict[str, dict[str, Stage]] = {}
    for entry in entries:
        stages = parts.setdefault(entry.part, {})
        stages |= {stage.key: stage for stage in entry.plan.stages()}
    made, seen = [], set[str]()
    for part, stages in parts.items():
        own = [stage for key, stage in stages.items() if key not in seen]
        left = [stage for stage in own if stage.key not in held]
        shared, cached = len(stages) - len(own), len(own) - len(left)
        made.append(Share(part, len(stages), shared, cached, own, left))
        seen |= stages.keys()
    return made


def adding(entries: Iterable[Entry]) -> list[Entry]:
    """Return the studies that have stages of their own; what the others show, these hold."""
    kept, seen = [], set[str]()
    for entry in entries:
        keys = {stage.key for stage in entry.plan.stages()}
        if keys - seen:
            kept.append(entry)
        seen |= keys
    return kept


def faults(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """Return what keeps studies from running: reason -> parts, nothing if all is well.

    Data is looked for (and fetched where it can be), and so are the weights of pretrained models.
    """
    found: dict[str, list[str]] = {}
    for entry in entries:
        try:
            check(entry.plan)
            if getattr(entry.plan.setting.model, "pretrained", False):
                entry.plan.setting.build(seed=0)
        except (ConfigError, DataError) as error:
            found.setdefault(str(error), [])
            if entry.part not in found[str(error)]:
                found[str(error)].append(entry.part)
    return found
