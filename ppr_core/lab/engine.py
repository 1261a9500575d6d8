"""Where stages run: in this process, or on Ray (one GPU, many GPUs, many machines)."""

import sys
import threading
import time
from collections.abc import Sequence
from typing import Literal

from tqdm import tqdm

from ppr_core.attacks import Attack
from ppr_core.config import Settings
from ppr_core.defenses import Defense
from ppr_core.errors import need
from ppr_core.lab import cluster, turns
from ppr_core.lab.checks import check
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Stage, with_parents
from ppr_core.lab.plan import Plan
from ppr_core.lab.turns import Failures
from ppr_core.reactivation.retuning import Retuning
from ppr_core.runtime import Record, rivals, set_threads
from ppr_core.training.fit import Schedule

Backend = Literal["local", "ray"]

WORTH = 60.0  # thousands of images: what a study must train on before a further process pays


def run(
    plan: Plan,
    lab: Lab,
    backend: Backend = "local",
    gpu_share: float = 1.0,
    wanted: Sequence[Stage] | None = None,
    workers: int | None = None,
    memory_gb: float = 0.0,
) -> Failures:
    """Compute every stage of a study that the store does not hold.

    A stage that fails does not stop the others: it is kept as a FAILED run, what depends on it is
    left out, and both are returned. Where Ray's worker dies of it twice, it fails, too; its run is
    closed by the next start.

    Args:
        plan: the study, resolved.
        lab: computes a stage.
        backend: "local" is this process; "ray" starts Ray or joins RAY_ADDRESS.
        gpu_share: share of a GPU that one stage takes under Ray; 0.25 packs four on a card.
        wanted: stages to compute with what they read, in place of all.
        workers: processes that share the stages under "local", this one among them; at None one
            a core of a CPU, as far as memory goes, and one of a GPU.
        memory_gb: main memory that one stage takes under Ray; 0 does not count it.

    Returns:
        Stage name -> reason, for what failed or was left out.

    Raises:
        ConfigError: a share that cannot be had, or one without Ray; workers beside Ray's own.
        StoreError: the store cannot be written any more; the next start goes on from there.
    """
    need(0 < gpu_share <= 1, f"expected a GPU share above 0 and up to 1, got {gpu_share}")
    need(
        gpu_share == 1 or backend == "ray",
        f"expected Ray where stages share a GPU, got engine {backend}; add --engine ray",
    )
    need(workers is None or workers >= 1, f"expected at least one worker, got {workers}")
    need(
        workers in (None, 1) or backend == "local",
        f"expected no workers beside Ray's own, got {workers}; Ray takes all cores and GPUs",
    )
    check(plan)
    since = int(1000 * time.time())
    closed = lab.store.close_stale()
    if closed:
        print(f"closed {closed} run(s) of a killed start; going on from their checkpoints")
    stages = plan.stages() if wanted is None else with_parents(wanted)
    waiting = [stage for stage in stages if not lab.holds(stage)]
    if not waiting:
        return {}
    bar = _Bar(waiting)
    try:
        if backend == "ray":
            return cluster.run(waiting, bar.end, gpu_share, memory_gb)
        threads = set_threads(plan.device)
        if workers is None:
            enough = plan.device.type == "cpu" and bar.total > WORTH
            workers = min(turns.most(threads), len(waiting)) if enough else 1
        if told := rivals(threads * workers):
            print(told, flush=True)
        lab.report = bar.epoch

        def end(stage: Stage, reason: str | None, here: bool) -> None:
            run = None if here or reason else lab.store.find(stage.key)
            bar.end(stage, reason, run.data.metrics["seconds"] if run else None)

        with turns.Workers(plan, lab.store, waiting, since, workers - 1, bar.end):
            return turns.compute(waiting, lab, since, bar.begin, end)
    finally:
        lab.report = None
        bar.close()


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
        self.told: set[str] = set()
        self.lock = threading.Lock()  # workers tell of their stages from threads

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

    def end(self, stage: Stage, reason: str | None, seconds: float | None = None) -> None:
        """Say that a stage is through, how it went, and what it took if not the time until now.

        Only once: of a worker's stage both it and, later, this process would tell.
        """
        with self.lock:
            if stage.key not in self.told:
                self.told.add(stage.key)
                self._end(stage, reason, seconds)

    def _end(self, stage: Stage, reason: str | None, seconds: float | None) -> None:
        self.done += self.weights[stage.key]
        if seconds is None and self.clock:
            seconds = time.perf_counter() - self.clock
        took = f"{seconds:6.1f} s" if seconds is not None else ""
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
