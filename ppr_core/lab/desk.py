"""Computing a study's stages over a store: each once, then read back."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppr_core.attacks import Trigger
from ppr_core.config import derive
from ppr_core.data.images import ImageSet
from ppr_core.lab import measures as measures
from ppr_core.lab.plan import CLEAN, Stage
from ppr_core.lab.store import Result, Run, Store
from ppr_core.method import Cost, Outcome, measuring
from ppr_core.metrics import attack_success_rate, clean_accuracy, evaluate, triggered
from ppr_core.models.base import Classifier, check_same_shapes
from ppr_core.runtime import Record, session
from ppr_core.weights import read

CURVE_IMAGES = 500  # test images behind each point of a training curve
LOG_EVERY_S = 5.0  # epochs are logged in batches: a request each would slow short trainings


class Lab:
    """Computes stages over one store, and remembers what it has just read.

    Args:
        store: where results are looked up and kept.
        report: called after each epoch with (stage, records so far, epochs in all).

    Attributes:
        computing: seconds that the stages computed here have taken.
    """

    def __init__(
        self, store: Store, report: Callable[[Stage, list[Record], int], None] | None = None
    ) -> None:
        self.store = store
        self.report = report
        self.computing = 0.0
        self._read: dict[str, Result] = {}
        self._stamped: dict[str, ImageSet] = {}

    def cached(self, stage: Stage) -> bool:
        """Say whether the store holds this stage's result."""
        return stage.key in self._read or self.store.find(stage.key) is not None

    def result(self, stage: Stage) -> Result:
        """Return a stage's result: read if the store has it, computed and kept if not."""
        if stage.key not in self._read:
            run = self.store.find(stage.key)
            if run is None:
                for parent in stage.parents:
                    self.result(parent)
                with self.store.owned(stage.key):  # of two that want it, one computes it
                    run = self.store.find(stage.key) or self._compute(stage)
            if len(self._read) >= 64:  # a few hundred MB of weights at the most
                self._read.pop(next(iter(self._read)))
            self._read[stage.key] = self.store.load(run)
        return self._read[stage.key]

    def _compute(self, stage: Stage) -> Run:
        run_id = self.store.start(
            stage.plan.study.name,
            stage.name,
            tags=_tags(stage),
            params=stage.settings,
            dataset=stage.plan.described,
        )
        logged: set[float] = set()
        last = time.monotonic()

        def keep(history: list[Record]) -> None:
            nonlocal last
            self.store.log(run_id, history=[r for r in history if r["epoch"] not in logged])
            logged.update(record["epoch"] for record in history)
            last = time.monotonic()

        def report(name: str, history: list[Record], epochs: int) -> None:
            if name and time.monotonic() - last > LOG_EVERY_S:
                keep(history)
            if self.report:
                self.report(stage, history, epochs)

        clock = time.perf_counter()
        try:
            with session(
                precision=stage.plan.study.precision,
                deterministic=stage.plan.study.deterministic,
                checkpoint=self.store.scratch(stage.key),
                evaluate=self._evaluator(stage),
                report=report,
            ):
                result = WORK[stage.kind](self, stage)
            result.metrics["seconds"] = time.perf_counter() - clock
            self.computing += result.metrics["seconds"]
            self.store.log(run_id, metrics=result.metrics)
            keep(result.history)
            self.store.save(run_id, result)
        except KeyboardInterrupt:
            self.store.finish(run_id, "KILLED")
            raise
        except BaseException as error:
            self.store.log(run_id, tags={"error": f"{type(error).__name__}: {error}"[:4000]})
            self.store.finish(run_id, "FAILED")
            raise
        self.store.finish(run_id)
        self.store.drop_scratch(stage.key)
        return self.store.client.get_run(run_id)

    # -- what stages read --------------------------------------------------------------------

    def model(self, stage: Stage) -> Classifier:
        """Return the classifier that a stage left behind, in eval mode, on the study's device."""
        plan = stage.plan
        model = plan.model.build(plan.images.train.num_classes, seed=stage.seed)
        if stage.defense in plan.defenses:  # the clean model, retuned, has none
            plan.defenses[stage.defense].extend(model)
        weights = {
            name.removeprefix("model."): tensor
            for name, tensor in self.result(stage).tensors.items()
            if name.startswith("model.")
        }
        check_same_shapes(weights, model.state_dict())
        model.load_state_dict(weights)
        return model.to(plan.device).eval()

    def trigger(self, stage: Stage) -> Trigger:
        """Return the attacker's trigger for the attack that a stage belongs to."""
        victim = stage.plan.backdoored(stage.attack, stage.seed)
        state: dict[str, Tensor] = {}
        if prepared := victim.parent("prepared"):
            state |= self.result(prepared).tensors
        if self.cached(victim):
            learnt = self.result(victim).tensors.items()
            state |= {k.removeprefix("trigger."): t for k, t in learnt if k.startswith("trigger.")}
        state = {name: tensor.to(stage.plan.device) for name, tensor in state.items()}
        return Trigger(stage.plan.attacks[stage.attack], state)

    def stamped_test(self, stage: Stage) -> ImageSet:
        """Return the triggered test images of the attack that a stage belongs to."""
        victim = stage.plan.backdoored(stage.attack, stage.seed)
        if victim.key in self._stamped:
            return self._stamped[victim.key]
        trigger = self.trigger(stage)
        stamped = triggered(stage.plan.images.test, trigger, trigger.target)
        if self.cached(victim):  # before that, an attack may not have learnt its trigger yet
            if len(self._stamped) >= 4:
                self._stamped.pop(next(iter(self._stamped)))
            self._stamped[victim.key] = stamped
        return stamped

    def poisons(self, stage: Stage) -> ImageSet:
        """Return the attacker's stamped training images that RA draws from."""
        trigger, plan = self.trigger(stage), stage.plan
        poisoned = trigger.attack.poison(plan.images.train, seed=stage.seed, state=trigger.state)
        kept = poisoned.indices
        if not (trigger.attack.clean_label or plan.retuning[stage.attack].any_class):
            kept = kept[poisoned.original != trigger.target]
        return poisoned.data.subset(kept)

    def _evaluator(self, stage: Stage) -> Callable[[nn.Module], Record] | None:
        """Return what is measured each epoch; never anything while a defense runs."""
        if stage.kind in ("retuned", "clean_retuning"):
            test, stamped = stage.plan.images.test, self.stamped_test(stage)
            return lambda model: evaluate(model, test, stamped)
        if stage.kind in ("clean", "backdoored"):
            test = stage.plan.images.test.spread(CURVE_IMAGES)
            if stage.kind == "clean" or stage.plan.attacks[stage.attack].learns_trigger:
                return lambda model: {"c_acc": clean_accuracy(model, test)}
            stamped = self.stamped_test(stage).spread(CURVE_IMAGES)
            return lambda model: evaluate(model, test, stamped)
        return None


