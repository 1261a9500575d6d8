"""What runs hold: results, artifacts, and the right to compute them."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from safetensors import SafetensorError

from ppr_core.errors import CheckpointError, StoreError, need
from ppr_core.lab import kept
from ppr_core.lab.artifacts import downloaded
from ppr_core.lab.guards import as_store_error, writing
from ppr_core.lab.runs import Runs
from ppr_core.method import Result

RESULT = "result"  # a run's folder of a stage's result


class Store(Runs):
    """One MLflow store with the results of its runs; see `Runs` for how it is opened."""

    def save(self, run_id: str, result: Result) -> None:
        """Store a stage's result and close its run, both or neither.

        Raises:
            StoreError: one of them cannot be written (a full disk, a read-only folder).
        """
        try:
            with tempfile.TemporaryDirectory() as scratch:
                kept.write(Path(scratch), result)
                self.client.log_artifacts(run_id, scratch, RESULT)
            self.finish(run_id)
        except (OSError, SafetensorError, MlflowException, StoreError) as error:
            if self.local:
                shutil.rmtree(self.artifacts(run_id, RESULT), ignore_errors=True)
            if isinstance(error, StoreError):  # which says how it is mended
                raise
            raise StoreError(
                f"expected room for the result of run {run_id}, got: {error}; free some disk "
                "and start again (finished stages are kept)"
            ) from None

    def load(self, run: Run) -> Result:
        """Read a stage's result back, its tensors checked against their sha256.

        Raises:
            CheckpointError: the files are missing or damaged.
        """
        return kept.read(self.artifacts(run.info.run_id, RESULT), named(run))

    def summary(self, run: Run) -> Result:
        """Read a stage's figures and history back, without its tensors; errors as of `load`."""
        return kept.figures(self.artifacts(run.info.run_id, f"{RESULT}/{kept.FIGURES}"), named(run))

    def check(self, run: Run) -> None:
        """Raise CheckpointError where a result is missing or cut off; a server's is not fetched."""
        if self.local:
            kept.check(Path(str(run.info.artifact_uri)) / RESULT, named(run))

    @writing
    def retire(self, run: Run, reason: str) -> None:
        """Let a run whose result is damaged count as failed: nothing reads it any more.

        Raises:
            StoreError: no result of the store is there, so that they may come back.
        """
        places = self.folder / "artifacts"
        need(
            not self.local or any(places.iterdir()),
            f"expected the results of the store in {places}, got an empty folder; put them back, "
            f"or delete {self.folder / 'mlflow.db'} to begin anew",
            StoreError,
        )
        self.log(run.info.run_id, tags={"error": reason[:4000]})
        self.finish(run.info.run_id, "FAILED")

    def artifacts(self, run_id: str, name: str = "") -> Path:
        """Return a local folder (or file) with a run's artifacts; a server's are downloaded.

        Raises:
            CheckpointError: a server has no such artifacts.
            StoreError: it does not answer.
        """
        uri = self.client.get_run(run_id).info.artifact_uri
        if uri.startswith("/"):  # anything else, such as mlflow-artifacts:/..., is a server's
            return Path(uri) / name
        try:
            return downloaded(self.uri, run_id, name, self.downloads(run_id))
        except (OSError, MlflowException) as error:
            raise self._missing(run_id, name, error) from None

    def downloads(self, run_id: str) -> Path:
        """Return the folder for what was fetched of a run from a server."""
        return self.folder / "downloads" / run_id

    @as_store_error
    def _missing(self, run_id: str, name: str, error: Exception) -> CheckpointError:
        """Return the error of artifacts that a server, which answers, does not give."""
        self.client.list_artifacts(run_id)
        return CheckpointError(f"expected artifacts {name!r} of run {run_id}, got: {error}")

    @writing
    def attach(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Add one file to a run's artifacts."""
        self.client.log_artifact(run_id, str(path), folder)

    def scratch(self, key: str) -> Path:
        """Return the folder for the epoch checkpoints of a stage that is being computed."""
        return self.folder / "scratch" / key

    @writing
    @contextmanager
    def owned(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the right to compute a stage; say whether it could be had.

        The lock ends with its process, however that ends.

        Args:
            key: of the stage.
            wait: until another process of this machine that holds it gives it back.
        """
        path = self.folder / "scratch" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(path).acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        with held:
            yield True

    def drop_scratch(self, key: str) -> None:
        """Remove a finished stage's epoch checkpoints."""
        shutil.rmtree(self.scratch(key), ignore_errors=True)


def named(run: Run) -> str:
    """Return how errors name a run: by its stage."""
    return run.info.run_name or run.info.run_id
