"""Processes of one machine that compute a study's stages in turn, each stage once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil

from ppr_core.errors import ConfigError, DataError, StoreError
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Stage
from ppr_core.lab.places import importing
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.runtime import free_cores, set_threads

Failures = dict[str, str]

# What a method may meet on one model without the rest of the grid being at fault.
FAILURES = (ConfigError, DataError, RuntimeError)
LOOK_EVERY_S = 0.2  # while others compute all that could be computed now
PATIENCE_S = 10.0  # from the end of a study to that of its workers by force
TOLD = "stage: "  # how a worker's lines begin that are for who started it
MEMORY = 2 * 2**30  # bytes that a worker needs: libraries, data, a small model


def compute(
    stages: Sequence[Stage],
    lab: Lab,
    since: int,
    begin: Callable[[Stage], None],
    end: Callable[[Stage, str | None, bool], None],
) -> Failures:
    """Compute stages, each once its parents are there, unless another process is at it.

    Args:
        stages: parents before children.
        lab: computes a stage.
        since: when the study was started, ms; what has failed since then is not tried again.
        begin: called before a stage is computed here.
        end: called with a stage, why it failed, and whether it was computed here.

    Returns:
        Stage name -> reason, for what failed or was left out.
    """
    failures: Failures = {}
    left = {stage.key: stage for stage in stages}
    while left:
        before = len(left)
        for stage in [*left.values()]:
            if any(parent.key in left for parent in stage.parents):
                continue
            reason, here = blocked(stage, failures), False
            if reason is None:
                with lab.store.owned(stage.key, wait=False) as mine:
                    if not mine:
                        continue
                    here = not lab.cached(stage)
                    reason = lab.store.failure(stage.key, since) if here else None
                    here = here and reason is None
                    if here:
                        begin(stage)
                        reason = attempt(lab, stage)
            if reason is not None:
                failures[stage.name] = reason
            del left[stage.key]
            end(stage, reason, here)
            if here:  # look at the earlier ones again: others have gone on meanwhile
                break
        if len(left) == before:
            time.sleep(LOOK_EVERY_S)
    return failures


def attempt(lab: Lab, stage: Stage) -> str | None:
    """Compute a stage that this process owns; return why it failed, or None."""
    try:
        lab.computed(stage)
    except StoreError:  # no other stage would do better
        raise
    except FAILURES as error:  # kept as a FAILED run
        return f"{type(error).__name__}: {error}"
    return None


def blocked(stage: Stage, failures: Failures) -> str | None:
    """Return which of a stage's parents failed, in words, or None."""
    missing = [parent.name for parent in stage.parents if parent.name in failures]
    return f"needs {', '.join(missing)}, which failed" if missing else None


def most(threads: int) -> int:
    """Return how many processes of so many threads this machine has cores and memory for."""
    fit = int(psutil.virtual_memory().available // MEMORY)
    return max(1, min(free_cores() // threads, fit))


class Workers:
    """Further processes that take their turns at a study's stages; they end with this one.

    Args:
        plan: the study.
        store: where results go.
        stages: what is to be computed.
        since: see `compute`.
        count: of further processes.
        end: called from a thread with a stage that one of them has computed, why it failed, or
            None, and the seconds that it took.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        stages: Sequence[Stage],
        since: int,
        count: int,
        end: Callable[[Stage, str | None, float], None],
    ) -> None:
        task = {"study": plan.study.model_dump(), "folder": str(store.folder), "since": since}
        self.line = json.dumps({**task, "keys": [stage.key for stage in stages]}) + "\n"
        self.count, self.end = count, end
        self.stages = {stage.key: stage for stage in stages}
        self.processes: list[subprocess.Popen[str]] = []
        self.listeners: list[threading.Thread] = []

    def __enter__(self) -> Self:
        program = "from ppr_core.lab import turns; raise SystemExit(turns.main())"
        for _ in range(self.count):
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=importing(),
            )
            self.processes.append(process)
            self.listeners.append(
                threading.Thread(target=self._listen, args=[process], daemon=True)
            )
            self.listeners[-1].start()
            if process.stdin:  # it stays open: its end tells a worker that this process has ended
                process.stdin.write(self.line)
                process.stdin.flush()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.stdin:
                with contextlib.suppress(OSError):  # a worker that died
                    process.stdin.close()
        deadline = time.monotonic() + PATIENCE_S
        for process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for listener in self.listeners:
            listener.join(PATIENCE_S)

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        """Pass on what a worker says, until it ends."""
        for line in process.stdout or ():
            if line.startswith(TOLD):
                key, reason, seconds = json.loads(line.removeprefix(TOLD))
                self.end(self.stages[key], reason, seconds)


def main() -> int:
    """Take turns at the study that standard input names, until all is done or it ends."""
    task = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt, StoreError):  # who started it meets the latter too
        threading.Thread(target=_end_with_parent, daemon=True).start()
        plan = Plan(Study(**task["study"]))
        set_threads(plan.device)
        stages = [stage for stage in plan.stages() if stage.key in task["keys"]]
        lab = Lab(Store(Path(task["folder"])))
        began: dict[str, float] = {}

        def begin(stage: Stage) -> None:
            began[stage.key] = time.perf_counter()

        def end(stage: Stage, reason: str | None, here: bool) -> None:
            if here:
                seconds = time.perf_counter() - began[stage.key]
                print(TOLD + json.dumps([stage.key, reason, seconds]), flush=True)

        compute(stages, lab, task["since"], begin, end)
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock a thread may not hold when the interpreter ends
    # Not SIGINT, which a shell's background process ignores. The run in work is marked KILLED.
    signal.raise_signal(signal.SIGTERM)
