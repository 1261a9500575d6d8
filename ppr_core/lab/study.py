"""The settings of one study, read from YAML."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from ppr_core.config import Budget, Field, Settings
from ppr_core.errors import ConfigError, need
from ppr_core.lab import settings_file

LONGEST = 100  # letters of a name: it becomes a part of files' names


class Study(Settings):
    """All settings of one study; its names are the keys of a YAML file and of every notebook."""

    name: str = Field(description="name of the study, of its experiment and of its report")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        [0], description="seeds to run; figures show mean and spread"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where tensors live")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of matrix products")
    deterministic: bool = Field(False, description="forbid algorithms that vary from run to run")
    dataset: dict[str, Any] = Field({"name": "shapes"}, description="data set and its settings")
    model: dict[str, Any] = Field({"name": "resnet18"}, description="classifier and its settings")
    training: dict[str, Any] = Field({}, description="schedule of clean and backdoored models")
    poison_rate: float = Field(0.05, ge=0, le=1, description="share of the whole training set")
    target: int = Field(0, ge=0, description="target label of every attack")
    attacks: dict[str, dict[str, Any]] = Field({"badnet": {}}, description="label -> overrides")
    reserve: int = Field(2500, ge=1, description="clean images the defender holds")
    validation: float = Field(0.2, ge=0, lt=1, description="share of the reserve for selection")
    defenses: dict[str, dict[str, Any]] = Field({}, description="label -> overrides")
    retuning: dict[str, Any] = Field({}, description="settings of the retuning attack (RA)")
    rho_grid: list[float] = Field([], description="PAM's rho values for the rho curve")
    measures: dict[str, dict[str, Any]] = Field({}, description="beside RA: measure -> overrides")
    budgets: list[Budget] = Field(
        [2 * step / 255 for step in range(9)], description="pixel budgets of the epsilon sweep"
    )
    checkpoints: dict[str, str] = Field({}, description="models made elsewhere: label -> file")
    clean_control: bool = Field(True, description="train the never-poisoned model as a control")
    keep: Literal["all", "needed"] = Field(
        "all",
        description="tensors kept in the end: all, or without generators and retuned weights, "
        "which are computed again where something asks for them",
    )
    notebooks: list[str] = Field([], description="sections to execute, such as 01_backdoors")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for group in ("attacks", "defenses", "measures"):
            for label in getattr(self, group):
                _need_short(label, f"label in {group}")
        _need_short(self.name, "study name")
        folder = not {*self.name} & {*"/\\"} and self.name.strip(". ") == self.name.strip()
        need(folder, f"expected a plain study name, got {self.name!r}")
        need(self.attacks, "expected at least one attack, got none")
        need(self.seeds, "expected at least one seed, got none")
        need(len(set(self.seeds)) == len(self.seeds), f"expected distinct seeds, got {self.seeds}")
        need(self.budgets, "expected at least one pixel budget, got none")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a study from a YAML file; a key `base` names a file beside it that it changes.

        Raises:
            ConfigError: no such file, not YAML, an unknown key, a wrong type, or out of range.
        """
        try:
            return cls(**settings_file.read(Path(path)))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _need_short(name: str, what: str) -> None:
    need(name.strip() and name.isprintable(), f"expected a plain {what}, got {name!r}")
    need(
        len(name) <= LONGEST,
        f"expected a {what} of at most {LONGEST} letters, got {len(name)}: {name[:20]}...",
    )
