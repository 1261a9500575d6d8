"""Settings: strict, frozen, declared once."""

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
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

FILES = "ppr_own_"  # modules made from a user's files are called this, and a digest of the path


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

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )

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

    @classmethod
    def adopt(cls, path: str, found: Any, values: Mapping[str, Any]) -> Self:
        """Make settings of this kind from a user's object that is no subclass of this class.

        Args:
            path: where the user keeps it, `module:name` or `file.py:name`.
            found: the object.
            values: the settings given with it.

        Raises:
            ConfigError: this kind takes subclasses only.
        """
        raise ConfigError(f"expected {path} to be a subclass of {cls.__name__}, got {found!r}")

    def own_code(self) -> str | None:
        """Return a digest of the user's code that this runs: its version; None in this package."""
        return code_digest(type(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle an object of a user's file by that file: no other process knows its module."""
        module = type(self).__module__
        if not module.startswith(FILES):
            return super().__reduce_ex__(protocol)
        values = {name: getattr(self, name) for name in self.model_fields_set}
        return _again, (f"{sys.modules[module].__file__}:{type(self).__qualname__}", values)

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

    A name with a colon is a user's own, `module:Class` or `file.py:Class`: a subclass of what the
    registered classes have in common, or whatever that class adopts.

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
    name = str(name)
    if ":" in name:
        found, base = load_own(name, what), _base(registry)
        own = isinstance(found, type) and issubclass(found, base)
        return found.labelled(label or what, values) if own else base.adopt(name, found, values)
    need(name in registry, unknown(what, name, registry))
    return registry[name].labelled(label or what, values)


def load_own(path: str, what: str) -> Any:
    """Import a user's own object from `module:name` or `file.py:name`; a file is run once.

    Raises:
        ConfigError: it cannot be imported, or has no such name.
    """
    place, _, name = path.rpartition(":")
    form = f"expected a {what} at {path} (module:Class or file.py:Class, importable from here)"
    need(place and name, f"{form}, got an empty name")
    try:
        module = _from_file(place) if place.endswith(".py") else importlib.import_module(place)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{form}, got {type(error).__name__}: {error}") from None
    return found


def code_digest(user_object: Any) -> str | None:
    """Return a digest of the module that an object comes from; None for this package's own."""
    module = inspect.getmodule(user_object)
    if module is None or module.__name__.split(".")[0] == __package__:
        return None
    return digest(inspect.getsource(module))


def _from_file(file: str) -> ModuleType:
    path = Path(file).expanduser().resolve()
    name = FILES + digest(str(path))[:16]
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"no file {path}")
    if name not in sys.modules:
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _base(registry: Mapping[str, type[Kind]]) -> type[Kind]:
    """Return the nearest class that all registered ones descend from."""
    first, *others = registry.values()
    return next(c for c in first.__mro__ if all(issubclass(other, c) for other in others))


def _again(path: str, values: dict[str, Any]) -> Any:
    return load_own(path, "class")(**values)


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
