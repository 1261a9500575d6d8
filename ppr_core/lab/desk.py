"""Computing a study's stages over a store: each once, then read back."""

import contextlib
import inspect
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ppr_core.attacks import Trigger
from ppr_core.attacks.base import prepared
from ppr_core.bench import weights_of
from ppr_core.config import derive
from ppr_core.errors import CheckpointError, StoreError, need
from ppr_core.lab import leases
from ppr_core.lab.dropping import drop, dropped
from ppr_core.lab.graph import Stage
from ppr_core.lab.measures import Measure
from ppr_core.lab.reader import LEARNT, Reader
from ppr_core.lab.store import Run, Store
from ppr_core.method import Cost, Result, measuring
from ppr_core.metrics import attack_success_rate, clean_accuracy, evaluate, triggered
from ppr_core.runtime import Record, session
from ppr_core.weights import under

log = logging.getLogger(__name__)

CURVE_IMAGES = 500  # test images behind each point of a training curve
LOG_EVERY_S = 5.0  # epochs are logged in batches: a request each would slow short trainings


def droppable(stage: Stage) -> bool:
    """Say whether a stage's tensors are cheap to have again: generators, and retuned weights."""
    return stage.kind == "inverted" or isinstance(stage.method, Measure)


class Lab(Reader):
    """Computes stages over one store: each runs its method as it is.

    Args:
        store: where results are looked up and kept.
        report: called after each epoch with (stage, records so far, epochs in all).

    Attributes:
        computing: seconds that the stages computed here have taken.
    """

    def __init__(
        self, store: Store, report: Callable[[Stage, list[Record], int], None] | None = None
    ) -> None:
        super().__init__(store)
        self.report = report
        self.computing = 0.0

    def compute(self, stage: Stage) -> Run:
        """Compute a stage, its parents first, and return its run."""
        for parent in stage.parents:
            self.result(parent)
        with self.store.owned(stage.key):  # of two that want it, one computes it
            return self.computed(stage)

    def replace(self, stage: Stage, run: Run, error: CheckpointError) -> Run:
        """Compute a stage anew whose result is damaged, and say so; the damaged run stays."""
        self._retire(run, error)
        return self.compute(stage)

    def holds(self, stage: Stage) -> bool:
        """Say whether the store holds a stage's result; a damaged one is retired, and said."""
        run = self.store.find(stage.key)
        if run is None:
            return False
        try:
            if not dropped(run):
                self.store.check(run)
        except CheckpointError as error:
            self._retire(run, error)
            return False
        return True

    def _retire(self, run: Run, error: CheckpointError) -> None:
        self.store.retire(run, str(error))
        log.warning("%s is computed anew: %s", run.info.run_name, str(error).partition(";")[0])

    def computed(self, stage: Stage) -> Run:
        """Compute a stage that this process owns and whose parents are there; return its run."""
        for parent in stage.parents:
            self.result(parent)  # one that was dropped is computed again
        while True:
            if not self.store.local:
                leases.wait(self.store, stage.key)
            found = self.store.find(stage.key)
            if found is not None and not dropped(found):
                return found
            made = self._made(stage)
            if made is None:
                continue
            if found is not None:
                self.store.discard(found.info.run_id)
            return made

    def drop(self, stages: Iterable[Stage], later: Iterable[Stage] = ()) -> int:
        """Remove what is cheap to have again (see `droppable`); return the bytes that this frees.

        Args:
            stages: of a study that is through.
            later: stages still to be computed, which may read some of these.
        """
        read = {parent.key for stage in later for parent in stage.parents}
        freed = 0
        for stage in stages:
            run = self.store.find(stage.key) if droppable(stage) and stage.key not in read else None
            if run is not None and not dropped(run):
                freed += drop(self.store, run)
                self._read.pop(stage.key, None)
        return freed

    def _made(self, stage: Stage) -> Run | None:
        """Compute a stage; return its run, or None where another machine was just faster."""
        setting, run_id = stage.setting, self._open(stage)
        if not run_id:
            return None
        logged: set[float] = set()
        last, first = time.monotonic(), ""

        def keep(history: list[Record]) -> None:
            nonlocal last
            self.store.log(run_id, history=[r for r in history if r["epoch"] not in logged])
            logged.update(record["epoch"] for record in history)
            last = time.monotonic()

        def report(name: str, history: list[Record], epochs: int) -> None:
            nonlocal first
            first = first or name  # of several, it is the one whose epochs the history begins with
            if name and name == first and time.monotonic() - last > LOG_EVERY_S:
                keep(history)
            if self.report:
                self.report(stage, history, epochs)

        clock = time.perf_counter()
        try:
            with (
                leases.beating(self.store, run_id),
                session(
                    precision=setting.study.precision,
                    deterministic=setting.study.deterministic,
                    checkpoint=self.store.scratch(stage.key),
                    evaluate=self._evaluator(stage),
                    report=report,
                ),
            ):
                result = self._work(stage)
            result.metrics["seconds"] = time.perf_counter() - clock
            self.computing += result.metrics["seconds"]
            self.store.log(run_id, metrics=result.metrics)
            keep(result.history)
            self.store.save(run_id, result)
        except KeyboardInterrupt:
            self.store.finish(run_id, "KILLED")
            raise
        except BaseException as error:
            with contextlib.suppress(StoreError):  # a store that fails cannot keep that it does
                self.store.log(run_id, tags={"error": f"{type(error).__name__}: {error}"[:4000]})
                self.store.finish(run_id, "FAILED")
            raise
        self.store.drop_scratch(stage.key)
        return self.store.client.get_run(run_id)

    def _open(self, stage: Stage) -> str:
        """Open the run of a stage; return its id, or "" where another machine was faster."""
        run_id = self.store.start(
            stage.setting.study.name,
            stage.name,
            tags=_tags(stage),
            params=stage.settings,
            dataset=stage.setting.described,
        )
        if self.store.local or leases.first(self.store, stage.key, run_id):
            return run_id
        self.store.discard(run_id)
        return ""

    def _work(self, stage: Stage) -> Result:
        if stage.file is not None:
            return read_model(self, stage)
        if isinstance(stage.method, Measure):
            return stage.method.measure(self, stage)
        return WORK[stage.kind](self, stage)

    def _evaluator(self, stage: Stage) -> Callable[[nn.Module], Record] | None:
        """Return what is measured each epoch; never anything while a defense runs."""
        test = stage.setting.images.test
        if isinstance(stage.method, Measure):
            if not stage.method.followed:
                return None
            stamped = self.stamped_test(stage)
            return lambda model: evaluate(model, test, stamped)
        if stage.kind in ("clean", "backdoored"):
            test = test.spread(CURVE_IMAGES)
            if stage.kind == "clean" or stage.method.learns_trigger:
                return lambda model: {"c_acc": clean_accuracy(model, test)}
            stamped = self.stamped_test(stage).spread(CURVE_IMAGES)
            return lambda model: evaluate(model, test, stamped)
        return None


