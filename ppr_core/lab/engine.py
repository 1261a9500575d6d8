"""Where stages run: in this process, or on Ray (one GPU, many GPUs, many machines)."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from tqdm import tqdm

from ppr_core.attacks import Attack
from ppr_core.config import Settings
from ppr_core.defenses import Defense
from ppr_core.errors import ConfigError, DataError, need
from ppr_core.lab import places
from ppr_core.lab.checks import check
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Stage, with_parents
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.reactivation.retuning import Retuning
from ppr_core.runtime import Record, share_cores
from ppr_core.training.fit import Schedule

Backend = Literal["local", "ray"]
Failures = dict[str, str]

TRIES = 3  # of starting Ray

# What a method may meet on one model without the rest of the grid being at fault.
FAILURES = (ConfigError, DataError, RuntimeError)


def run(
    plan: Plan,
    lab: Lab,
    backend: Backend = "local",
    gpu_share: float = 1.0,
    wanted: Sequence[Stage] | None = None,
) -> Failures:
    """Compute every stage of a study that the store does not hold.

    A stage that fails does not stop the others: it is kept as a FAILED run, what depends on it is
    left out, and both are returned. Where Ray's worker dies of it at every attempt, it fails, too;
    its run is closed by the next start.

    Args:
        plan: the study, resolved.
        lab: computes a stage.
        backend: "local" is this process; "ray" starts Ray or joins RAY_ADDRESS.
        gpu_share: share of a GPU that one stage takes under Ray; 0.25 packs four on a card.
        wanted: stages to compute with what they read, in place of all.

    Returns:
        Stage name -> reason, for what failed or was left out.

    Raises:
        ConfigError: a share that cannot be had, or one without Ray.
    """
    need(0 < gpu_share <= 1, f"expected a GPU share above 0 and up to 1, got {gpu_share}")
    need(
        gpu_share == 1 or backend == "ray",
        f"expected Ray where stages share a GPU, got engine {backend}; add --engine ray",
    )
    check(plan)
    closed = lab.store.close_stale()
    if closed:
        print(f"closed {closed} run(s) of a killed start; going on from their checkpoints")
    stages = plan.stages() if wanted is None else with_parents(wanted)
    waiting = [stage for stage in stages if not lab.cached(stage)]
    if not waiting:
        return {}
    bar = _Bar(waiting)
    try:
        if backend == "ray":
            return _on_ray(waiting, bar, gpu_share)
        share_cores()
        lab.report = bar.epoch
        return _here(waiting, lab, bar)
    finally:
        lab.report = None
        bar.close()


def _here(stages: list[Stage], lab: Lab, bar: "_Bar") -> Failures:
    failures: Failures = {}
    for stage in stages:
        reason = _blocked(stage, failures)
        if reason is None:
            bar.begin(stage)
            try:
                lab.result(stage)
            except FAILURES as error:  # kept as a FAILED run
                reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            failures[stage.name] = reason
        bar.end(stage, reason)
    return failures


def _blocked(stage: Stage, failures: Failures) -> str | None:
    missing = [parent.name for parent in stage.parents if parent.name in failures]
    return f"needs {', '.join(missing)}, which failed" if missing else None


def _on_ray(stages: list[Stage], bar: "_Bar", gpu_share: float) -> Failures:
    """Hand every stage to Ray at once; each waits for its parents."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"expected Ray for --engine ray, got: {error}; pip install ray") from None
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"include_dashboard": False, "object_store_memory": 200 * 2**20}
    handed_on = ("PPR_STORE", "PPR_DATA", "PPR_COMPILE", "MLFLOW_TRACKING_URI", "PYTHONPATH")
    environment = {name: text for name, text in places.environment().items() if name in handed_on}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    start_ray(
        ray,
        address=address,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": environment},
        **local,
    )
    try:
        gpus = ray.cluster_resources().get("GPU", 0) and stages[0].setting.study.device != "cpu"
        # A worker takes stage after stage: Ray would start a new one for each that has a GPU.
        share: dict[str, Any] = {"num_gpus": gpu_share if gpus else 0, "max_calls": 0}
        task = ray.remote(max_retries=2, **share)(_remote)
        handles: dict[str, Any] = {}
        for stage in stages:
            # Ray starts a task when its arguments are there: the parents' outcomes order the graph.
            before = [handles[parent.key] for parent in stage.parents if parent.key in handles]
            handles[stage.key] = task.remote(stage, *before)
        failures: Failures = {}
        names = {handle: stage for stage in stages for handle in [handles[stage.key]]}
        left = list(names)
        while left:
            (done,), left = ray.wait(left, num_returns=1)
            stage = names[done]
            reason = _outcome(done, stage, failures)
            if reason is not None:
                failures[stage.name] = reason
            bar.end(stage, reason)
        return failures
    finally:
        ray.shutdown()


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


