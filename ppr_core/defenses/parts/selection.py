"""Choose a setting by the accuracy that it leaves on held-out clean images."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.errors import DataError, need
from ppr_core.metrics import clean_accuracy
from ppr_core.runtime import part
from ppr_core.weights import snapshot

Result = TypeVar("Result")


class Choosing(Defense):
    """A defense that has `x_grid` beside a setting `x`: to choose that setting by validation."""

    chosen: ClassVar[str]  # name of the setting
    rising: ClassVar[bool] = False  # whether smaller values do more to the model

    c_acc_drop: float = Field(
        2.0, ge=0, description="validation accuracy that a chosen setting may cost, points"
    )

    def choose(
        self, model: nn.Module, validation: ImageSet | None, attempt: Callable[[float], Result]
    ) -> tuple[Result, dict[str, Any]]:
        """Attempt the setting as it is; where there is a grid, see `strongest`."""
        name, grid = self.chosen, getattr(self, f"{self.chosen}_grid")
        if not grid:
            return attempt(getattr(self, name)), {}
        tried, floor = sorted(grid, reverse=not self.rising), getattr(self, "c_acc_floor", None)
        kept: dict[str, Any] = {"drop": self.c_acc_drop, "floor": floor}
        return strongest(model, validation, tried, attempt, name=name, **kept)


class ChoosingByFloor(Choosing):
    """A defense whose choice may also keep an accuracy given, as the paper's does."""

    c_acc_drop: float = Field(
        2.5, ge=0, description="validation accuracy that a chosen setting may cost, points"
    )
    c_acc_floor: float | None = Field(
        None, ge=0, le=100, description="validation accuracy to keep instead, percent; none: a drop"
    )


def need_validation(validation: ImageSet | None, name: str, mend: str) -> ImageSet:
    """Return the held-out images to choose a setting by; raise DataError where there are none."""
    return need(
        validation,
        f"expected validation images to choose {name} by, got none; hold out a share of the "
        f"reserve, or set {mend}",
        DataError,
    )


def strongest(
    model: nn.Module,
    validation: ImageSet | None,
    settings: Sequence[float],
    attempt: Callable[[float], Result],
    *,
    name: str,
    drop: float,
    floor: float | None = None,
) -> tuple[Result, dict[str, Any]]:
    """Try settings in turn until one keeps the accuracy; the last one stands if none does.

    Args:
        model: put back to what it is now before each attempt; left as the chosen one made it.
        validation: held-out clean images.
        settings: from the strongest to the weakest.
        attempt: changes the model by one setting.
        name: of the setting.
        drop: accuracy that may be lost, percentage points.
        floor: accuracy that must be kept, percent; if given, it replaces the drop.

    Returns:
        What the chosen attempt returned; and for the Outcome's info the setting, what those
        tried left of the accuracy (None: not tried), the floor, and a warning if none kept it.

    Raises:
        DataError: there are no validation images.
    """
    validation = need_validation(validation, name, f"{name} and an empty {name}_grid")
    if floor is None:
        floor = clean_accuracy(model, validation) - drop
    start, warnings = snapshot(model), {}
    tried: dict[str, float | None] = {f"{setting:g}": None for setting in sorted(settings)}
    for setting in settings:
        model.load_state_dict(start)
        with part(f"{name}-{setting:g}"):
            result = attempt(setting)
        accuracy = tried[f"{setting:g}"] = clean_accuracy(model, validation)
        if accuracy >= floor:
            break
    else:
        doubt = f"no {name} of the grid kept validation accuracy above {floor:.2f} %"
        warnings = {"warnings": [doubt]}
    return result, {name: setting, f"{name}_tried": tried, "val_c_acc_floor": floor, **warnings}
