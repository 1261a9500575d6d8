"""PAM and RA at one more rho, in a process of their own: sliders stay quick, Cancel is sure.

Not a thread: a second computation would share torch's global generator and, on a GPU, the capture
of CUDA graphs with the first.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from ppr_core.errors import CheckpointError, ConfigError, DataError, StoreError, need
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell, Stage, Variant
from ppr_core.lab.places import importing
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reporting import comparison
from ppr_core.runtime import Record, set_threads

PATIENCE_S = 10.0  # from the request to stop to the end of the process by force
TICK_S = 1.0  # between two words on the time that is left
START_S = 10.0  # until a process has imported torch and read the study
TRUSTED = 0.15  # share from which on a job's own pace tells how long it will take
AHEAD = 0.9  # of the bar, at the most, where time has passed and nothing was heard


@dataclass(frozen=True)
class Progress:
    """How far a job has come.

    Attributes:
        share: of the work, from 0 to 1.
        text: what is being computed; at the end, how it went.
        state: "running", "done", "cancelled" or "failed".
        left: seconds until it is done; None where nothing tells.
    """

    share: float
    text: str
    state: str = "running"
    left: float | None = None


class Job:
    """Computes one cell in another process; of a cancelled one, finished stages are kept.

    Args:
        study: the study with that cell.
        store: where results go.
        cell: that is computed.
        report: called with every `Progress`, from a thread of this job; the last one says so.
        seconds: what stages of each kind have taken elsewhere.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        cell: Cell,
        report: Callable[[Progress], object],
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.report, self.store = report, store
        self.cancelled, self.ended = False, threading.Event()
        self.started, self.last = time.monotonic(), Progress(0.0, "starting")
        self.expected = START_S + sum(seconds.values()) if seconds else None
        program = "from ppr_core.explorer import job; raise SystemExit(job.main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=importing(),
        )
        task = {"study": study.model_dump(), "folder": str(store.folder), "cell": astuple(cell)}
        task |= {"seconds": dict(seconds or {})}
        with need(self.process.stdin, "expected a pipe to the process, got none") as pipe:
            pipe.write(json.dumps(task))
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        threading.Thread(target=self._tick, daemon=True).start()

    def cancel(self) -> None:
        """Ask the process to stop; what is finished is kept."""
        self.cancelled = True
        self.process.terminate()
        force = threading.Timer(PATIENCE_S, self.process.kill)
        force.daemon = True
        force.start()

    def wait(self) -> None:
        """Return when the job has ended and said so."""
        self.thread.join()

    def _tick(self) -> None:
        """Tell of the time, from the first second on."""
        while not self.ended.is_set():
            if not self.cancelled:
                self.report(self._timed())
            self.ended.wait(TICK_S)

    def _timed(self) -> Progress:
        """Return the last progress with the time that is left, the bar as far as that says."""
        passed, last = time.monotonic() - self.started, self.last
        left = None if self.expected is None else max(self.expected - passed, 1.0)
        if last.share > TRUSTED:
            left = passed * (1 - last.share) / last.share
        share = min(passed / (passed + left), AHEAD) if left is not None else 0.0
        return replace(last, share=max(last.share, share), left=left)

    def _listen(self) -> None:
        words = ""
        for line in self.process.stdout or ():
            try:
                self.last = Progress(**json.loads(line))
            except (ValueError, TypeError):  # a warning of some library
                words = line.strip() or words
                continue
            if self.last.state == "running" and not self.cancelled:
                self.report(self._timed())
        self.process.wait()
        self.ended.set()
        last = self.last
        if self.cancelled and last.state != "done":
            with contextlib.suppress(StoreError):
                self.store.close_stale()  # a process that ended by force has not closed its runs
            last = Progress(last.share, "what is finished is kept", "cancelled")
        elif last.state == "running":
            last = Progress(last.share, words or f"exit {self.process.returncode}", "failed")
        self.report(last)


