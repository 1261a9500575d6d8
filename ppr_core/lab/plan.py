"""A study with every name resolved: its grid of cells, and the stages that compute it."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ppr_core import data as datasets
from ppr_core.attacks import ATTACKS, Clean
from ppr_core.config import SettingsError, digest, from_registry, load_own, unknown
from ppr_core.defenses import DEFENSES, Defense
from ppr_core.errors import CheckpointError, need
from ppr_core.lab.chains import Chains, Made
from ppr_core.lab.graph import (
    CLEAN,
    NO_ATTACK,
    NO_DEFENSE,
    Cell,
    Setting,
    Stage,
    Variant,
    with_parents,
)
from ppr_core.lab.measures import MEASURES, Measure
from ppr_core.lab.study import Study
from ppr_core.models import MODELS

RA = "retuning"  # the measure that every study takes


class Plan(Chains):
    """A study with every name resolved and every setting checked.

    Args:
        study: its settings.

    Attributes:
        measures: measure -> attack -> the measure with its settings against that attack.

    Raises:
        ConfigError: an unknown name or setting, a wrong type, a value out of range.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        attacks = {
            label: _method(ATTACKS, label, _attack_settings(study, settings), "attack")
            for label, settings in study.attacks.items()
        }
        need(
            NO_ATTACK not in attacks,
            f"expected another label than {NO_ATTACK!r} for an attack: it names the clean model",
        )
        setting = Setting(
            study,
            from_registry(datasets.DATASETS, study.dataset, "dataset"),
            from_registry(MODELS, study.model, "model"),
        )
        training: Any = study.training  # pydantic lays it over the default
        made, clean = _made(study), Clean(training=training)
        has_clean = study.clean_control or (NO_ATTACK, NO_DEFENSE) in made
        super().__init__(setting, clean, has_clean, attacks, _defenses(study), made)
        share = study.validation * study.reserve
        need(
            study.reserve - round(share) >= 1,
            f"expected a reserve of more than {round(share)} images, got {study.reserve}",
        )
        self.measures = self._measures({RA: study.retuning, **study.measures})

    def _measures(self, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Measure]]:
        measures: dict[str, dict[str, Measure]] = {}
        columns: dict[str, str] = {}
        for label, values in wanted.items():
            cls = _measure(label, values)
            for other in (*cls.reads, *([cls.like] if cls.like else [])):
                need(other in wanted, f"expected the measure {other!r} beside {label!r}")
            base = {n: v for n, v in wanted.get(cls.like, {}).items() if n in cls.model_fields}
            own = {name: value for name, value in values.items() if name != "method"}
            values = {**base, **own, **cls.fixed}
            cls.check_study(self, values)
            try:
                measures[label] = {attack: cls.against(attack, values) for attack in self.attacks}
            except SettingsError as error:
                told = label if label == RA else f"measure {label}"
                raise SettingsError(told, error.problems) from None
            for column in cls.columns:
                other = columns.setdefault(column.name, label)
                need(other == label, f"{label} and {other} both fill the column {column.name!r}")
        return measures

    def classes(self) -> dict[str, type[Measure]]:
        """Return the measures that the study takes, by label."""
        return {label: type(next(iter(of.values()))) for label, of in self.measures.items() if of}

    # -- stages ----------------------------------------------------------------------------

    def cells(self) -> Iterator[Cell]:
        """Yield every cell of the study, control rows first."""
        controls = (NO_DEFENSE, CLEAN) if self.has_clean else (NO_DEFENSE,)
        for seed in self.study.seeds:
            for attack in self.attacks:
                yield from (Cell(attack, control, seed) for control in controls)
                yield from self.purified_cells(attack, seed)
            for cls in self.classes().values():
                yield from cls.further_cells(self, seed)

    def measured(self, cell: Cell) -> dict[str, Stage]:
        """Return the stage of every measure that is taken of a cell, by the measure's label."""
        found = {
            label: self.taken(label, cell)
            for label, cls in self.classes().items()
            if not cls.of_attack
        }
        return {label: stage for label, stage in found.items() if stage is not None}

    def taken(self, label: str, cell: Cell) -> Stage | None:
        """Return the stage of one measure of a cell, or None where it is not taken."""
        return self.once(f"measure {label}", cell, lambda _: self._taken(label, cell))

    def _taken(self, label: str, cell: Cell) -> Stage | None:
        method = self.measures.get(label, {}).get(cell.attack)
        if method is None or not method.takes(self, cell):
            return None
        read = tuple(stage for name in method.reads if (stage := self.taken(name, cell)))
        return self._stage(label, method, cell, read, {})

    def retuning(self, attack: str) -> Any:
        """Return RA with its settings against an attack."""
        return self.measures[RA][attack]

    def of_attack(self, label: str, attack: str, seed: int) -> Stage | None:
        """Return the stage of a measure that is taken once of an attack's purified models."""
        method, rivals = self.measures[label][attack], self.rivals(attack, seed)
        read = [stage for name in method.reads for c in rivals if (stage := self.taken(name, c))]
        if not read:
            return None
        among = {"models": [stage.cell.defense for stage in read]}  # as its rows call them
        return self._stage(label, method, Cell(attack, NO_DEFENSE, seed), tuple(read), among)

    def _stage(
        self, label: str, method: Measure, cell: Cell, read: tuple[Stage, ...], given: dict
    ) -> Stage:
        parents = method.parents(self, cell, *read)
        given = {**method.given(self.setting), **given}
        return Stage(method.kind or label, cell, method, self.setting, given, parents)

    def last(self, cell: Cell) -> Stage:
        """Return the stage that completes a cell: RA, or the model where there is no RA."""
        return self.taken(RA, cell) or self.source(cell)

    def retuned(self, cell: Cell) -> Stage:
        """Return the stage of a cell's model after RA."""
        missing = f"expected a purified or clean model to retune, got {cell.label}"
        return need(self.taken(RA, cell), missing)

    def stages(self) -> list[Stage]:
        """Return every stage of the study once, parents before children."""
        cells = list(self.cells())
        wanted = [self.last(cell) for cell in cells]
        for cell in cells:  # after RA of all: the table is complete as early as can be
            wanted += self.measured(cell).values()
        return with_parents([*wanted, *self.of_attacks()])

    def of_attacks(self) -> list[Stage]:
        """Return the stages of what is measured once of an attack's purified models."""
        labels = [label for label, cls in self.classes().items() if cls.of_attack]
        made = (
            self.of_attack(label, attack, seed)
            for label in labels
            for seed in self.study.seeds
            for attack in self.attacks
        )
        return [stage for stage in made if stage is not None]

    @cached_property
    def mark(self) -> str:
        """What tells this study from another of its name: a short digest of all its stages."""
        return digest([stage.key for stage in self.stages()])[:12]

    # -- data ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the study runs."""
        return self.setting.place

    @property
    def images(self) -> datasets.Split:
        """Training and test images, on the study's device."""
        return self.setting.images


