"""Cells and stages as values: what a study computes, and what each result is kept under."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from ppr_core import data as datasets
from ppr_core.config import Settings, digest
from ppr_core.data.base import Dataset
from ppr_core.data.splits import Reserve, reserve
from ppr_core.errors import need
from ppr_core.lab.places import data_folder
from ppr_core.lab.study import Study
from ppr_core.models.base import Architecture, Network
from ppr_core.runtime import pick_device

NO_DEFENSE, CLEAN = "none", "clean"  # the control rows of every table
NO_ATTACK = "none"  # the never-poisoned model, and what defenses make of it


class Variant(NamedTuple):
    """One setting of a defense that a grid varies, such as PAM's rho."""

    setting: str
    value: float

    def __str__(self) -> str:
        return f"{self.setting} {self.value:g}"


@dataclass(frozen=True)
class Cell:
    """One model of a study's grid.

    Attributes:
        attack: label of the attack; `NO_ATTACK` for the never-poisoned model.
        defense: label of the defense, or of a control: `NO_DEFENSE` or `CLEAN`.
        seed: of the run.
        variant: what a grid varies of the defense; None for the defense as the study sets it.
    """

    attack: str
    defense: str
    seed: int
    variant: Variant | None = None

    @property
    def attacked(self) -> bool:
        """Whether there is a defended (or clean) model whose backdoor may be reactivated."""
        return self.attack != NO_ATTACK and self.defense != NO_DEFENSE

    @property
    def label(self) -> str:
        """What people read, such as "blended/pam rho 0.5"; nothing reads it back."""
        attack = "" if self.attack == NO_ATTACK else self.attack
        defense = "" if self.defense == NO_DEFENSE else self.defense
        named = "/".join(part for part in (attack, defense) if part)
        return f"{named} {self.variant}" if self.variant else named

    def but(self, **changes: Any) -> Self:
        """Return the cell with other values; those of another defense have no variant."""
        if "defense" in changes:
            changes.setdefault("variant", None)
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Setting:
    """What all stages of a study share: its settings, its data, and its architecture.

    Attributes:
        study: how it computes, and what it holds back.
        dataset: the data set that it names.
        model: the architecture of its classifiers.
    """

    study: Study
    dataset: Dataset
    model: Architecture

    def __getstate__(self) -> dict[str, Any]:
        """Leave the images where they are: a worker reads its own."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @cached_property
    def place(self) -> torch.device:
        """The device that the study runs on."""
        return pick_device(self.study.device)

    @cached_property
    def images(self) -> datasets.Split:
        """Training and test images, on the study's device."""
        root = data_folder()
        made = json.dumps(self.dataset.fingerprint(root), default=str)
        source = json.dumps(self.study.dataset, sort_keys=True)
        return _images(source, str(root), made, str(self.place))

    def held(self, seed: int) -> Reserve:
        """Return the defender's clean images."""
        held = self.study.reserve, self.study.validation
        return reserve(self.images.train, *held, seed)

    def build(self, seed: int) -> Network:
        """Return a fresh classifier, on the CPU."""
        return self.model.build(self.images.train.num_classes, seed=seed)

    @cached_property
    def images_key(self) -> dict[str, Any]:
        """What the images depend on: settings, or the content of files that may change."""
        cls = type(self.dataset)
        key = {"name": cls.__name__, "version": cls.version, **self.dataset.flat()}
        if "path" in cls.model_fields:
            content = hashlib.sha256()
            for part in self.images:
                for tensor in (part.images, part.labels):
                    content.update(tensor.cpu().numpy().tobytes())
            key["path"] = content.hexdigest()
        own = self.dataset.own_code()
        return key | ({"code": own} if own else {})

    def assume_images(self) -> None:
        """Let the settings of a data set that is not here stand for its images: to count stages."""
        vars(self)["images_key"] = {"name": type(self.dataset).__name__, **self.dataset.flat()}

    @property
    def roots(self) -> dict[str, Any]:
        """What the first stages of every chain depend on."""
        return {
            "dataset": self.images_key,
            "model": identity(self.model),
            "precision": self.study.precision,
        }

    @property
    def shares(self) -> dict[str, Any]:
        """What the defender's images depend on beside the data set."""
        return {"reserve": self.study.reserve, "validation": self.study.validation}

    @cached_property
    def described(self) -> dict[str, str]:
        """The images as MLflow lists data sets: name, digest, source and profile."""
        counts = {name: len(part) for name, part in self.images._asdict().items()}
        counts["classes"] = self.images.train.num_classes
        return {
            "name": self.study.dataset["name"],
            "digest": digest(self.images_key)[:8],
            "source": json.dumps(self.study.dataset),
            "profile": json.dumps(counts),
        }


