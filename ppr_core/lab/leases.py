"""Who computes a stage where machines share a server but no disk: a run that gives signs of life.

On one machine a lock decides (`Store.owned`); between machines the oldest run of a stage does. Of
two that start within the clocks' difference both may compute it, which costs time and nothing else.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from ppr_core.errors import StoreError
from ppr_core.lab.marks import alive
from ppr_core.lab.store import Run, Store

BEAT_S = 10.0  # between two signs of life
LEASE_S = 45.0  # without one, after which a run counts as lost
LOOK_S = 3.0  # between two looks at a run that others compute


def running(store: Store, key: str) -> list[Run]:
    """Return the open runs of a stage."""
    return store.search(query="attributes.status = 'RUNNING'", key=key)


def wait(store: Store, key: str) -> None:
    """Wait while others compute a stage; close runs that give no sign of life."""
    seen: dict[str, tuple[str, float]] = {}
    while others := running(store, key):
        for run in others:
            run_id, beat = run.info.run_id, run.data.tags.get("ppr.beat", "")
            if run_id not in seen or seen[run_id][0] != beat:
                seen[run_id] = beat, time.monotonic()
            if _gone(run) or time.monotonic() - seen[run_id][1] > LEASE_S:
                store.finish(run_id, "KILLED")
        if running(store, key):
            time.sleep(LOOK_S)


def first(store: Store, key: str, run_id: str) -> bool:
    """Say whether a run that was just opened is the oldest of those of its stage."""
    runs = running(store, key)
    oldest = min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
    return oldest is None or oldest.info.run_id == run_id


@contextlib.contextmanager
def beating(store: Store, run_id: str) -> Iterator[None]:
    """Give signs of life for a run, on a server; a local store needs none."""
    if store.local:
        yield
        return
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_S):
            count += 1
            with contextlib.suppress(StoreError):  # the server may be away for a while
                store.log(run_id, tags={"beat": str(count)})

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _gone(run: Run) -> bool:
    tags = run.data.tags
    return tags.get("ppr.host") == socket.gethostname() and not alive(tags.get("ppr.process", ""))