def _outcome(done: Any, stage: Stage, failures: Failures) -> str | None:
    """Return why a stage that Ray is through with failed, or None; a dead worker is a reason."""
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    try:
        return ray.get(done)
    # Killed at every attempt, most often for memory. What waits for the stage gets its error.
    except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
        text = str(error).strip().partition("\n")[0]
        return _blocked(stage, failures) or f"worker died: {type(error).__name__}: {text}"


def _remote(stage: Stage, *before: str | None) -> str | None:
    """Compute one stage in a worker, as it was handed on; return why it failed, or None."""
    failed = [reason for reason in before if reason is not None]
    if failed:
        return f"needs a stage that failed ({failed[0]})"
    share_cores(os.cpu_count() or 1)
    try:
        _lab().result(stage)
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


def weight(stage: Stage, count: int | None = None) -> float:
    """Return a rough cost of a stage: thousands of images that it trains on.

    Args:
        stage: to be computed.
        count: training images; as many as the data set has, if not given.
    """
    count, method = count or len(stage.setting.images.train), stage.method
    if isinstance(method, Attack) and stage.kind != "prepared":
        return method.training.total_steps(count) * method.training.batch_size / 1000
    if isinstance(method, Retuning):
        return method.share * count * 10 / 1000
    if isinstance(method, Defense) and stage.kind == "purified":
        return 2 * _budget(method, stage.setting.study.reserve) / 1000
    return 2 * stage.setting.study.reserve * 30 / 1000


def _budget(method: Settings, count: int) -> float:
    """Return the images that all of a method's schedules step over, its rounds counted."""
    images = 0.0
    for name in type(method).model_fields:
        value = getattr(method, name)
        if isinstance(value, Schedule):
            images += value.total_steps(count) * min(value.batch_size, count)
        elif isinstance(value, Settings):
            images += _budget(value, count)
    return images * getattr(method, "rounds", 1)


class _Bar:
    """One line of progress with the time left, weighted by the images that a stage trains on."""

    def __init__(self, stages: list[Stage]) -> None:
        self.weights = {stage.key: weight(stage) for stage in stages}
        self.total = sum(self.weights.values())
        self.quiet = not sys.stderr.isatty()
        self.bar = tqdm(
            total=round(self.total, 3),
            bar_format="{percentage:3.0f}% |{bar:24}| {elapsed} done, {remaining} left · {desc}",
            disable=self.quiet,
        )
        self.done = 0.0
        self.clock = 0.0

    def begin(self, stage: Stage) -> None:
        """Show which stage runs."""
        self.clock = time.perf_counter()
        self.bar.set_description_str(stage.name)

    def epoch(self, stage: Stage, history: list[Record], epochs: int) -> None:
        """Move on within a stage, as far as its longest training has come."""
        named = stage.kind in ("clean", "backdoored", "retuned")
        if named:  # one that was dropped and is computed again was not counted
            self._to(self.done + self.weights.get(stage.key, 0) * len(history) / epochs)
        self.bar.set_description_str(f"{stage.name} · epoch {len(history)}/{epochs}")

    def end(self, stage: Stage, reason: str | None) -> None:
        """Say that a stage is through, and how it went."""
        self.done += self.weights[stage.key]
        took = f"{time.perf_counter() - self.clock:6.1f} s" if self.clock else ""
        share = f"{100 * self.done / self.total:3.0f}%"
        text = f"{share}  {stage.name:44s} {took if reason is None else 'FAILED: ' + reason}"
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()
        self._to(self.done)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()

    def _to(self, position: float) -> None:
        if not self.quiet:
            self.bar.update(max(0.0, position - self.bar.n))