# -- names --------------------------------------------------------------------------------------


def _attack_settings(study: Study, settings: Mapping[str, Any]) -> dict[str, Any]:
    common = {"poison_rate": study.poison_rate, "target": study.target}
    training = {**study.training, **settings.get("training", {})}
    return {**common, **settings, "training": training}


def _defenses(study: Study) -> dict[tuple[str, Variant | None], Defense]:
    """Build the configured defenses, and PAM once more for every rho of the grid."""
    for label in study.defenses:
        _check_label(label)
    settings: dict[tuple[str, Variant | None], dict[str, Any]]
    settings = {(label, None): values for label, values in study.defenses.items()}
    if study.rho_grid:
        base = {"method": "pam", **settings.pop(("pam", None), {})}
        own = base.get("rho")
        for rho in sorted({*study.rho_grid, *([] if own is None else [own])}):
            variant = None if rho == own else Variant("rho", rho)
            settings["pam", variant] = {**base, "rho": rho}
    return {
        (label, variant): _defense(study, label, values)
        for (label, variant), values in settings.items()
    }


def _defense(study: Study, label: str, values: Mapping[str, Any]) -> Defense:
    """Build a defense; one that trains anew does so by the recipe of the study's victims."""
    defense = _method(DEFENSES, label, values, "defense")
    if "training" not in type(defense).model_fields:
        return defense
    training = {**study.training, **(values or {}).get("training", {})}
    return _method(DEFENSES, label, {**(values or {}), "training": training}, "defense")


def _made(study: Study) -> Made:
    """Return the files of models made elsewhere, by attack and defense."""
    made: Made = {}
    for name, file in study.checkpoints.items():
        attack, _, defense = name.partition("/")
        known = {*study.attacks, *([] if defense else [CLEAN])}
        need(attack in known, unknown("model in checkpoints", name, known))
        need(
            Path(file).is_file(),
            f"expected a file for the model {name}, got {file} (no such file)",
            CheckpointError,
        )
        _check_label(defense)
        clean = attack == CLEAN and not defense
        made[NO_ATTACK if clean else attack, defense or NO_DEFENSE] = Path(file)
    return made


def _check_label(defense: str) -> None:
    need(
        defense not in (NO_DEFENSE, CLEAN),
        f"expected another label than {defense!r} for a defense: it names a control row",
    )


def _method(
    registry: Mapping[str, type], label: str, settings: Mapping[str, Any] | None, what: str
) -> Any:
    """Build the method that a study's label stands for: its own name, or `method: name`."""
    values = dict(settings or {})
    values["name"] = values.pop("method", label)
    return from_registry(registry, values, what, f"{what} {label}")


def _measure(label: str, values: Mapping[str, Any]) -> type[Measure]:
    """Return the measure that a study's label stands for: its own name, or `method: name`."""
    name = str(values.get("method", label))
    if ":" in name:
        return own_measure(name)
    need(name in MEASURES, unknown("measure", name, MEASURES))
    return MEASURES[name]


def own_measure(name: str) -> type[Measure]:
    """Import a measure from a user's own file, named `module:Class` or `file.py:Class`.

    Raises:
        ConfigError: no such module or class, or one that is no Measure.
    """
    found = load_own(name, "measure")
    need(
        isinstance(found, type) and issubclass(found, Measure),
        f"expected {name} to be a subclass of Measure, got {found!r}",
    )
    return found
