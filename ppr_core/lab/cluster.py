"""Stages on Ray: one GPU, many GPUs, many machines. What runs there outlives who started it."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ppr_core.config import digest
from ppr_core.errors import ConfigError, DataError, StoreError, need
from ppr_core.lab import places
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Stage
from ppr_core.lab.store import Store
from ppr_core.lab.turns import FAILURES

Outcomes = dict[str, str | None]  # key of a stage -> why it failed, or None

TRIES = 3  # of starting Ray
RETRIES = 1  # of a stage whose worker or machine is lost
WAIT_S = 2.0  # between two looks at what has ended
IDLE_S = 60.0  # after which what nobody asks about any more is put away
HEAD = "node:__internal_head__"  # what Ray calls the node that no cluster survives the loss of
SPACE = "ppr"  # Ray's namespace of the runners
LOCAL = ("PPR_STORE", "PPR_DATA", "PYTHONPATH")  # of workers that share this machine's disk
EVERYWHERE = ("PPR_COMPILE", "MLFLOW_TRACKING_URI")


class Task(NamedTuple):
    """A stage as it is handed on: who hands it on needs no images to know its key."""

    key: str
    parents: tuple[str, ...]
    stage: Stage


class Runner:
    """Hands stages to Ray, each after those that it reads, and keeps what becomes of them.

    In this process where it has started Ray; an actor of its own on a cluster that was joined, so
    that a driver which is killed and started again finds what runs.

    Args:
        work: what a worker does: `compute`.
        options: of Ray's tasks: GPU share and memory.
        alone: whether it ends itself when all is through and nobody asks any more.
    """

    def __init__(
        self, work: Callable[..., str | None], options: Mapping[str, Any], alone: bool = False
    ) -> None:
        import ray

        self.task = ray.remote(max_retries=RETRIES, **options)(work)
        self.handles: dict[str, Any] = {}
        self.tasks: dict[str, Task] = {}
        self.outcomes: Outcomes = {}
        self.asked = time.monotonic()
        if alone:
            threading.Thread(target=self._end_when_idle, daemon=True).start()

    def add(self, tasks: Sequence[Task]) -> None:
        """Take stages, parents first: those not known yet, and those that have failed before."""
        self.asked = time.monotonic()
        for task in tasks:
            if task.key in self.handles and self.outcomes.get(task.key) is None:
                continue
            self.outcomes.pop(task.key, None)
            # Ray starts a task when its arguments are there: the parents' outcomes order the graph.
            before = [self.handles[key] for key in task.parents if key in self.handles]
            self.tasks[task.key] = task
            self.handles[task.key] = self.task.remote(task.stage, *before, key=task.key)

    def ended(self, keys: Sequence[str], wait_s: float) -> Outcomes:
        """Wait for one more stage to end; return the outcomes of these stages that there are.

        Raises:
            Exception: whatever a stage raises that is no failure of one model (`FAILURES`).
        """
        import ray

        self.asked = time.monotonic()
        left = {handle: key for key, handle in self.handles.items() if key not in self.outcomes}
        if left and not any(key in self.outcomes for key in keys):
            ray.wait(list(left), num_returns=1, timeout=wait_s)
        done = ray.wait(list(left), num_returns=len(left), timeout=0)[0] if left else []
        for handle in done:
            self.outcomes[left[handle]] = self._outcome(left[handle], handle)
        self.asked = time.monotonic()
        return {key: self.outcomes[key] for key in keys if key in self.outcomes}

    def _outcome(self, key: str, handle: Any) -> str | None:
        """Return why a stage that Ray is through with failed; a dead worker is a reason."""
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

        try:
            return ray.get(handle)
        # Killed at every attempt, most often for memory. What waits for the stage gets its error.
        except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
            text = str(error).strip().partition("\n")[0]
            failed = [
                self.tasks[parent].stage.name
                for parent in self.tasks[key].parents
                if self.outcomes.get(parent) is not None
            ]
            if failed:
                return f"needs {', '.join(failed)}, which failed"
            return f"worker died: {type(error).__name__}: {text}"

    def _end_when_idle(self) -> None:
        import ray

        while time.monotonic() - self.asked < IDLE_S or self._running(ray):
            time.sleep(WAIT_S)
        os._exit(0)

    def _running(self, ray: Any) -> bool:
        handles = list(self.handles.values())
        if not handles:
            return False
        return len(ray.wait(handles, num_returns=len(handles), timeout=0)[0]) < len(handles)


def run(
    stages: Sequence[Stage],
    ended: Callable[[Stage, str | None], None],
    gpu_share: float = 1.0,
    memory_gb: float = 0.0,
) -> dict[str, str]:
    """Hand every stage to Ray at once; each waits for its parents.

    Args:
        stages: parents first.
        ended: called with each stage that is through, and why it failed or None.
        gpu_share: of a stage, where there are GPUs.
        memory_gb: main memory that a stage takes; 0 does not count it.

    Returns:
        Stage name -> reason, for what failed or was left out.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"expected Ray for --engine ray, got: {error}; pip install ray") from None
    address = os.environ.get("RAY_ADDRESS")
    start_ray(ray, **_beginning(address))
    try:
        gpus = ray.cluster_resources().get("GPU", 0) and stages[0].setting.study.device != "cpu"
        # A worker takes stage after stage: Ray would start a new one for each that has a GPU.
        options: dict[str, Any] = {"num_gpus": gpu_share if gpus else 0, "max_calls": 0}
        if memory_gb:
            options["memory"] = int(memory_gb * 1e9)
        tasks = [Task(s.key, tuple(parent.key for parent in s.parents), s) for s in stages]
        if not address:
            runner = Runner(compute, options)
            runner.add(tasks)
            return _followed(runner.ended, stages, ended)
        name = f"ppr-{digest(sorted(options.items()))[:6]}"
        made: Any = ray.remote(num_cpus=0, resources={HEAD: 0.001})(Runner)
        made = made.options(name=name, lifetime="detached", get_if_exists=True)
        remote: Any = made.remote(compute, options, alone=True)
        try:
            ray.get(remote.add.remote(tasks))
            ask = remote.ended
            return _followed(lambda *given: ray.get(ask.remote(*given)), stages, ended)
        except KeyboardInterrupt:  # asked to stop: nothing is left behind
            ray.kill(remote)
            raise
        except ray.exceptions.RayActorError as error:
            reason = str(error).strip().partition("\n")[0]
            raise StoreError(
                f"expected Ray's head at {address} to stay, got: {reason}; start again (finished "
                "stages are kept)"
            ) from None
    finally:
        ray.shutdown()


