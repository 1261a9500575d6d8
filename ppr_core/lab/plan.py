"""The stage graph of a study: what depends on what, each stage with its content key."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from ppr_core import data as datasets
from ppr_core.attacks import ATTACKS, Clean
from ppr_core.config import Settings, digest, from_registry, unknown
from ppr_core.connectivity import Line
from ppr_core.data.splits import Reserve, reserve
from ppr_core.defenses import DEFENSES, ExactPurification
from ppr_core.errors import CheckpointError, DataError, need
from ppr_core.lab.places import data_folder
from ppr_core.lab.study import Study
from ppr_core.models import MODELS
from ppr_core.reactivation.controls import Controls
from ppr_core.reactivation.query import PAPER_ALPHAS, Query
from ppr_core.reactivation.retuning import PAPER_COUNTS, Retuning
from ppr_core.reactivation.triggers import Triggers
from ppr_core.runtime import pick_device
from ppr_core.training.fit import Schedule
from ppr_core.weights import read, sha256

NO_DEFENSE, CLEAN = "none", "clean"  # the control rows of every table
GRID = "pam@"  # of the labels of PAM at the other values of the rho grid
NO_ATTACK = "none"  # defenses of the never-poisoned model


class Nothing(Settings):
    """No settings: the measure is described by what it measures."""


# What a study may measure of every model beside RA, with the settings of each measure.
MEASURES: dict[str, type[Settings]] = {
    "query": Query,
    "query_alone": Nothing,
    "transfer": Nothing,
    "controls": Controls,
    "triggers": Triggers,
    "clean_retuning": Nothing,
    "path": Line,
    "connection": Nothing,
    "clean_model": Nothing,
}
NEEDED = {"query_alone": "query", "transfer": "query", "connection": "path"}


@dataclass(frozen=True)
class Stage:
    """One cached step of a study.

    Attributes:
        kind: prepared, clean, backdoored, inverted, purified or retuned; or a measure.
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
        self.checkpoints = self._checkpoints()
        self.labels = list(self.defenses)
        for name in self.checkpoints:
            defense = name.partition("/")[2]
            if defense and defense not in self.labels:
                self.labels.append(defense)
        for label in self.labels:
            need(
                label not in (NO_DEFENSE, CLEAN),
                f"expected another label than {label!r} for a defense: it names a control row",
            )
        need(
            NO_ATTACK not in self.attacks,
            f"expected another label than {NO_ATTACK!r} for an attack: it names the clean model",
        )
        self.retuning = {label: self._retuning(label) for label in self.attacks}
        share = study.validation * study.reserve
        need(
            study.reserve - round(share) >= 1,
            f"expected a reserve of more than {round(share)} images, got {study.reserve}",
        )
        self.measures = self._measures()
        self.queries = {label: self._query_of(label) for label in self.attacks}

    @cached_property
    def exact(self) -> str | None:
        """Label of the EP defense, if the study has one."""
        found = (n for n, d in self.defenses.items() if isinstance(d, ExactPurification))
        return next(found, None)

    def _checkpoints(self) -> dict[str, Path]:
        for name, file in self.study.checkpoints.items():
            attack, _, defense = name.partition("/")
            known = {*self.attacks, *([] if defense else [CLEAN])}
            need(attack in known, unknown("model in checkpoints", name, known))
            need(
                Path(file).is_file(),
                f"expected a file for the model {name}, got {file} (no such file)",
                CheckpointError,
            )
        return {name: Path(file) for name, file in self.study.checkpoints.items()}

    def _measures(self) -> dict[str, Settings]:
        study = self.study
        for name in study.measures:
            need(name in MEASURES, unknown("measure", name, MEASURES))
            other = NEEDED.get(name, name)
            need(other in study.measures, f"expected the measure {other!r} beside {name!r}")
        if "connection" in study.measures:
            need(self.exact, "expected the defense 'ep' for the measure 'connection', got none")
        query = study.measures.get("query")
        if query is not None:
            need(
                self.exact if query.get("surrogate") == "ep" else self._has_clean,
                "expected the surrogate of QRA among the models; set query.surrogate to clean or "
                "ep, and have clean_control or the defense ep",
            )
        return {
            name: MEASURES[name].labelled(f"measure {name}", values)
            for name, values in study.measures.items()
        }

    def _query_of(self, attack: str) -> Query | None:
        """QRA's settings against one attack: alpha is the paper's where none is given."""
        query = self.measures.get("query")
        if query is None or "alpha" in query.model_fields_set or attack not in PAPER_ALPHAS:
            return query
        return query.replace(alpha=PAPER_ALPHAS[attack])

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
        return Retuning.labelled("retuning", settings)

    # -- stages ----------------------------------------------------------------------------

    def _base(self, seed: int, method: Settings) -> dict[str, Any]:
        cls = type(method)
        settings = {
            "seed": seed,
            "method": cls.__name__,
            "version": getattr(method, "version", 1),
            **method.flat(),
        }
        if not cls.__module__.startswith("ppr_core."):  # a user's own: its code is its version
            settings["code"] = digest(inspect.getsource(inspect.getmodule(cls)))
        return settings

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

    @cached_property
    def described(self) -> dict[str, str]:
        """The images as MLflow lists data sets: name, digest, source and profile."""
        counts = {name: len(part) for name, part in self.images._asdict().items()}
        counts["classes"] = self.images.train.num_classes
        return {
            "name": self.study.dataset["name"],
            "digest": digest(self._images_key)[:8],
            "source": json.dumps(self.study.dataset),
            "profile": json.dumps(counts),
        }

    def _setting(self) -> dict[str, Any]:
        """What the first stages of every chain depend on."""
        return {
            "dataset": self._images_key,
            "model": {"name": type(self.model).__name__, **self.model.flat()},
            "precision": self.study.precision,
        }

    def _made_elsewhere(self, kind: str, seed: int, attack: str, defense: str) -> Stage | None:
        """Return the stage of a model that a file holds, or None."""
        file = self.checkpoints.get("/".join(part for part in (attack, defense) if part) or CLEAN)
        if file is None:
            return None
        settings = {"checkpoint": sha256(file), "seed": seed, **self._setting()}
        if attack:
            method = self.attacks[attack]
            settings |= {"attack": method.flat(), "name": type(method).__name__}
        return Stage(kind, self, seed, attack, defense, settings)

    def clean_model(self, seed: int) -> Stage:
        """The never-poisoned model."""
        if made := self._made_elsewhere(CLEAN, seed, "", ""):
            return made
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
        if made := self._made_elsewhere("backdoored", seed, attack, ""):
            return replace(made, parents=parents)
        settings = {**self._base(seed, method), **self._setting()}
        return Stage("backdoored", self, seed, attack, settings=settings, parents=parents)

    def purified(self, attack: str, defense: str, seed: int) -> Stage:
        """What a defense makes of a backdoored model (of the clean one, where attack is "")."""
        victim = self.backdoored(attack, seed) if attack else self.clean_model(seed)
        if made := self._made_elsewhere("purified", seed, attack, defense):
            return replace(made, parents=(victim,))
        method = self.defenses[defense]
        held = {"reserve": self.study.reserve, "validation": self.study.validation}
        parents = (victim,)
        if method.preparation() is not None:
            settings = {"seed": seed, **held, **method.preparation()}
            parents += (Stage("inverted", self, seed, attack, defense, settings, (victim,)),)
        settings = {**self._base(seed, method), **held}
        return Stage("purified", self, seed, attack, defense, settings, parents)

    def source(self, attack: str, defense: str, seed: int) -> Stage:
        """The model that reactivation starts from: a purified one, or the clean one."""
        return self.clean_model(seed) if defense == CLEAN else self.purified(attack, defense, seed)

    def retuned(self, attack: str, defense: str, seed: int, *, clean_only: bool = False) -> Stage:
        """A purified (or the clean) model after the retuning attack; or without any poison."""
        parents = (self.source(attack, defense, seed), self.backdoored(attack, seed))
        method = self.retuning[attack]
        if clean_only:
            method = method.replace(poisoned=0)
        kind = "clean_retuning" if clean_only else "retuned"
        return Stage(kind, self, seed, attack, defense, self._base(seed, method), parents)

    def query(self, attack: str, defense: str, seed: int, *, alone: bool = False) -> Stage:
        """QRA against a model; alone: by the paper's eq. 1, without a surrogate."""
        method = self.queries[attack]
        if alone:
            method = method.replace(form="paper", alpha=0.0)
        parents = (
            self.source(attack, defense, seed),
            self.retuned(attack, defense, seed),
            self._surrogate(attack, defense, seed),
            self.backdoored(attack, seed),
        )
        settings = {**self._base(seed, method), "budgets": self.study.budgets}
        kind = "query_alone" if alone else "query"
        return Stage(kind, self, seed, attack, defense, settings, parents)

    def _surrogate(self, attack: str, defense: str, seed: int) -> Stage:
        """QRA's surrogate: as set, or the other one where that model is itself attacked."""
        ep = self.queries[attack].surrogate == "ep"
        first, other = (self.exact, CLEAN) if ep else (CLEAN, self.exact)
        there = self._has_clean if other == CLEAN else other
        return self.source(attack, other if defense == first and there else first, seed)

    def _measure(
        self, kind: str, attack: str, defense: str, seed: int, *parents: Stage, **settings: Any
    ) -> Stage:
        method = self.measures[kind]
        settings = {**self._base(seed, method), **settings}
        return Stage(kind, self, seed, attack, defense, settings, parents)

    def transfer(self, attack: str, seed: int) -> Stage:
        """Every QRA perturbation against every other purified model of one attack."""
        labels = [n for n in self.labels if not self.oracle(n) and not n.startswith(GRID)]
        purified = [self.purified(attack, label, seed) for label in labels]
        made = [self.query(attack, label, seed) for label in labels]
        eps = self.queries[attack].eps
        return self._measure("transfer", attack, "", seed, *purified, *made, eps=eps)

    def controls(self, attack: str, defense: str, seed: int) -> Stage:
        """Attacks at QRA's budgets that know nothing of the backdoor."""
        parents = (self.source(attack, defense, seed), self.backdoored(attack, seed))
        budgets = {"budgets": self.study.budgets}
        return self._measure("controls", attack, defense, seed, *parents, **budgets)

    def triggers(self, attack: str, defense: str, seed: int) -> Stage:
        """Optimised triggers; those by transfer come from the other purified models."""
        others = [
            self.purified(attack, label, seed)
            for label in self.labels
            if label != defense and not self.oracle(label) and not label.startswith(GRID)
        ]
        parents = (self.source(attack, defense, seed), self.backdoored(attack, seed), *others)
        return self._measure("triggers", attack, defense, seed, *parents)

    def path(self, attack: str, defense: str, seed: int) -> Stage:
        """The line from the backdoored to a purified model."""
        ends = (self.backdoored(attack, seed), self.purified(attack, defense, seed))
        return self._measure("path", attack, defense, seed, *ends)

    def connection(self, attack: str, defense: str, seed: int) -> Stage:
        """The line from a purified model to the EP model."""
        ends = (self.purified(attack, defense, seed), self.purified(attack, self.exact, seed))
        settings = self.measures["path"].flat()
        return self._measure("connection", attack, defense, seed, *ends, **settings)

    def oracle(self, defense: str) -> bool:
        """Say whether a defense, so configured, uses what a real defender cannot have."""
        return defense in self.defenses and self.defenses[defense].oracle

    def measured(self, attack: str, defense: str, seed: int) -> dict[str, Stage]:
        """Return what the study measures of one cell beside RA, by measure."""
        if attack == NO_ATTACK or defense == NO_DEFENSE:
            return {}
        made = {}
        if not defense.startswith(GRID):  # the rest of the rho curve gets RA and the path
            made = {
                "query": lambda: self.query(attack, defense, seed),
                "query_alone": lambda: self.query(attack, defense, seed, alone=True),
                "controls": lambda: self.controls(attack, defense, seed),
                "triggers": lambda: self.triggers(attack, defense, seed),
                "clean_retuning": lambda: self.retuned(attack, defense, seed, clean_only=True),
            }
        if defense != CLEAN:
            made["path"] = lambda: self.path(attack, defense, seed)
        if defense not in (CLEAN, self.exact):
            made["connection"] = lambda: self.connection(attack, defense, seed)
        return {name: stage() for name, stage in made.items() if name in self.measures}

    def cells(self) -> Iterator[tuple[str, str, int]]:
        """Yield every (attack, defense, seed) of the study, control rows first."""
        controls = (NO_DEFENSE, CLEAN) if self._has_clean else (NO_DEFENSE,)
        for seed in self.study.seeds:
            for attack in self.attacks:
                imported = {name.partition("/")[2] for name in self._imported_by(attack)}
                for defense in (*controls, *self.labels):
                    if defense in {*controls, *self.defenses, *imported}:
                        yield attack, defense, seed
            if "clean_model" in self.measures:
                for defense in (NO_DEFENSE, *self.defenses):
                    if not self.oracle(defense):  # there is no trigger for an oracle to know
                        yield NO_ATTACK, defense, seed

    @property
    def _has_clean(self) -> bool:
        return self.study.clean_control or CLEAN in self.checkpoints

    def _imported_by(self, attack: str) -> list[str]:
        return [name for name in self.checkpoints if name.startswith(f"{attack}/")]

    def stages(self) -> list[Stage]:
        """Return every stage of the study once, parents before children."""
        ordered: dict[str, Stage] = {}

        def add(stage: Stage) -> None:
            for parent in stage.parents:
                add(parent)
            ordered.setdefault(stage.key, stage)

        cells = list(self.cells())
        for cell in cells:
            add(self.last(*cell))
        for cell in cells:  # after RA of all: the table is complete as early as can be
            for stage in self.measured(*cell).values():
                add(stage)
        if "transfer" in self.measures:
            for seed in self.study.seeds:
                for attack in self.attacks:
                    add(self.transfer(attack, seed))
        return list(ordered.values())

    @cached_property
    def mark(self) -> str:
        """What tells this study from another of its name: a short digest of all its stages."""
        return digest([stage.key for stage in self.stages()])[:12]

    def last(self, attack: str, defense: str, seed: int) -> Stage:
        """Return the stage that completes a cell, its measures beside RA left out."""
        if attack == NO_ATTACK:
            if defense == NO_DEFENSE:
                return self.clean_model(seed)
            return self.purified("", defense, seed)
        if defense == NO_DEFENSE:
            return self.backdoored(attack, seed)
        return self.retuned(attack, defense, seed)

    def weight(self, stage: Stage) -> float:
        """Return a rough cost of a stage: thousands of images that it trains on."""
        count = len(self.images.train)
        if stage.kind in ("clean", "backdoored"):
            method = self.attacks[stage.attack] if stage.attack else self.clean
            return method.training.total_steps(count) * method.training.batch_size / 1000
        if stage.kind in ("retuned", "clean_retuning"):
            return self.retuning[stage.attack].share * count * 10 / 1000
        if stage.kind == "purified" and stage.defense in self.defenses:
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

    def check(self) -> None:
        """Raise at once where the study cannot do with what it is given.

        Raises:
            DataError: too few images, or ones that an attack cannot stamp.
            CheckpointError: a model made elsewhere that is not of the study's architecture.
        """
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
        if self.checkpoints:
            model = self.model.build(train.num_classes, seed=0)
            for file in self.checkpoints.values():
                read(file, model)


@lru_cache(maxsize=2)
def _load(key: str, plan: Plan) -> datasets.Split:
    return datasets.load(plan.study.dataset, data_folder())


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
    return f"{GRID}{rho:g}"


def _method(
    registry: Mapping[str, type], label: str, settings: Mapping[str, Any] | None, what: str
) -> Any:
    """Build the method that a study's label stands for: its own name, or `method: name`."""
    values = dict(settings or {})
    values["name"] = values.pop("method", label)
    return from_registry(registry, values, what, f"{what} {label}")
