"""The stage graph of a study: what depends on what, each stage with its content key."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch

from ppr_core import data as datasets
from ppr_core.attacks import ATTACKS, Clean
from ppr_core.config import Settings, Study, digest, from_registry, unknown
from ppr_core.data.splits import Reserve, reserve
from ppr_core.defenses import DEFENSES
from ppr_core.errors import ConfigError, DataError, need
from ppr_core.models import MODELS
from ppr_core.reactivation.retuning import PAPER_COUNTS, Retuning
from ppr_core.runtime import pick_device
from ppr_core.training import Schedule

NO_DEFENSE, CLEAN = "none", "clean"  # the control rows of every table


@dataclass(frozen=True)
class Stage:
    """One cached step of a study.

    Attributes:
        kind: prepared, clean, backdoored, inverted, purified or retuned.
        plan: the study it belongs to, resolved.
        seed: the run's seed.
        attack: label of the attack; empty for the clean model.
        defense: label of the defense, or "clean"; empty before any defense.
        settings: everything that determines its result besides its parents.
        parents: the stages whose results it reads.
    """

    kind: str
    plan: "Plan"
    seed: int
    attack: str = ""
    defense: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple["Stage", ...] = ()

    @cached_property
    def key(self) -> str:
        """Content key: sha256 of the settings of this stage and of all its parents."""
        return digest([self.kind, dict(self.settings), [parent.key for parent in self.parents]])

    @property
    def name(self) -> str:
        """Readable name, such as "blended/pam retuned s0"."""
        what = "/".join(part for part in (self.attack, self.defense) if part)
        return " ".join(part for part in (what, self.kind, f"s{self.seed}") if part)

    def parent(self, *kinds: str) -> "Stage | None":
        """Return the parent of one of these kinds, or None."""
        return next((stage for stage in self.parents if stage.kind in kinds), None)


class Plan:
    """A study with every name resolved and every setting checked.

    Raises:
        ConfigError: an unknown name or setting, a wrong type, a value out of range.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.dataset = from_registry(datasets.DATASETS, study.dataset, "dataset")
        self.model = from_registry(MODELS, study.model, "model")
        self.attacks = {
            label: _method(ATTACKS, label, self._attack_settings(settings), "attack")
            for label, settings in study.attacks.items()
        }
        self.clean = Clean(**self._attack_settings({}, poison_rate=0.0))
        self.defenses = {
            label: _method(DEFENSES, label, settings, "defense")
            for label, settings in self._defense_settings().items()
        }
        for label in self.defenses:
            need(
                label not in (NO_DEFENSE, CLEAN),
                f"expected another label than {label!r} for a defense: it names a control row",
            )
        self.retuning = {label: self._retuning(label) for label in self.attacks}
        share = study.validation * study.reserve
        need(
            study.reserve - round(share) >= 1,
            f"expected a reserve of more than {round(share)} images, got {study.reserve}",
        )

    def _attack_settings(self, settings: Mapping[str, Any], **fixed: Any) -> dict[str, Any]:
        common = {"poison_rate": self.study.poison_rate, "target": self.study.target}
        training = {**self.study.training, **settings.get("training", {})}
        return {**common, **settings, "training": training, **fixed}

    def _defense_settings(self) -> dict[str, dict[str, Any]]:
        """The configured defenses, and PAM once more for every rho of the grid."""
        settings = dict(self.study.defenses)
        if not self.study.rho_grid:
            return settings
        base = {"method": "pam", **settings.pop("pam", {})}
        own = base.get("rho")
        for rho in sorted({*self.study.rho_grid, *([] if own is None else [own])}):
            settings["pam" if rho == own else rho_label(rho)] = {**base, "rho": rho}
        return settings

    def _retuning(self, attack: str) -> Retuning:
        settings = dict(self.study.retuning)
        counts = settings.get("poisoned", PAPER_COUNTS)
        if isinstance(counts, Mapping):
            for label in counts:
                known = {*ATTACKS, *self.attacks}
                need(label in known, unknown("attack in retuning.poisoned", label, known))
            default = Retuning.model_fields["poisoned"].default
            settings["poisoned"] = counts.get(attack, default)
        return Retuning(**settings)

    # -- stages ----------------------------------------------------------------------------

    def _base(self, seed: int, method: Settings) -> dict[str, Any]:
        return {
            "seed": seed,
            "method": type(method).__name__,
            "version": getattr(method, "version", 1),
            **method.flat(),
        }

    @cached_property
    def _images_key(self) -> dict[str, Any]:
        """What the images depend on: settings, or the content of files that may change."""
        cls = type(self.dataset)
        key = {"name": cls.__name__, "version": cls.version, **self.dataset.flat()}
        if "path" in cls.model_fields:
            key["path"] = hashlib.sha256()
            for part in self.images:
                for tensor in (part.images, part.labels):
                    key["path"].update(tensor.cpu().numpy().tobytes())
            key["path"] = key["path"].hexdigest()
        return key

    def _setting(self) -> dict[str, Any]:
        """What the first stages of every chain depend on."""
        return {
            "dataset": self._images_key,
            "model": {"name": type(self.model).__name__, **self.model.flat()},
            "precision": self.study.precision,
        }

    def clean_model(self, seed: int) -> Stage:
        """The never-poisoned model."""
        settings = {**self._base(seed, self.clean), **self._setting()}
        settings.pop("target")  # nothing is poisoned, so nothing depends on it
        return Stage(CLEAN, self, seed, settings=settings)

    def backdoored(self, attack: str, seed: int) -> Stage:
        """The victim model of an attack."""
        method = self.attacks[attack]
        parents = ()
        if method.preparation() is not None:
            settings = {
                "seed": seed,
                "method": type(method).__name__,
                "version": method.version,
                **method.preparation(),
                "dataset": self._setting()["dataset"],
            }
            parents = (Stage("prepared", self, seed, attack, settings=settings),)
        settings = {**self._base(seed, method), **self._setting()}
        return Stage("backdoored", self, seed, attack, settings=settings, parents=parents)

    def purified(self, attack: str, defense: str, seed: int) -> Stage:
        """What a defense makes of a backdoored model (of the clean one, where attack is "")."""
        method = self.defenses[defense]
        victim = self.backdoored(attack, seed) if attack else self.clean_model(seed)
        held = {"reserve": self.study.reserve, "validation": self.study.validation}
        parents = (victim,)
        if method.preparation() is not None:
            settings = {"seed": seed, **held, **method.preparation()}
            parents += (Stage("inverted", self, seed, attack, defense, settings, (victim,)),)
        settings = {**self._base(seed, method), **held}
        return Stage("purified", self, seed, attack, defense, settings, parents)

    def retuned(self, attack: str, defense: str, seed: int) -> Stage:
        """A purified (or the clean) model after the retuning attack."""
        victim = self.backdoored(attack, seed)
        model = self.clean_model(seed) if defense == CLEAN else self.purified(attack, defense, seed)
        settings = self._base(seed, self.retuning[attack])
        return Stage("retuned", self, seed, attack, defense, settings, (model, victim))

    def cells(self) -> Iterator[tuple[str, str, int]]:
        """Yield every (attack, defense, seed) of the study, control rows first."""
        for seed in self.study.seeds:
            for attack in self.attacks:
                for defense in (NO_DEFENSE, CLEAN, *self.defenses):
                    yield attack, defense, seed

    def stages(self) -> list[Stage]:
        """Return every stage of the study once, parents before children."""
        ordered: dict[str, Stage] = {}

        def add(stage: Stage) -> None:
            for parent in stage.parents:
                add(parent)
            ordered.setdefault(stage.key, stage)

        for cell in self.cells():
            add(self.last(*cell))
        return list(ordered.values())

    def last(self, attack: str, defense: str, seed: int) -> Stage:
        """Return the stage that completes a cell."""
        if defense == NO_DEFENSE:
            return self.backdoored(attack, seed)
        return self.retuned(attack, defense, seed)

    def weight(self, stage: Stage) -> float:
        """Return a rough cost of a stage: thousands of images that it trains on."""
        count = len(self.images.train)
        if stage.kind in ("clean", "backdoored"):
            method = self.attacks[stage.attack] if stage.attack else self.clean
            return method.training.total_steps(count) * method.training.batch_size / 1000
        if stage.kind == "retuned":
            return self.retuning[stage.attack].share * count * 10 / 1000
        if stage.kind == "purified":
            return 2 * _budget(self.defenses[stage.defense], self.study.reserve) / 1000
        return 2 * self.study.reserve * 30 / 1000

    # -- data ------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """Where this study runs."""
        return pick_device(self.study.device)

    @cached_property
    def images(self) -> datasets.Split:
        """Training and test images, on the study's device."""
        split = _load(digest(self.study.dataset), self)
        return datasets.Split(*(part.to(self.device) for part in split))

    def held(self, seed: int) -> Reserve:
        """The defender's clean images."""
        return reserve(self.images.train, self.study.reserve, self.study.validation, seed)

    def check_data(self) -> None:
        """Raise DataError at once where the data cannot serve the study."""
        train = self.images.train
        for label, attack in self.attacks.items():
            try:
                attack.check_data(train)
            except DataError as error:
                raise DataError(f"attack {label}: {error}") from None
        need(
            self.study.reserve <= len(train),
            f"expected a reserve of at most {len(train)} images, got {self.study.reserve}",
            DataError,
        )


@lru_cache(maxsize=2)
def _load(key: str, plan: Plan) -> datasets.Split:
    return datasets.load(plan.study.dataset)


def _budget(method: Settings, count: int) -> float:
    """Return the images that all of a method's schedules step over, its rounds counted."""
    images = 0.0
    for name in type(method).model_fields:
        value = getattr(method, name)
        if isinstance(value, Schedule):
            images += value.total_steps(count) * min(value.batch_size, count)
        elif isinstance(value, Settings):
            images += _budget(value, count)
    return images * getattr(method, "rounds", 1)


def rho_label(rho: float) -> str:
    """Return the label of PAM at one rho of the grid."""
    return f"pam@{rho:g}"


def _method(
    registry: Mapping[str, type], label: str, settings: Mapping[str, Any] | None, what: str
) -> Any:
    """Build the method that a study's label stands for: its own name, or `method: name`."""
    values = dict(settings or {})
    values["name"] = values.pop("method", label)
    try:
        return from_registry(registry, values, what)
    except ConfigError as error:
        raise ConfigError(f"{what} {label}: {error}") from None