# -- the work of each kind of stage but the measures' ------------------------------------------


def _prepared(lab: Lab, stage: Stage) -> Result:
    """Train or generate what an attack's stamp needs."""
    attack, images = stage.method, stage.setting.images
    rng = derive(stage.cell.seed, "prepare", type(attack).__name__)
    state = prepared(attack, images, rng=rng)
    figures = {k: float(v) for k, v in state.items() if k.startswith("report.")}
    return Result(state, metrics={k.removeprefix("report."): v for k, v in figures.items()})


def _trained(lab: Lab, stage: Stage) -> Result:
    """Train the clean model, or poison the training set and train the victim."""
    images, place, seed = stage.setting.images, stage.setting.place, stage.cell.seed
    before = stage.parent("prepared")
    state = lab.result(before).tensors if before else {}
    outcome = stage.method(
        stage.setting.build(seed).to(place),
        images.train,
        rng=torch.Generator().manual_seed(seed),
        state={name: tensor.to(place) for name, tensor in state.items()},
    )
    result = Result.of(outcome)
    result.metrics |= {"c_acc": clean_accuracy(outcome.model, images.test)}
    if stage.kind == "backdoored":
        state = state | under(outcome.tensors, LEARNT)
        trigger = Trigger(stage.method, {name: t.to(place) for name, t in state.items()})
        stamped = triggered(images.test, trigger, trigger.target)
        result.metrics["asr"] = attack_success_rate(outcome.model, stamped)
    return result


