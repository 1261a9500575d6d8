"""Tensors that are removed to save room, and computed again where something asks for them."""

import shutil

from ppr_core.lab.artifacts import remove
from ppr_core.lab.kept import TENSORS
from ppr_core.lab.store import RESULT, Run, Store

DROPPED = "dropped"  # the tag of a run without its tensors
SMALL = 10_000  # bytes of tensors that are never worth removing


def finished(store: Store) -> set[str]:
    """Return the keys of all finished stages: one question where many are to be looked up."""
    runs = store.search(query="attributes.status = 'FINISHED'", kind="stage")
    return {run.data.tags["ppr.key"] for run in runs}


def drop(store: Store, run: Run) -> int:
    """Remove the tensors of a finished run; its figures and its history stay.

    Returns:
        The bytes that this frees; 0 where they are so few that they stay.
    """
    run_id = run.info.run_id
    files = store.client.list_artifacts(run_id, RESULT)
    size = next((file.file_size or 0 for file in files if file.path.endswith(TENSORS)), 0)
    if size < SMALL:
        return 0
    # Marked first: killed in between, it is computed again rather than called damaged.
    store.log(run_id, tags={DROPPED: "yes"})
    remove(store.uri, run, f"{RESULT}/{TENSORS}")
    shutil.rmtree(store.downloads(run_id), ignore_errors=True)
    return size


def dropped(run: Run) -> bool:
    """Say whether a run's tensors were removed."""
    return f"ppr.{DROPPED}" in run.data.tags
