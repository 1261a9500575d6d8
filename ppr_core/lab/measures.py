"""What a study measures of a model beside RA: QRA, its controls, optimised triggers, LMC."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from ppr_core import connectivity
from ppr_core.attacks import Trigger
from ppr_core.config import derive
from ppr_core.data.images import ImageSet
from ppr_core.lab.plan import Stage
from ppr_core.lab.store import Result
from ppr_core.models.base import Classifier
from ppr_core.reactivation.controls import sign_noise
from ppr_core.reactivation.perturbation import (
    Perturb,
    aimed,
    along,
    frozen,
    success_rates,
    sweep,
    transfer,
)
from ppr_core.reactivation.query import generator_of
from ppr_core.reactivation.triggers import universal
from ppr_core.runtime import Record
from ppr_core.weights import snapshot


class Reader(Protocol):
    """What a measure reads: the results of the stages that it depends on (`study.Lab`)."""

    def result(self, stage: Stage) -> Result:
        """Return a stage's result."""

    def model(self, stage: Stage) -> Classifier:
        """Return the classifier that a stage left behind."""

    def trigger(self, stage: Stage) -> Trigger:
        """Return the attacker's trigger."""

    def stamped_test(self, stage: Stage) -> ImageSet:
        """Return the triggered test images."""

    def poisons(self, stage: Stage) -> ImageSet:
        """Return the attacker's stamped training images."""


def _query(lab: Reader, stage: Stage) -> Result:
    """QRA: train the generator against one model, then sweep the budget."""
    plan, parents = stage.plan, stage.parents
    model, relearned, surrogate = (lab.model(parent) for parent in parents[:3])
    query = plan.queries[stage.attack]
    if stage.kind == "query_alone":
        query = query.replace(form="paper", alpha=0.0)
    outcome = query(
        model,
        plan.images.train,
        rng=derive(stage.seed, "query"),
        relearned=relearned,
        surrogate=surrogate,
        triggered=_triggered(lab, stage),
    )
    perturb = along(generator_of(outcome.tensors))
    budgets = sorted({0.0, *plan.study.budgets, query.eps})
    rows = sweep({"": model}, plan.images.test, lab.stamped_test(stage), perturb, budgets)
    at = next(row for row in rows if row["eps"] == query.eps)
    metrics = {"c_asr": at["c_asr"], "p_asr": at["p_asr"], "asr": rows[0]["p_asr"]}
    label = "qra" if stage.kind == "query" else "qra, no surrogate"
    return Result(
        {name: tensor for name, tensor in outcome.tensors.items() if name != "model"},
        {**outcome.info, "surrogate": parents[2].name, "rows": _labelled(rows, label)},
        metrics,
        list(outcome.history),
    )


def _triggered(lab: Reader, stage: Stage) -> ImageSet:
    """Return triggered training images outside the target class, with their true labels.

    Differs from the authors' code: a clean-label attack has no such training poison, and they take
    test images; here it is training images with the test-time trigger.
    """
    plan, trigger = stage.plan, lab.trigger(stage)
    train = plan.images.train
    if trigger.attack.clean_label:
        others = train.subset(train.labels != trigger.target)
        return others.with_images(trigger(others.images))
    poisoned = trigger.attack.poison(train, seed=stage.seed, state=trigger.state)
    kept = poisoned.original != trigger.target
    return poisoned.data.subset(poisoned.indices[kept]).with_labels(poisoned.original[kept])


def _transfer(lab: Reader, stage: Stage) -> Result:
    """Every generator against every other purified model."""
    purified = [parent for parent in stage.parents if parent.kind == "purified"]
    queries = [parent for parent in stage.parents if parent.kind == "query"]
    models = {parent.defense: lab.model(parent) for parent in purified}
    made: dict[str, Perturb] = {
        parent.defense: along(_generator(lab, parent)) for parent in queries
    }
    eps = stage.plan.queries[stage.attack].eps
    with torch.no_grad():
        rates = transfer(models, made, lab.stamped_test(stage), eps)
    rows = [
        {"source": source, "target": target, "p_asr": rate}
        for source, found in rates.items()
        for target, rate in found.items()
    ]
    mean = sum(row["p_asr"] for row in rows) / max(1, len(rows))
    return Result(info={"rows": rows}, metrics={"transfer_p_asr": mean})


def _generator(lab: Reader, stage: Stage) -> torch.nn.Module:
    return generator_of(lab.result(stage).tensors).to(stage.plan.device)


