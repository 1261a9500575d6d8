"""Experiments and runs of one MLflow store: found, opened, logged to and closed."""

import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from ppr_core.errors import StoreError, need
from ppr_core.lab.database import prepare
from ppr_core.lab.guards import HTTP_TRIES, START_TRIES, as_store_error, asked, http_tries, writing
from ppr_core.lab.marks import alive, marks
from ppr_core.lab.places import results_folder
from ppr_core.runtime import Record

for _noisy in ("mlflow", "alembic"):  # the migrations of a fresh store are nobody's news
    logging.getLogger(_noisy).setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it also raises
logging.getLogger("urllib3").setLevel(logging.ERROR)  # each try of a request that is tried again

PARAM_LIMIT = 6000  # characters of one MLflow parameter
BATCH_LIMIT = 1000  # metrics in one MLflow request
ENDED = "attributes.status != 'RUNNING'"  # of runs that no other machine is about to finish
TRIES = 3  # of what fails only where another process does the same at the same moment


class Runs:
    """One MLflow store: a SQLite file with its artifacts beside it, or a tracking server.

    Args:
        folder: of a local store; see `results_folder` if not given. Ignored where the environment
            variable MLFLOW_TRACKING_URI names another store.

    Raises:
        StoreError: the store cannot be opened, read or written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = Path(folder).resolve() if folder else results_folder()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or prepare(self.folder)
        self.local = self.uri.startswith("sqlite:")
        self.readonly = self.local and self.uri != f"sqlite:///{self.folder}/mlflow.db"
        self._known: dict[str, str] = {}
        self.client = mlflow.MlflowClient(self.uri)
        try:
            http_tries(START_TRIES)  # a server that is not there is said soon
            self.client.search_experiments(max_results=1)
        except MlflowException as error:
            reason = str(error).partition("\n")[0]
            raise StoreError(f"expected an MLflow store at {self.uri}, got: {reason}") from None
        http_tries(HTTP_TRIES)  # from here on it may be away for a while, to be started again

    @as_store_error
    def experiment(self, name: str) -> str:
        """Return the id of an experiment, made if it is new."""
        if name not in self._known:
            found = self.client.get_experiment_by_name(name)
            place = f"{self.folder}/artifacts/{name}" if self.local else None
            try:
                made: Any = found or self.client.create_experiment(name, artifact_location=place)
            except MlflowException:  # another process made it in between
                made = self.client.get_experiment_by_name(name)
            self._known[name] = getattr(made, "experiment_id", made)
        return self._known[name]

    @as_store_error
    def search(self, experiment: str | None = None, *, query: str = "", **tags: str) -> list[Run]:
        """Return the runs with these `ppr.` tags (and filter), newest first."""
        if experiment is not None:
            ids = [self.experiment(experiment)]
        else:
            ids = [found.experiment_id for found in self.client.search_experiments()]
        wanted = {f"ppr.{name}": value for name, value in tags.items()}
        parts = [query, *(asked(tag, value) for tag, value in wanted.items())]
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                ids, " and ".join(filter(None, parts)), ViewType.ACTIVE_ONLY, 1000, page_token=token
            )
            runs += [run for run in page if wanted.items() <= run.data.tags.items()]
            token = page.token
            if not token:
                return runs

    def find(self, key: str) -> Run | None:
        """Return the finished run that holds this key's result, or None."""
        runs = self.search(query="attributes.status = 'FINISHED'", key=key)
        return runs[0] if runs else None

    def failure(self, key: str, since: int) -> str | None:
        """Return why this key's run that began at `since` (ms) or later failed, or None."""
        query = f"attributes.status = 'FAILED' and attributes.start_time >= {since}"
        runs = self.search(query=query, key=key)
        return runs[0].data.tags.get("ppr.error", "its run failed") if runs else None

    def held(self, key: str) -> Run:
        """Return the finished run that holds this key's result; raise StoreError for none."""
        return need(self.find(key), f"expected a finished run of {key}, got none", StoreError)

    @writing
    def start(
        self,
        experiment: str,
        name: str,
        *,
        tags: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
        note: str = "",
        colour: str = "",
        dataset: Mapping[str, str] | None = None,
    ) -> str:
        """Open a run and return its id.

        Args:
            experiment: that it belongs to.
            name: that a person reads.
            tags: get the prefix `ppr.`.
            params: settings.
            note: shown on the run's page.
            colour: of its lines in the UI's charts, as #rrggbb; one of the UI's choice else.
            dataset: that it was trained or measured on: name, digest, source and profile.
        """
        marked = {f"ppr.{tag}": str(value) for tag, value in tags.items()} | marks()
        if note:
            marked["mlflow.note.content"] = note
        if colour:
            marked["mlflow.runColor"] = colour
        run = self.client.create_run(self.experiment(experiment), tags=marked, run_name=name)
        self.log(run.info.run_id, params=params or {})
        if dataset:
            self._log_dataset(run.info.run_id, Dataset(**dataset, source_type="ppr_core"))
        return run.info.run_id

    def _log_dataset(self, run_id: str, dataset: Dataset) -> None:
        """Say what a run is about; of two processes that are the first to, MLflow refuses one."""
        for left in reversed(range(TRIES)):
            try:
                return self.client.log_inputs(run_id, [DatasetInput(dataset)])
            except MlflowException:
                if not left:
                    raise

    @writing
    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float | Sequence[float]] | None = None,
        history: Iterable[Record] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log parameters, values or their course from step 0 on, and per-epoch records.

        All in as few requests as may be.
        """
        now = int(time.time() * 1000)
        points = [
            Metric(name, float(value), now, step)
            for name, values in (metrics or {}).items()
            for step, value in enumerate(values if isinstance(values, Sequence) else [values])
        ]
        for record in history:
            step = int(record["epoch"])
            points += [
                Metric(f"epoch_{name}", float(value), now, step)
                for name, value in record.items()
                if name != "epoch"
            ]
        entries = [Param(name, str(value)[:PARAM_LIMIT]) for name, value in (params or {}).items()]
        marks = [RunTag(f"ppr.{name}", str(value)) for name, value in (tags or {}).items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[start : start + 100])
        for start in range(0, len(points), BATCH_LIMIT):
            self.client.log_batch(run_id, metrics=points[start : start + BATCH_LIMIT])
        if marks:
            self.client.log_batch(run_id, tags=marks)

    @writing
    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    @writing
    def adopt(self, parent: str, runs: Iterable[str]) -> None:
        """Show these runs under a parent."""
        for run_id in runs:
            self.client.set_tag(run_id, "mlflow.parentRunId", parent)

    @writing
    def discard(self, run_id: str) -> None:
        """Hide a run that others have taken the place of; another process may have done it."""
        try:
            self.client.delete_run(run_id)
        except MlflowException:
            if self.client.get_run(run_id).info.lifecycle_stage != "deleted":
                raise

    def settled(self, key: str, run_id: str) -> str:
        """Return which of the finished runs of a key stays: the oldest.

        Between machines no lock holds: two that log the same at once both come to the end.

        Args:
            key: of the runs.
            run_id: the one that was just finished; it is hidden where another one stays.
        """
        runs = self.search(query="attributes.status = 'FINISHED'", key=key)
        stays = min(runs, key=lambda run: (run.info.start_time, run.info.run_id)).info.run_id
        if stays != run_id:
            self.discard(run_id)
        return stays

    @writing
    def describe(self, experiment: str, note: str, tags: Mapping[str, str]) -> None:
        """Set the note that the UI shows above an experiment's runs, and MLflow's own tags."""
        known = self.client.get_experiment(self.experiment(experiment)).tags
        for name, value in {"mlflow.note.content": note, **tags}.items():
            if known.get(name) != value:
                self.client.set_experiment_tag(self.experiment(experiment), name, value)

    def close_stale(self) -> int:
        """Mark as KILLED the runs whose process on this machine is gone; return how many."""
        closed = 0
        host = socket.gethostname()
        for run in self.search(query="attributes.status = 'RUNNING'", host=host):
            if not alive(run.data.tags.get("ppr.process", "")):
                self.finish(run.info.run_id, "KILLED")
                closed += 1
        return closed