def _beginning(address: str | None) -> dict[str, Any]:
    """Return how Ray is started here, or joined; and what its workers' environment is."""
    server = "://" in os.environ.get("MLFLOW_TRACKING_URI", "")
    apart = address and server and not os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite")
    # Machines that share nothing but a server have folders of their own.
    handed_on = EVERYWHERE if apart else (*LOCAL, *EVERYWHERE)
    environment = {name: text for name, text in places.environment().items() if name in handed_on}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    local = {} if address else {"include_dashboard": False, "object_store_memory": 200 * 2**20}
    return {
        "address": address,
        "namespace": SPACE,
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": environment},
        **local,
    }


def _followed(
    ask: Callable[[Sequence[str], float], Outcomes],
    stages: Sequence[Stage],
    ended: Callable[[Stage, str | None], None],
) -> dict[str, str]:
    """Tell of each stage as it ends, until all have; return the failures."""
    left, failures = {stage.key: stage for stage in stages}, dict[str, str]()
    while left:
        for key, reason in ask(list(left), WAIT_S).items():
            stage = left.pop(key)
            if reason is not None:
                failures[stage.name] = reason
            ended(stage, reason)
    return failures


def start_ray(ray: Any, **given: Any) -> None:
    """Start Ray or join it; it gives its node half a minute, which a busy machine may outlast."""
    for left in reversed(range(TRIES)):
        try:
            ray.init(**given)
            return
        except Exception as error:  # Ray raises a bare Exception here
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise


def compute(stage: Stage, *before: str | None, key: str = "") -> str | None:
    """Compute one stage in a worker, as it was handed on; return why it failed, or None.

    Args:
        stage: to be computed.
        before: what became of the stages that it reads.
        key: of the stage where it was planned: that of other images or of other code differs.
    """
    failed = [reason for reason in before if reason is not None]
    if failed:
        return f"needs a stage that failed ({failed[0]})"
    torch.set_num_threads(1)  # a process a core
    try:
        need(
            key in ("", stage.key),
            f"expected the images and the code of who planned {stage.name}, got others; give "
            "this machine the same data (PPR_DATA) and version",
            DataError,
        )
        _lab().result(stage)
    except StoreError:
        raise
    except FAILURES as error:
        return f"{type(error).__name__}: {error}"
    finally:
        # What this stage no longer needs, its neighbours may have. After an error of the device
        # itself, giving back fails as well; what is to be said is the stage's own reason.
        with contextlib.suppress(RuntimeError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return None


@lru_cache(maxsize=1)
def _lab() -> Lab:
    """Return a lab that is kept from stage to stage of a worker."""
    return Lab(Store())