@lru_cache(maxsize=2)
def _images(source: str, root: str, made: str, device: str) -> datasets.Split:
    """Read a data set once for all plans and stages of a process."""
    return datasets.Split(*(part.to(device) for part in datasets.load(json.loads(source), root)))


@dataclass(frozen=True, eq=False)
class Stage:
    """One cached step of a study: a method, and what it is called on.

    Attributes:
        kind: prepared, clean, backdoored, inverted, purified or retuned; or a measure.
        cell: that it is computed for.
        method: the attack, defense or measure that runs, fully built; None where none does.
        setting: of the study.
        given: what else determines the result: JSON.
        parents: the stages whose results it reads.
        file: of a model made elsewhere, which is read in place of running a method.
    """

    kind: str
    cell: Cell
    method: Any
    setting: Setting
    given: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple["Stage", ...] = ()
    file: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the key behind: whoever computes the stage digests the method that it holds."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @cached_property
    def key(self) -> str:
        """Content key: a digest of the method that runs, of its inputs, and of the parents."""
        parents = [parent.key for parent in self.parents]
        return digest([self.kind, self.cell.seed, self._about, dict(self.given), parents])

    @property
    def _about(self) -> Any:
        if self.kind in ("prepared", "inverted"):  # shared by methods that differ elsewhere
            cls = type(self.method)
            own = [cls.__name__, _version(self.method)] if self.kind == "prepared" else []
            code = self.method.own_code()
            return [*own, self.method.preparation(), {"code": code} if code else {}]
        return self.method and identity(self.method)

    @property
    def name(self) -> str:
        """What people read, such as "blended/pam retuned s0"."""
        parts = (self.cell.label, self.kind, f"s{self.cell.seed}")
        return " ".join(part for part in parts if part)

    @property
    def settings(self) -> dict[str, Any]:
        """What the stage's run lists: the seed, the method's settings and the other inputs."""
        settings: dict[str, Any] = {"seed": self.cell.seed, **self.given}
        if self.method is not None:
            about = {"method": type(self.method).__name__, "version": _version(self.method)}
            settings |= about | self.method.flat()
        return settings

    def parent(self, *kinds: str) -> "Stage | None":
        """Return the parent of one of these kinds, or None."""
        return next((stage for stage in self.parents if stage.kind in kinds), None)

    @property
    def victim(self) -> "Stage":
        """The stage of the backdoored model that this one goes back to."""
        return need(self.origin("backdoored"), f"expected a victim before {self.name}, got none")

    def origin(self, kind: str) -> "Stage | None":
        """Return the nearest stage of a kind among this one and those before it, or None."""
        line = [self]
        for stage in line:
            if stage.kind == kind:
                return stage
            line += stage.parents
        return None


def with_parents(stages: Iterable[Stage]) -> list[Stage]:
    """Return stages and all that they read, each once, parents before children."""
    ordered: dict[str, Stage] = {}

    def add(stage: Stage) -> None:
        if stage.key not in ordered:
            for parent in stage.parents:
                add(parent)
            ordered[stage.key] = stage

    for stage in stages:
        add(stage)
    return list(ordered.values())


def identity(method: Settings) -> dict[str, Any]:
    """Return all that a method is: its class and version, every setting, a user's own code."""
    values = method.model_dump(mode="json")
    for name in type(method).model_fields:
        if isinstance(value := getattr(method, name), Settings):
            values[name] = identity(value)
    about = {"class": type(method).__name__, "version": _version(method), "settings": values}
    own = method.own_code()  # this project's classes have versions
    return about | ({"code": own} if own else {})


def _version(method: Settings) -> int:
    return getattr(method, "version", 1)
