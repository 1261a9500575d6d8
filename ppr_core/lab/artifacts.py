"""The artifacts of runs that lie behind a server: fetched once a machine, and removed."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ppr_core.errors import StoreError


def downloaded(uri: str, run_id: str, name: str, folder: Path) -> Path:
    """Return a local copy of a run's artifacts, fetched if need be.

    Args:
        uri: of the server.
        run_id: of the run.
        name: of a file or a folder among its artifacts; all of them where empty.
        folder: where the copy is kept.

    Raises:
        OSError: they cannot be written here, or MlflowException: they cannot be had.
        StoreError: there is no room for the copy.
    """
    kept = folder / name.replace("/", "_")
    if name and kept.exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(dir=folder if name else None)
    try:
        found = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=name, dst_path=scratch, tracking_uri=uri
        )
        if not name:
            return Path(found)
        with contextlib.suppress(OSError):  # another process was faster
            os.replace(found, kept)
    except OSError as error:
        if error.errno == errno.ENOSPC:  # which says nothing of the artifacts
            raise StoreError(
                f"expected room in {folder}, got: {error}; free some disk and start again"
            ) from None
        raise
    finally:
        if name:
            shutil.rmtree(scratch, ignore_errors=True)
    return kept


def remove(uri: str, run: Run, name: str) -> None:
    """Delete a file of a run's artifacts, wherever they lie.

    Raises:
        StoreError: it cannot be deleted.
    """
    try:
        place = get_artifact_repository(str(run.info.artifact_uri), tracking_uri=uri)
        place.delete_artifacts(name)
    except (OSError, MlflowException) as error:
        raise StoreError(
            f"expected to remove {name} of run {run.info.run_id}, got: {error}"
        ) from None
