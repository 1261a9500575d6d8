"""What a measure is: settings, what it reads, how it is taken, and the columns it fills."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from ppr_core.attacks import Attack
from ppr_core.config import Settings
from ppr_core.data.images import ImageSet
from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import Cell, Setting, Stage
from ppr_core.lab.reader import Reader
from ppr_core.method import Result


@dataclass(frozen=True)
class Column:
    """One figure of a measure, as tables, the MLflow UI and reports show it.

    Attributes:
        name: of the column in the rows of `results.cells`, and of the metric of a cell's run.
        metric: the entry of `Result.metrics` that it shows.
        heading: above the column, short.
        unit: "%" or what else it counts.
        better: whether a defense does better the "higher" or the "lower" it is; "" if neither.
        shown: in the short tables; every table of rows has it anyway.
        decimals: places behind the point, in tables.
    """

    name: str
    metric: str
    heading: str
    unit: str = "%"
    better: Literal["higher", "lower", ""] = ""
    shown: bool = True
    decimals: int = 1


class Measure(Settings):
    """What a study measures of the cells of its grid. Subclasses write `measure` and `columns`.

    A measure is registered in `MEASURES`, or named `module:Class` in a study's file.
    """

    version: ClassVar[int]  # as of a method: 1 unless set; raise it when results change
    columns: ClassVar[tuple[Column, ...]] = ()
    kind: ClassVar[str] = ""  # of its stages; the measure's own label where empty
    like: ClassVar[str] = ""  # the measure whose settings count where its own are not given
    fixed: ClassVar[Mapping[str, Any]] = {}  # settings that make it another measure than that one
    reads: ClassVar[tuple[str, ...]] = ()  # measures whose stages it reads
    of_attack: ClassVar[bool] = False  # taken once of all purified models of an attack
    of_variants: ClassVar[bool] = False  # also taken along the grid of a defense's variants
    across: ClassVar[bool] = True  # also taken of models that were trained anew, in another basin
    followed: ClassVar[bool] = False  # C-Acc and ASR are recorded with every epoch of its training
    curve: ClassVar[str] = ""  # the frame of `results` that its rows join: queries, paths, ...
    about: ClassVar[Mapping[str, Any]] = {}  # what that frame says of every one of them

    @classmethod
    def against(cls, attack: str, values: Mapping[str, Any]) -> Self:
        """Build the measure for one attack from the settings that a study gives."""
        return cls(**values)

    @classmethod
    def check_study(cls, chains: Chains, values: Mapping[str, Any]) -> None:
        """Raise ConfigError where a study cannot take it with the settings that it gives."""

    def check_images(self, attack: Attack, train: ImageSet, seed: int) -> None:
        """Raise DataError where it needs more images than the training set or the attack has."""

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether it is taken of a cell."""
        here = self.across or not chains.anew(cell)
        return cell.attacked and (self.of_variants or cell.variant is None) and here

    @classmethod
    def further_cells(cls, chains: Chains, seed: int) -> list[Cell]:
        """Return the cells that it adds to the study's grid."""
        return []

    def given(self, setting: Setting) -> dict[str, Any]:
        """Return what its result depends on beside its settings and its parents."""
        return {}

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the stages that it reads: first the model it is about, then the victim.

        Args:
            chains: makes the stages of the study's models.
            cell: that it is taken of.
            read: the stages of `reads`: of this cell; of all its attack's where `of_attack`.
        """
        return (chains.source(cell), chains.backdoored(cell), *read)

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Take the measure.

        Args:
            lab: reads models, trigger and images of the stage's parents.
            stage: that is computed; `stage.method` is this very measure.
        """
        raise NotImplementedError(f"{type(self).__name__}.measure")
