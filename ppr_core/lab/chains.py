"""How a study's models come about: the stages from the training images to a purified model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppr_core.attacks import Attack, Clean
from ppr_core.config import digest
from ppr_core.defenses import Defense, ExactPurification
from ppr_core.lab.graph import CLEAN, NO_ATTACK, NO_DEFENSE, Cell, Setting, Stage, Variant
from ppr_core.weights import sha256

Made = dict[tuple[str, str], Path]  # (attack, defense) -> file of a model made elsewhere


class Chains:
    """The stages of a study's models, by cell; each stage is made once.

    Args:
        setting: what all of them share.
        clean: trains the never-poisoned model.
        has_clean: whether that is one of the study's controls.
        attacks: by label.
        defenses: by label and variant.
        made: files of models made elsewhere.
    """

    def __init__(
        self,
        setting: Setting,
        clean: Clean,
        has_clean: bool,
        attacks: Mapping[str, Attack],
        defenses: Mapping[tuple[str, Variant | None], Defense],
        made: Made,
    ) -> None:
        self.setting, self.clean, self.has_clean = setting, clean, has_clean
        self.attacks, self.defenses, self.made = dict(attacks), dict(defenses), made
        self._stages: dict[tuple[str, Cell], Stage | None] = {}

    @property
    def exact(self) -> str | None:
        """Label of the EP defense, if the study has one."""
        found = (n for (n, _), d in self.defenses.items() if isinstance(d, ExactPurification))
        return next(found, None)

    def purified_cells(self, attack: str, seed: int) -> list[Cell]:
        """Return the cells of all defended models of an attack, in the study's order."""
        cells = [Cell(attack, label, seed, variant) for label, variant in self.defenses]
        theirs = [label for of, label in self.made if of == attack and label != NO_DEFENSE]
        return cells + [Cell(attack, n, seed) for n in theirs if (n, None) not in self.defenses]

    def rivals(self, attack: str, seed: int) -> list[Cell]:
        """Return the cells of what real defenders may have purified: no oracle, no variant."""
        cells = self.purified_cells(attack, seed)
        return [cell for cell in cells if cell.variant is None and not self.oracle(cell)]

    def defense(self, cell: Cell) -> Defense | None:
        """Return the defense of a cell; None for a control, or a model made elsewhere."""
        return self.defenses.get((cell.defense, cell.variant))

    def oracle(self, cell: Cell) -> bool:
        """Say whether a cell's defense, so configured, uses what a real defender cannot have."""
        defense = self.defense(cell)
        return defense is not None and defense.oracle

    def anew(self, cell: Cell) -> bool:
        """Say whether a cell's model was trained anew, and so lies in a basin of its own."""
        defense = self.defense(cell)
        return defense is not None and defense.sees == "training"

    def clean_model(self, seed: int) -> Stage:
        """Return the stage of the never-poisoned model."""
        return self.once(CLEAN, Cell(NO_ATTACK, NO_DEFENSE, seed), self._clean)

    def unseen_clean(self, seed: int) -> Stage | None:
        """Return a second clean model, of a seed of its own; None where none is trained here."""
        if not self.has_clean or (NO_ATTACK, NO_DEFENSE) in self.made:
            return None
        return self.clean_model(int(digest([seed, "unseen clean"])[:7], 16))

    def backdoored(self, cell: Cell) -> Stage:
        """Return the stage of the victim model that a cell starts from."""
        return self.once("backdoored", cell.but(defense=NO_DEFENSE), self._backdoored)

    def purified(self, cell: Cell) -> Stage:
        """Return the stage of a cell's purified model."""
        return self.once("purified", cell, self._purified)

    def source(self, cell: Cell) -> Stage:
        """Return the stage of the model that a cell is about, before any measure."""
        if cell.defense == CLEAN or (cell.attack, cell.defense) == (NO_ATTACK, NO_DEFENSE):
            return self.clean_model(cell.seed)
        return self.backdoored(cell) if cell.defense == NO_DEFENSE else self.purified(cell)

    def taken(self, label: str, cell: Cell) -> Stage | None:
        """Return the stage of one measure of a cell, or None where it is not taken (see `Plan`)."""
        return None

    def once(self, kind: str, cell: Cell, make: Callable[[Cell], Any]) -> Any:
        """Return what was made of a cell, made at the first call."""
        if (kind, cell) not in self._stages:
            self._stages[kind, cell] = make(cell)
        return self._stages[kind, cell]

    def _clean(self, cell: Cell) -> Stage:
        made = self._made_elsewhere(CLEAN, cell, None)
        return made or Stage(CLEAN, cell, self.clean, self.setting, self.setting.roots)

    def _backdoored(self, cell: Cell) -> Stage:
        attack, setting = self.attacks[cell.attack], self.setting
        parents: tuple[Stage, ...] = ()
        if attack.preparation() is not None:
            images = {"dataset": setting.images_key}
            parents = (Stage("prepared", cell, attack, setting, images),)
        made = self._made_elsewhere("backdoored", cell, attack, *parents)
        return made or Stage("backdoored", cell, attack, setting, setting.roots, parents)

    def _purified(self, cell: Cell) -> Stage:
        nobody = cell.attack == NO_ATTACK
        parents: tuple[Stage, ...]
        parents = (self.clean_model(cell.seed) if nobody else self.backdoored(cell),)
        if made := self._made_elsewhere("purified", cell, None, *parents):
            return made
        defense = self.defenses[cell.defense, cell.variant]
        held = {} if self.anew(cell) else self.setting.shares
        if defense.preparation() is not None:
            parents += (Stage("inverted", cell, defense, self.setting, held, parents),)
        return Stage("purified", cell, defense, self.setting, held, parents)

    def _made_elsewhere(
        self, kind: str, cell: Cell, method: Attack | None, *parents: Stage
    ) -> Stage | None:
        """Return the stage of a model that a file holds, or None."""
        file = None if cell.variant else self.made.get((cell.attack, cell.defense))
        if file is None:
            return None
        given = {**self.setting.roots, "checkpoint": sha256(file)}
        return Stage(kind, cell, method, self.setting, given, parents, file)