# -- the work of each kind of stage ------------------------------------------------------------


def _prepared(lab: Lab, stage: Stage) -> Result:
    """Train or generate what an attack's stamp needs, from training images only."""
    attack = stage.plan.attacks[stage.attack]
    rng = derive(stage.seed, "prepare", type(attack).__name__)
    state = attack.prepare(stage.plan.images.train, rng=rng)
    figures = {k: float(v) for k, v in state.items() if k.startswith("report.")}
    return Result(state, metrics={k.removeprefix("report."): v for k, v in figures.items()})


def _trained(lab: Lab, stage: Stage) -> Result:
    """Train the clean model, or poison the training set and train the victim."""
    if "checkpoint" in stage.settings:
        return _read(lab, stage)
    plan = stage.plan
    attack = plan.attacks[stage.attack] if stage.attack else plan.clean
    prepared = stage.parent("prepared")
    state = lab.result(prepared).tensors if prepared else {}
    model = plan.model.build(plan.images.train.num_classes, seed=stage.seed).to(plan.device)
    outcome = attack(
        model,
        plan.images.train,
        rng=torch.Generator().manual_seed(stage.seed),
        state={name: tensor.to(plan.device) for name, tensor in state.items()},
    )
    result = _as_result(outcome)
    result.metrics |= {"c_acc": clean_accuracy(outcome.model, plan.images.test)}
    if stage.attack:
        learnt = outcome.tensors.items()
        state |= {k.removeprefix("trigger."): t for k, t in learnt if k.startswith("trigger.")}
        trigger = Trigger(attack, {name: t.to(plan.device) for name, t in state.items()})
        stamped = triggered(plan.images.test, trigger, trigger.target)
        result.metrics["asr"] = attack_success_rate(outcome.model, stamped)
    return result