class Story:
    """What a job says of its stages: how far it is, and in which round.

    Args:
        stages: to compute, parents first.
        seconds: what stages of each kind have taken elsewhere.
    """

    def __init__(self, stages: list[Stage], seconds: Mapping[str, float]) -> None:
        self.stages = stages
        usual = min(seconds.values(), default=1.0)
        self.costs = [seconds.get(stage.kind, usual) for stage in stages]
        self.share = 0.0
        self.rounds: dict[str, int] = {}

    def __call__(self, stage: Stage, history: list[Record], epochs: int) -> None:
        """Print a line: one epoch of a training of a stage is done."""
        if stage not in self.stages:  # computed anew, for what was kept of it is damaged
            return
        number, method = self.stages.index(stage), stage.method
        of_rounds = getattr(method, "rounds", 0) if stage.kind == "purified" else 0
        # A round tunes the model once; what else is trained in it looks for the trigger.
        tunes = of_rounds and epochs == method.tuning.epochs
        within = len(history) / (epochs + 1)
        what = f"epoch {len(history)} of {epochs}"
        if tunes:
            count = self.rounds.get(stage.key, 0) + (len(history) == 1)
            self.rounds[stage.key] = count = min(max(count, 1), of_rounds)
            what = f"round {count} of {of_rounds}, {what}"
            within = (count - 1 + within) / of_rounds
        elif of_rounds:
            what, within = f"looking for the trigger, {what}", 0.0
        done = sum(self.costs[:number]) + within * self.costs[number]
        self.share = max(self.share, done / sum(self.costs))  # a stage may have several trainings
        _say(Progress(self.share, f"{number + 1} of {len(self.stages)}, {stage.name}: {what}"))


def stages_of(plan: Plan, cell: Cell) -> list[Stage]:
    """Return what a point of the rho curve takes: RA and, where the study has it, the path."""
    path = plan.taken("path", cell)
    return [plan.retuned(cell), *([path] if path else [])]


def main() -> int:
    """Compute the cell that standard input names; print a line of JSON an epoch."""
    task = json.load(sys.stdin)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kernel's children ignore SIGINT
    try:
        plan = Plan(Study(**task["study"]))
        set_threads(plan.device)
        lab = Lab(Store(Path(task["folder"])))
        attack, defense, seed, variant = task["cell"]
        cell = Cell(attack, defense, seed, variant and Variant(*variant))
        wanted = stages_of(plan, cell)
        with _alone(lab.store, f"explorer-{wanted[0].key}"):
            missing = _missing(lab, wanted)
            lab.report = Story(missing, task["seconds"])
            for stage in missing:
                lab.result(stage)
            _say(Progress(1.0, "adding its row to the table of cells"))
            comparison.log_cells(plan, lab.store)
        last = Progress(1.0, f"{len(missing)} stages computed", "done")
    except (ConfigError, DataError, CheckpointError, StoreError, RuntimeError) as error:
        last = Progress(0.0, f"{type(error).__name__}: {error}", "failed")
    except KeyboardInterrupt:
        return 130
    _say(last)
    return last.state == "failed"


@contextlib.contextmanager
def _alone(store: Store, key: str) -> Iterator[None]:
    """Hold the right to compute; say so where another page has it, and wait."""
    with store.owned(key, wait=False) as had:
        if had:
            yield
            return
    _say(Progress(0.0, "waiting: another page computes this rho already"))
    with store.owned(key):
        yield


def _say(progress: Progress) -> None:
    try:
        print(json.dumps(asdict(progress)), flush=True)
    except BrokenPipeError:  # whoever asked is gone
        raise KeyboardInterrupt from None


def _missing(lab: Lab, wanted: list[Stage]) -> list[Stage]:
    """Return the stages to compute, parents first."""
    ordered: dict[str, Stage] = {}

    def add(stage: Stage) -> None:
        if lab.cached(stage):
            return
        for parent in stage.parents:
            add(parent)
        ordered.setdefault(stage.key, stage)

    for stage in wanted:
        add(stage)
    return list(ordered.values())
