"""Settings: strict, frozen, declared once; and the study's own settings, read from YAML."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined

from ppr_core.errors import ConfigError, need

__all__ = ["Field", "Settings", "Study", "derive", "digest", "from_registry"]


class Settings(BaseModel):
    """Hyper-parameters and nothing else: frozen, keyword-only, checked when built.

    A field is the single place for a setting's name, type, default, range and meaning; command-line
    help, tables and tracked parameters are generated from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    source: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(type(self), error)) from None

    @model_validator(mode="before")
    @classmethod
    def _merge_nested(cls, values: Any) -> Any:
        """A mapping given for a nested group overrides that field's default, key by key."""
        if not isinstance(values, Mapping):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Settings) and isinstance(merged.get(name), Mapping):
                merged[name] = field.default.replace(**merged[name])
        return merged

    def replace(self, **overrides: Any) -> Self:
        """Return a checked copy with some fields changed; groups are merged key by key."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name, value in overrides.items():
            old = values.get(name)
            nested = isinstance(old, Settings) and isinstance(value, Mapping)
            values[name] = old.replace(**value) if nested else value
        return type(self)(**values)

    def flat(self) -> dict[str, Any]:
        """Return every setting under its dotted name, for tables and tracked parameters."""
        return dict(_flatten(self.model_dump(mode="json")))

    @classmethod
    def describe(cls) -> list[dict[str, str]]:
        """Return one row a setting: name, type, default, meaning (nested groups dotted)."""
        rows = []
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Settings):
                group = field.default
                for row in type(group).describe():
                    row = {**row, "default": str(group.flat().get(row["name"], row["default"]))}
                    rows.append({**row, "name": f"{name}.{row['name']}"})
                continue
            default = "required" if field.default is PydanticUndefined else str(field.default)
            kind = getattr(field.annotation, "__name__", str(field.annotation))
            kind = kind if kind not in {"Literal", "Union", "Optional"} else str(field.annotation)
            rows.append(
                {
                    "name": name,
                    "type": kind.replace("typing.", ""),
                    "default": default,
                    "meaning": field.description or "",
                }
            )
        return rows


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not prefix):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _explain(cls: type[Settings], error: ValidationError) -> str:
    """Turn pydantic's report into "expected X, got Y" lines, naming the known settings."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(unknown(f"setting of {cls.__name__}", path, cls.model_fields))
            continue
        at = f"{cls.__name__}.{path}" if path else cls.__name__
        if problem["type"] == "value_error":  # our own words already
            lines.append(f"{at}: {problem['msg'].removeprefix('Value error, ')}")
            continue
        if problem["type"] == "missing":
            lines.append(f"{at}: expected a value, got none (this setting has no default)")
            continue
        message = problem["msg"].removeprefix("Input ").removeprefix("should be ")
        hint = ""
        if isinstance(problem["input"], str) and ("number" in message or "integer" in message):
            hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
        lines.append(f"{at}: expected {message}, got {problem['input']!r}{hint}")
    return "; ".join(lines)


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """Return the message for a name that nobody knows, with the nearest known one."""
    names = sorted(known)
    near = get_close_matches(got, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what}: {got!r}{hint}; expected one of {', '.join(names)}"


def from_registry(registry: Mapping[str, type], spec: str | Mapping[str, Any], what: str) -> Any:
    """Build the registered class that `spec` names: "name" or {"name": ..., overrides}.

    Raises:
        ConfigError: unknown name, unknown setting, wrong type, or out of range.
    """
    values = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = values.pop("name", None)
    need(isinstance(name, str), f"expected a {what} name in {spec!r}; known: {sorted(registry)}")
    need(name in registry, unknown(what, name, registry))
    return registry[name](**values)


def digest(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON: the same settings give the same key."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derive(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose; different names give independent streams.

    Args:
        seed: the run's seed.
        names: the path of the purpose, such as "defense", "pam".
    """
    return torch.Generator().manual_seed(int(digest([seed, *names])[:15], 16))


class Study(Settings):
    """All settings of one study; its names are the keys of a YAML file and of every notebook."""

    name: str = Field(description="name of the study, of its experiment and of its report")
    seeds: list[int] = Field([0], description="seeds to run; figures show mean and spread")
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
    budgets: list[float] = Field(
        [2 * step / 255 for step in range(9)], description="pixel budgets of the epsilon sweep"
    )
    checkpoints: dict[str, str] = Field({}, description="models made elsewhere: label -> file")
    clean_control: bool = Field(True, description="train the never-poisoned model as a control")
    notebooks: list[str] = Field([], description="sections to execute, such as 01_backdoors")

    @model_validator(mode="after")
    def _check(self) -> Self:
        need(self.name and "/" not in self.name, f"expected a plain study name, got {self.name!r}")
        need(self.seeds, "expected at least one seed, got none")
        need(len(set(self.seeds)) == len(self.seeds), f"expected distinct seeds, got {self.seeds}")
        need(
            self.budgets and all(0 <= budget <= 1 for budget in self.budgets),
            f"expected pixel budgets from 0 to 1 (16/255 is {16 / 255:.4f}), got {self.budgets}",
        )
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a study from a YAML file; a key `base` names a file beside it that it changes.

        Raises:
            ConfigError: no such file, not YAML, an unknown key, a wrong type, or out of range.
        """
        try:
            return cls(**_read(Path(path)))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_names(cls, names: Mapping[str, Any]) -> Self:
        """Build a study from a notebook's names (`globals()`): those that are settings count."""
        return cls(**{key: names[key] for key in cls.model_fields if key in names})


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a study file's settings, those of the file that it is based on included."""
    path = path.resolve()
    need(path.is_file(), f"expected a study file, got {path} (no such file); see params/")
    need(path not in seen, f"expected a base that does not lead back to itself, got {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"expected YAML, got {error}") from None
    need(isinstance(values, dict), f"expected a mapping of settings, got {values!r}")
    base = values.pop("base", None)
    if base is None:
        return values
    need(isinstance(base, str), f"expected the name of a study file as base, got {base!r}")
    return {**_read(path.parent / base, (*seen, path)), **values}