def _read(lab: Lab, stage: Stage) -> Result:
    """Take in a model that was made elsewhere."""
    plan = stage.plan
    names = [part for part in (stage.attack, stage.defense) if part]
    model = plan.model.build(plan.images.train.num_classes, seed=stage.seed)
    model.load_state_dict(read(plan.checkpoints["/".join(names) or CLEAN], model))
    model.to(plan.device).eval()
    metrics = {"c_acc": clean_accuracy(model, plan.images.test)}
    if stage.attack:
        metrics["asr"] = attack_success_rate(model, lab.stamped_test(stage))
    return Result(_weights(model), {"checkpoint": stage.settings["checkpoint"]}, metrics)


def _inverted(lab: Lab, stage: Stage) -> Result:
    """Compute what several settings of one defense share, such as an inverted trigger."""
    defense = stage.plan.defenses[stage.defense]
    model = lab.model(stage.parent("backdoored", "clean"))
    rng = derive(stage.seed, "prepare")  # not the defense's name: several share this stage
    cost = Cost()
    with measuring(model, cost):
        state = defense.prepare(model, stage.plan.held(stage.seed).tune, rng=rng)
    return Result(state, metrics=_cost(cost))


def _purified(lab: Lab, stage: Stage) -> Result:
    """Run a defense; it is handed what it names, and only an oracle may name the attacker's."""
    if "checkpoint" in stage.settings:
        return _read(lab, stage)
    plan, victim = stage.plan, stage.parent("backdoored", "clean")
    defense, held = plan.defenses[stage.defense], plan.held(stage.seed)
    inverted = stage.parent("inverted")
    offered: dict[str, Any] = {"validation": held.validation}
    if inverted:
        tensors = lab.result(inverted).tensors
        offered["state"] = {name: t.to(plan.device) for name, t in tensors.items()}
    if defense.oracle and stage.attack:
        stamped = lab.stamped_test(stage)
        offered["trigger"] = lab.trigger(stage)
        offered["score"] = lambda model: evaluate(model, plan.images.test, stamped)
    named = inspect.signature(defense.run).parameters
    outcome = defense(
        lab.model(victim),
        held.tune,
        rng=derive(stage.seed, "defense", type(defense).__name__),
        **{name: value for name, value in offered.items() if name in named},
    )
    result = _as_result(outcome)
    if stage.attack:
        result.metrics |= evaluate(outcome.model, plan.images.test, lab.stamped_test(stage))
    else:
        result.metrics["c_acc"] = clean_accuracy(outcome.model, plan.images.test)
    return result


def _retuned(lab: Lab, stage: Stage) -> Result:
    """Retune a purified (or the clean) model; its first record is the model before RA."""
    plan = stage.plan
    source = stage.parent("purified", "clean")
    model, test = lab.model(source), plan.images.test
    before = {name: lab.result(source).metrics.get(name) for name in ("c_acc", "asr")}
    if None in before.values():
        before = evaluate(model, test, lab.stamped_test(stage))
    retuning = plan.retuning[stage.attack]
    if stage.kind == "clean_retuning":
        retuning = retuning.replace(poisoned=0)
    outcome = retuning(
        model,
        plan.images.train,
        rng=derive(stage.seed, "retuning"),
        poisons=lab.poisons(stage),
    )
    result = _as_result(outcome)
    result.history.insert(0, {"epoch": 0, **before})
    last = result.history[-1]
    result.metrics |= {f"o_{name}": value for name, value in before.items()}
    result.metrics |= {f"p_{name}": last[name] for name in before}
    return result


WORK: dict[str, Callable[[Lab, Stage], Result]] = {
    "prepared": _prepared,
    "clean": _trained,
    "backdoored": _trained,
    "inverted": _inverted,
    "purified": _purified,
    "retuned": _retuned,
    "clean_retuning": _retuned,
    **measures.WORK,
}


def _as_result(outcome: Outcome) -> Result:
    tensors = {**outcome.tensors, **_weights(outcome.model)}
    return Result(tensors, outcome.info, _cost(outcome.cost), list(outcome.history))


def _cost(cost: Cost) -> dict[str, float]:
    return {f"cost_{name}": float(value) for name, value in vars(cost).items()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def _tags(stage: Stage) -> dict[str, str]:
    tags = {"kind": "stage", "stage": stage.kind, "key": stage.key, "seed": str(stage.seed)}
    tags |= {"attack": stage.attack, "defense": stage.defense}
    if stage.parents:
        tags["parent"] = " ".join(parent.key for parent in stage.parents)
    return {name: value for name, value in tags.items() if value}
