"""What stands between a store and MLflow: errors in one line, and how often a server is asked."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from ppr_core.errors import StoreError, need

USERS_TRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES" in os.environ
START_TRIES, HTTP_TRIES = 3, 5  # of a request to a server: about 12 s at first, a minute later
ROOM_B = 2**20  # with less left on its disk, a store that fails fails for that


def as_store_error(method: Callable) -> Callable:
    """Turn what MLflow and the disk raise inside a method of Store into one StoreError."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **named: Any) -> Any:
        try:
            return method(self, *args, **named)
        except (MlflowException, OSError) as error:
            raise StoreError(told(self.uri, self.folder, error)) from None

    return guarded


def told(uri: str, folder: Path, error: Exception) -> str:
    """Return in one line what a store failed with, and how that is mended."""
    reason = str(error).partition("\n")[0]
    local = uri.startswith("sqlite:")
    full = any(words in reason for words in ("disk is full", "No space left", "quota exceeded"))
    if full or (local and folder.is_dir() and shutil.disk_usage(folder).free < ROOM_B):
        return (
            f"expected room in the store {uri}, got: {reason}; free some disk and start again "
            "(finished stages are kept)"
        )
    mend = "end what locks it" if local else "see that its server runs"
    return (
        f"expected the store {uri} to answer, got: {reason}; {mend}, or name another store in "
        "PPR_STORE (finished stages are kept)"
    )


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


def asked(tag: str, value: str) -> str:
    """Return the MLflow filter of a tag's value; "" where it has no way to write that value."""
    if "'" in value and '"' in value:
        return ""
    mark = '"' if "'" in value else "'"
    return f"tags.`{tag}` = {mark}{value}{mark}"