def _controls(lab: Reader, stage: Stage) -> Result:
    """Sign noise, a universal perturbation, and PGD: what any model suffers at these budgets."""
    plan, settings = stage.plan, stage.plan.measures["controls"]
    model, target = lab.model(stage.parents[0]), plan.attacks[stage.attack].target
    rng = derive(stage.seed, "controls")
    train = aimed(plan.images.train, target)
    found = settings.universal(model, train, rng=rng)
    perturbations = {
        "sign noise": sign_noise(derive(stage.seed, "controls", "noise")),
        "universal": universal(found.tensors),
        "pgd": settings.pgd.on(model, target),
    }
    test, stamped = plan.images.test, lab.stamped_test(stage)
    test, stamped = test.spread(settings.images), stamped.spread(settings.images)
    rows: list[Record] = []
    with frozen(model):
        for name, perturb in perturbations.items():
            budgets = sorted({0.0, *plan.study.budgets})
            rows += _labelled(sweep({"": model}, test, stamped, perturb, budgets), name)
    return Result({"direction": found.tensors["direction"]}, {"rows": rows})


def _triggers(lab: Reader, stage: Stage) -> Result:
    """Optimised triggers: white-box, query-only, and from the other purified models."""
    plan, settings = stage.plan, stage.plan.measures["triggers"]
    model, stamped, poisons = (
        lab.model(stage.parents[0]),
        lab.stamped_test(stage),
        lab.poisons(stage),
    )
    others = [lab.model(parent) for parent in stage.parents[2:]]
    rng = derive(stage.seed, "triggers")
    outcomes = {
        "trigger, white-box": settings.white_box(model, poisons, rng=rng),
        "trigger, query-only": settings.queries(model, poisons, rng=rng),
    }
    if others:
        outcomes["trigger, transfer"] = settings.transfer(
            model, poisons, rng=rng, surrogates=others
        )
    eps = {
        "trigger, white-box": settings.white_box.eps,
        "trigger, query-only": settings.queries.eps,
        "trigger, transfer": settings.transfer.eps,
    }
    clean = aimed(plan.images.test, plan.attacks[stage.attack].target)
    rows, tensors = [], {}
    for name, outcome in outcomes.items():
        perturb = universal(outcome.tensors)
        rates = [
            success_rates({"": model}, part, perturb, [eps[name]]) for part in (clean, stamped)
        ]
        c_asr, p_asr = (rate[""][0] for rate in rates)
        rows.append({"perturbation": name, "eps": eps[name], "c_asr": c_asr, "p_asr": p_asr})
        tensors[name] = outcome.tensors["direction"]
    return Result(tensors, {"rows": rows}, {"p_asr": rows[0]["p_asr"]})


def _path(lab: Reader, stage: Stage) -> Result:
    """LMC between two models, once for every way to have the batch-norm statistics."""
    plan, line = stage.plan, stage.plan.measures["path"]
    start, end = ends(lab, *stage.parents)
    rows, metrics = [], {}
    for index, batch_norm in enumerate(line.batch_norm):
        path = connectivity.path(
            end,
            snapshot(start),
            snapshot(end),
            test=plan.images.test,
            stamped=lab.stamped_test(stage),
            points=line.points,
            batch_norm=batch_norm,
            tune=plan.held(stage.seed).tune,
        )
        rows += path.rows()
        prefix = f"{batch_norm}_" if index else ""
        found = path.summary(line.asleep).items()
        metrics |= {prefix + name: value for name, value in found if value == value}
    return Result(info={"rows": rows}, metrics=metrics)


def ends(lab: Reader, *stages: Stage) -> list[Classifier]:
    """Return the models of a path's two ends, with the layers that the other one has."""
    models = [lab.model(stage) for stage in stages]
    for made, other in zip(stages, reversed(models), strict=True):
        plan = made.plan
        if made.kind == "purified" and made.defense in plan.defenses:
            plan.defenses[made.defense].extend(other)
            other.to(plan.device).eval()
    return models


def _labelled(rows: Sequence[Record], perturbation: str) -> list[dict[str, Any]]:
    return [
        {"perturbation": perturbation, **{k: v for k, v in row.items() if k != "model"}}
        for row in rows
    ]


WORK: dict[str, Callable[[Reader, Stage], Result]] = {
    "query": _query,
    "query_alone": _query,
    "transfer": _transfer,
    "controls": _controls,
    "triggers": _triggers,
    "path": _path,
    "connection": _path,
}
