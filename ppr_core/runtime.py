"""Where and how computations run: device, precision, threads, progress and checkpoints."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn

from ppr_core.errors import need

Record = dict[str, float]

WATCH_S = (0.1, 1.0)  # seconds that a start looks for rivals


@dataclass(frozen=True)
class Session:
    """The caller's choices, so that no method carries any of them.

    Differs from the authors' code: "auto", the default, runs forward passes in bf16 on CUDA and on
    CPUs that multiply it in hardware; the released tunings run in float32, which "fp32" gives.

    Attributes:
        precision: of matrix products; "auto" is bf16 where the processor has it.
        deterministic: forbid algorithms whose results vary from run to run.
        capture: capture training steps as CUDA graphs where that can be done.
        compile: compile the backbone in captured steps and in trainings on a CPU, once for all
            models of one structure; the environment's PPR_COMPILE=1 turns it on.
        checkpoint: folder of the epoch checkpoints of resumable trainings, or None.
        evaluate: what a training that asks for it is evaluated by after each epoch; its metrics
            join the epoch's record.
        report: called after each epoch with (the name to resume the training by, or "", records so
            far, epochs in all).
        resumable: the files that trainings of this session have taken for their checkpoints.
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: bool = False
    capture: bool = True
    compile: bool = field(default_factory=lambda: os.environ.get("PPR_COMPILE") == "1")
    checkpoint: Path | None = None
    evaluate: Callable[[nn.Module], Record] | None = None
    report: Callable[[str, list[Record], int], None] | None = None
    resumable: set[Path] = field(default_factory=set)


@dataclass
class Cost:
    """What a call took: passes and images through the classifier, seconds, peak memory."""

    forward: int = 0
    backward: int = 0
    images: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def passes(self) -> tuple[int, ...]:
        """The counts: what a replayed step, which calls no hook, has to add by itself."""
        return self.forward, self.backward, self.images

    @passes.setter
    def passes(self, counts: tuple[int, ...]) -> None:
        self.forward, self.backward, self.images = counts


# What is being counted at present, the outermost first.
counted: ContextVar[tuple[Cost, ...]] = ContextVar("counted", default=())
_session: ContextVar[Session] = ContextVar("session", default=Session())  # noqa: B039 (frozen)


def current() -> Session:
    """Return the session that this code runs in."""
    return _session.get()


@contextlib.contextmanager
def session(**settings: Any) -> Iterator[Session]:
    """Run what stands inside with these `Session` settings."""
    new = Session(**settings)
    token = _session.set(new)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        if new.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(new.deterministic or before)
        yield new
    finally:
        torch.use_deterministic_algorithms(before)
        _session.reset(token)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Keep the trainings inside apart from those of another part that have the same names.

    So a method that trains in rounds, or tries several settings, goes on after a kill with the
    round or setting that it was in. Their epochs are no epochs of the whole: they are reported
    without a name.

    Args:
        name: of a round, a setting tried or another part; within a session each at most once.
    """
    now = current()
    told: dict[str, Any] = {}
    if report := now.report:
        told["report"] = lambda _, history, epochs: report("", history, epochs)
    folder = now.checkpoint and now.checkpoint / name
    token = _session.set(replace(now, checkpoint=folder, **told))
    try:
        yield
    finally:
        _session.reset(token)


def seed_of(rng: torch.Generator, *names: str | int) -> int:
    """Return the seed of one part of a method; without names, the seed that `rng` was made from.

    Every rng of the package is made from a seed and stands for it: what a part draws depends on
    that seed and on the part's names, never on how much was drawn from `rng` before. No other
    function reads the seed of an rng.

    Args:
        rng: a CPU generator; nothing is drawn from it.
        names: the path of the part, such as "invert", 2; different paths give independent seeds.
    """
    seed = rng.initial_seed()
    if not names:
        return seed
    text = "/".join(map(str, (seed, *names)))
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, which draws initial weights; afterwards it is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def cpu_has_bf16() -> bool:
    """Say whether this processor multiplies bf16 matrices in hardware."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported())


def in_bf16(device: torch.device) -> bool:
    """Say whether forward passes on a device run in bf16 under the session's precision."""
    precision = current().precision
    if precision == "auto":
        return device.type == "cuda" or (device.type == "cpu" and cpu_has_bf16())
    return precision == "bf16"


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context in which forward passes run under the session's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(device))


def pick_device(name: str) -> torch.device:
    """Return the device that a study asks for: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    need(
        name != "cuda" or available,
        "expected a CUDA device, got none on this machine; set device: auto or cpu",
    )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def free_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # not on macOS
    return len(affinity()) if affinity else os.cpu_count() or 1


def set_threads(device: torch.device) -> int:
    """Set how many threads this process computes with; return their number.

    OMP_NUM_THREADS, where it is set, is the most that it takes: more threads than free cores slow
    a process many-fold, for those that share a convolution spin while they wait for each other.
    Where it is not set, a process that computes on a GPU takes all cores, and one that computes on
    a CPU takes a single thread. Several add up in another order, and a training carries that
    rounding on to other figures (as another seed would): the numbers of a study would hang on the
    machine that it runs on. Several processes of one thread are faster, too.

    OpenMP threads of rival processes that spin while they wait slow each other forty-fold, so they
    must wait passively; the variable counts only if it is set before torch starts its threads,
    which is why the command line and the kernels' environment set it as well.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores, asked = free_cores(), os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        threads = min(cores, int(asked))
    else:
        threads = 1 if device.type == "cpu" else cores
    torch.set_num_threads(threads)
    return threads


def _idle(seconds: float) -> float:
    """Return how many of this process's cores nobody else has used, watched for some seconds."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # not on macOS
    times = psutil.cpu_times_percent(seconds, percpu=True)
    cores = [times[core] for core in affinity()] if affinity else times
    spare = ("idle", "iowait", "nice")  # the latter two are not everywhere
    return sum(getattr(core, name, 0.0) for core in cores for name in spare) / 100


def rivals(threads: int) -> str:
    """Say that other processes leave fewer cores than a study has threads; "" if they do not.

    It watches for a moment, and for a longer one where that was busy: an installation may just have
    ended. What runs at a lower priority gives way, and does not count.
    """
    cores = free_cores()
    for seconds in WATCH_S:
        free = _idle(seconds)
        if free > threads - 0.5:
            return ""
    return (
        f"other processes leave {free:.1f} of {cores} cores to {threads} thread(s): stages "
        "may take many times as long; end those processes, or ask for less by --workers and "
        "OMP_NUM_THREADS"
    )