def read_model(lab: Lab, stage: Stage) -> Result:
    """Take in a model that was made elsewhere."""
    model = stage.setting.build(stage.cell.seed)
    file = need(stage.file, f"expected a file of {stage.name}, got none")
    model.load_state_dict(weights_of(file, model))
    model.to(stage.setting.place).eval()
    metrics = {"c_acc": clean_accuracy(model, stage.setting.images.test)}
    if stage.kind != "clean":
        metrics["asr"] = attack_success_rate(model, lab.stamped_test(stage))
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return Result(weights, {"checkpoint": stage.given["checkpoint"]}, metrics)


def _inverted(lab: Lab, stage: Stage) -> Result:
    """Compute what several settings of one defense share, such as an inverted trigger."""
    model = lab.model(stage.parents[0])
    rng = derive(stage.cell.seed, "prepare")  # not the defense's name: several share this stage
    cost, held = Cost(), stage.setting.held(stage.cell.seed)
    with measuring(model, cost):
        state = stage.method.prepare(model, held.tune, rng=rng)
    return Result(state, metrics={f"cost_{k}": float(v) for k, v in vars(cost).items()})


def _purified(lab: Lab, stage: Stage) -> Result:
    """Run a defense; it is handed what it names, and only an oracle may name the attacker's."""
    victim, defense, setting = stage.parents[0], stage.method, stage.setting
    test, held = setting.images.test, setting.held(stage.cell.seed)
    stamped = lab.stamped_test(stage) if stage.origin("backdoored") else None
    offered: dict[str, Any] = {"validation": held.validation}
    if inverted := stage.parent("inverted"):
        tensors = lab.result(inverted).tensors
        offered["state"] = {name: t.to(setting.place) for name, t in tensors.items()}
    anew = defense.sees == "training"
    if anew:  # it has no clean images, and starts from an untrained network
        offered = {"build": setting.build}
    if defense.oracle and stamped is not None:
        offered["trigger"] = lab.trigger(stage)
        offered["score"] = lambda model: evaluate(model, test, stamped)
    named = inspect.signature(defense.run).parameters
    outcome = defense(
        lab.model(victim),
        lab.training_set(stage) if anew else held.tune,
        rng=derive(stage.cell.seed, "defense", type(defense).__name__),
        **{name: value for name, value in offered.items() if name in named},
    )
    result = Result.of(outcome)
    if stamped is not None:
        result.metrics |= evaluate(outcome.model, test, stamped)
    else:
        result.metrics["c_acc"] = clean_accuracy(outcome.model, test)
    return result


WORK: dict[str, Callable[[Lab, Stage], Result]] = {
    "prepared": _prepared,
    "clean": _trained,
    "backdoored": _trained,
    "inverted": _inverted,
    "purified": _purified,
}


def _tags(stage: Stage) -> dict[str, str]:
    cell = stage.cell
    tags = {"kind": "stage", "stage": stage.kind, "key": stage.key, "seed": str(cell.seed)}
    tags |= {"attack": cell.attack, "defense": cell.defense}
    if cell.variant:
        tags["variant"] = str(cell.variant)
    if stage.parents:
        tags["parent"] = " ".join(parent.key for parent in stage.parents)
    return tags
