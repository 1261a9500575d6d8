"""Settings: strict, frozen, declared once."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Self, TypeVar

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ppr_core.errors import ConfigError, need

__all__ = ["Budget", "Field", "Settings", "derive", "digest", "from_registry"]


class SettingsError(ConfigError):
    """What is wrong with some settings: a message for each, by dotted name."""

    def __init__(self, label: str, problems: list[tuple[str, str]]) -> None:
        super().__init__(label, problems)  # all of them: errors travel between processes
        self.label, self.problems = label, problems

    def under(self, label: str) -> Self:
        """Return the same problems under what a user wrote."""
        return type(self)(label, self.problems)

    def inside(self, label: str, group: str) -> Self:
        """Return the same problems as those of a group of further settings."""
        return type(self)(label, [(f".{group}{path}", text) for path, text in self.problems])

    def __str__(self) -> str:
        return "; ".join(f"{self.label}{path}: {text}" for path, text in self.problems)


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
            raise SettingsError(type(self).__name__, _problems(type(self), error)) from None

    @classmethod
    def labelled(cls, label: str, values: Mapping[str, Any]) -> Self:
        """Build it from what a user wrote under `label`; errors name that instead of the class."""
        try:
            return cls(**values)
        except SettingsError as error:
            raise error.under(label) from None

    @model_validator(mode="before")
    @classmethod
    def _merge_nested(cls, values: Any) -> Any:
        """A mapping given for a nested group overrides that field's default, key by key."""
        if not isinstance(values, Mapping):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Settings) and isinstance(merged.get(name), Mapping):
                merged[name] = cls._changed(name, field.default, merged[name])
        return merged

    @classmethod
    def _changed(cls, name: str, group: "Settings", values: Mapping[str, Any]) -> "Settings":
        try:
            return group.replace(**values)
        except SettingsError as error:
            raise error.inside(cls.__name__, name) from None

    def replace(self, **overrides: Any) -> Self:
        """Return a checked copy with some fields changed; groups are merged key by key."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name, value in overrides.items():
            old = values.get(name)
            if isinstance(old, Settings) and isinstance(value, Mapping):
                value = self._changed(name, old, value)
            values[name] = value
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
            default = "required" if field.is_required() else str(field.default)
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


Kind = TypeVar("Kind", bound=Settings)


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not prefix):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _problems(cls: type[Settings], error: ValidationError) -> list[tuple[str, str]]:
    """Turn pydantic's report into "expected X, got Y" by dotted name, naming the known settings."""
    problems = []
    for problem in error.errors():
        path = "".join(f".{part}" for part in problem["loc"])
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, SettingsError):  # of a nested group
            problems += cause.problems
        elif problem["type"] == "extra_forbidden":
            problems.append(("", unknown("setting", path[1:], cls.model_fields)))
        elif problem["type"] == "value_error":  # our own words already
            problems.append((path, problem["msg"].removeprefix("Value error, ")))
        elif problem["type"] == "missing":
            problems.append((path, "expected a value, got none (this setting has no default)"))
        else:
            problems.append((path, _expected(problem["msg"], problem["input"])))
    return problems


def _expected(message: str, got: Any) -> str:
    message = message.removeprefix("Input ").removeprefix("should be ")
    hint = ""
    if isinstance(got, str) and ("number" in message or "integer" in message):
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
    return f"expected {message}, got {got!r}{hint}"


def _fraction(value: Any) -> Any:
    """Read "8/255"; leave numbers as they are."""
    if not isinstance(value, str):
        return value
    try:
        above, below = map(float, value.split("/"))
        return above / below
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"expected a budget such as 8/255, got {value!r}") from None


# Largest change of a pixel in [0, 1]; written as a number, or as "8/255".
Budget = Annotated[float, BeforeValidator(_fraction), Field(ge=0, le=1)]


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """Return the message for a name that nobody knows, with the nearest known one."""
    names = sorted(known)
    near = get_close_matches(got, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what}: {got!r}{hint}; expected one of {', '.join(names)}"


def from_registry(
    registry: Mapping[str, type[Kind]],
    spec: str | Mapping[str, Any],
    what: str,
    label: str | None = None,
) -> Kind:
    """Build the registered class that `spec` names: "name" or {"name": ..., overrides}.

    Args:
        registry: name -> class.
        spec: the name, and what differs from the defaults.
        what: a registry's entry is called, such as "attack".
        label: that errors name, such as "attack badnet"; `what` if not given.

    Raises:
        ConfigError: unknown name, unknown setting, wrong type, or out of range.
    """
    values = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = values.pop("name", None)
    known = f"expected a {what} name in {spec!r}; known: {sorted(registry)}"
    need(isinstance(name, str), known)
    need(name in registry, unknown(what, str(name), registry))
    return registry[str(name)].labelled(label or what, values)


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
