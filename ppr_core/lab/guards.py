"""What stands between a store and MLflow: errors in one line, and how often a server is asked."""

import functools
import os
from collections.abc import Callable
from typing import Any

from mlflow.exceptions import MlflowException

from ppr_core.errors import StoreError, need

USERS_TRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES" in os.environ
START_TRIES, HTTP_TRIES = 3, 5  # of a request to a server: about 12 s at first, a minute later


def as_store_error(method: Callable) -> Callable:
    """Turn what MLflow raises inside a method of Store into one StoreError."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **named: Any) -> Any:
        try:
            return method(self, *args, **named)
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise StoreError(
                f"expected the store {self.uri} to answer, got: {reason}; end what locks it, or "
                "name another store in PPR_STORE (finished stages are kept)"
            ) from None

    return guarded


def writing(method: Callable) -> Callable:
    """Refuse at once to write into a store that can only be read."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **named: Any) -> Any:
        need(
            not self.readonly,
            f"expected a store that can be written for this, got {self.folder} (read-only); "
            "`report` reads it as it is, anything else needs another one in PPR_STORE",
            StoreError,
        )
        return method(self, *args, **named)

    return as_store_error(guarded)


def http_tries(count: int) -> None:
    """Have MLflow try a request to a server so often, unless the user's environment says."""
    if not USERS_TRIES:
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(count)


def quoted(value: str) -> str:
    """Return a value as MLflow's filters read it; they have no way to escape a quote."""
    need(
        "'" not in value or '"' not in value,
        f"expected a name with one kind of quotes at the most, got {value}",
        StoreError,
    )
    return f'"{value}"' if "'" in value else f"'{value}'"
