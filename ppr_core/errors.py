"""The errors a user can meet: each message says what was expected, what was got, how to mend it."""

from typing import TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(ValueError):
    """A data set is missing, damaged, or cannot serve what was asked of it."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, unsafe to load, or of another shape."""


class StoreError(RuntimeError):
    """The tracking store cannot be opened, read or written."""


def need(condition: T | None, message: str, error: type[Exception] = ConfigError) -> T:
    """Raise `error(message)` unless `condition` holds; return what was asked for."""
    if not condition:
        raise error(message)
    return condition
