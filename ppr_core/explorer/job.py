"""PAM and RA at one more rho, in a process of their own: sliders stay quick, Cancel is sure.

Not a thread: a second computation would share torch's global generator and, on a GPU, the capture
of CUDA graphs with the first.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from ppr_core.errors import CheckpointError, ConfigError, DataError, StoreError, need
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell, Stage, Variant
from ppr_core.lab.places import PACKAGE
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reporting import comparison
from ppr_core.runtime import Record, set_threads

PATIENCE_S = 10.0  # from the request to stop to the end of the process by force


@dataclass(frozen=True)
class Progress:
    """How far a job has come.

    Attributes:
        share: of the stages, from 0 to 1.
        text: what is being computed; at the end, how it went.
        state: "running", "done", "cancelled" or "failed".
    """

    share: float
    text: str
    state: str = "running"


class Job:
    """Computes one cell in another process; of a cancelled one, finished stages are kept.

    Args:
        study: the study with that cell.
        store: where results go.
        cell: that is computed.
        report: called with every `Progress`, from a thread of this job; the last one says so.
    """

    def __init__(self, study: Study, store: Store, cell: Cell, report: Callable) -> None:
        self.report = report
        self.cancelled = False
        known = [str(PACKAGE.parent), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        program = "from ppr_core.explorer import job; raise SystemExit(job.main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(known)},
        )
        task = {"study": study.model_dump(), "folder": str(store.folder), "cell": astuple(cell)}
        with need(self.process.stdin, "expected a pipe to the process, got none") as pipe:
            pipe.write(json.dumps(task))
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

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

    def _listen(self) -> None:
        last, words = Progress(0.0, "starting"), ""
        self.report(last)
        for line in self.process.stdout or ():
            try:
                last = Progress(**json.loads(line))
            except (ValueError, TypeError):  # a warning of some library
                words = line.strip() or words
                continue
            if last.state == "running" and not self.cancelled:
                self.report(last)
        self.process.wait()
        if self.cancelled and last.state != "done":
            last = Progress(last.share, "what is finished is kept", "cancelled")
        elif last.state == "running":
            last = Progress(last.share, words or f"exit {self.process.returncode}", "failed")
        self.report(last)


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
        missing = _missing(lab, stages_of(plan, cell))
        done = -1.0

        def report(stage: Stage, history: list[Record], epochs: int) -> None:
            nonlocal done
            within = missing.index(stage) + len(history) / (epochs + 1)
            done = max(done, within / len(missing))  # a stage may have several trainings
            _say(Progress(done, f"{stage.name}: epoch {len(history)} of {epochs}"))

        lab.report = report
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
