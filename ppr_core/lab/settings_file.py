"""Study files: YAML that means what it seems to mean, and not too much of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ppr_core.config import unknown
from ppr_core.errors import ConfigError, need

LARGEST = 10**6  # bytes of a file
MOST = 10**5  # values in it, aliases counted as often as they stand for something
DEEPEST = 30  # groups within groups


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a study file's settings, those of the file that it is based on included.

    Raises:
        ConfigError: no such file, too large a one, not UTF-8, or not YAML (see `parse`).
    """
    path = path.resolve()
    need(path.is_file(), f"expected a study file, got {path} (no such file); see params/")
    need(path not in seen, f"expected a base that does not lead back to itself, got {path}")
    size = path.stat().st_size
    need(size <= LARGEST, f"expected a study file of at most {LARGEST:,} bytes, got {size:,}")
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected a file in UTF-8, got {error}") from None
    need(isinstance(values, dict), f"expected a mapping of settings, got {values!r}")
    return based(values, path.parent, (*seen, path))


def based(values: Mapping[str, Any], folder: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return settings over those of the file that their key `base` names, if any.

    Where that file has a group, such as `defenses`, a list names those of it that stay.
    """
    own = {name: value for name, value in values.items() if name != "base"}
    base = values.get("base")
    if base is None:
        return own
    need(isinstance(base, str), f"expected the name of a study file as base, got {base!r}")
    values = read(folder / base, seen)
    for name, value in own.items():
        values[name] = _chosen(name, values.get(name), value)
    return values


def pair_of(text: str) -> tuple[str, Any]:
    """Read `training.epochs=3` as a key and the value that its YAML says."""
    key, equals, value = text.partition("=")
    need(equals, f"expected KEY=VALUE, got {text!r}")
    try:
        return key, parse(value)
    except ConfigError as error:
        raise ConfigError(f"{key}: expected a YAML value, got {value!r}: {error}") from None


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one value, such as `training.epochs`, within groups of settings.

    Raises:
        ConfigError: the key leads through a value, or a list names what its group does not have.
    """
    place = values
    *groups, last = key.split(".")
    for group in groups:
        place = place.setdefault(group, {})
        need(isinstance(place, dict), f"expected {group!r} in {key!r} to be a group")
    place[last] = _chosen(key, place.get(last), value)


def _chosen(key: str, group: Any, value: Any) -> Any:
    """Return what takes a group's place: a list names the parts of it that stay, as they are."""
    if not isinstance(group, dict) or not isinstance(value, list):
        return value
    for name in map(str, value):
        need(name in group, unknown(f"part of {key}", name, group))
    return {name: group[name] for name in map(str, value)}


def parse(text: str) -> Any:
    """Return what a YAML text says.

    Raises:
        ConfigError: not YAML, a key given twice, groups nested too deep, or too many values (as
            of aliases of aliases).
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        told = f"groups nested more than {DEEPEST} deep"
        said = told if isinstance(error, RecursionError) else _in_one_line(error)
        raise ConfigError(f"expected YAML, got {said}") from None
    finally:
        loader.dispose()


def _in_one_line(error: Exception) -> str:
    """Say where YAML ends to be YAML, and why."""
    place = getattr(error, "problem_mark", None)
    if place is None:
        return " ".join(str(error).split())
    return f"{getattr(error, 'problem', error)} in line {place.line + 1}, column {place.column + 1}"


def _count(node: yaml.Node, counted: dict[int, int], depth: int) -> int:
    """Return how many values a node stands for; raise ConfigError where it is not sane."""
    need(depth <= DEEPEST, f"expected YAML, got groups nested more than {DEEPEST} deep")
    if id(node) not in counted:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _need_distinct(node)
            parts = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        counted[id(node)] = 1 + sum(_count(part, counted, depth + 1) for part in parts)
    need(counted[id(node)] <= MOST, f"expected at most {MOST:,} values, got more; too many aliases")
    return counted[id(node)]


def _need_distinct(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            line = key.start_mark.line + 1
            need(key.value not in seen, f"line {line}: expected one {key.value}, got another one")
            seen.add(key.value)
