"""Models made elsewhere, looked at before anything is measured: do they do what they should?"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ppr_core.attacks import Trigger
from ppr_core.attacks.base import prepared
from ppr_core.attacks.replayed import Replayed
from ppr_core.behaviour import Tried, alternatives, need_behaviour, other_normalisation
from ppr_core.bench import tensors_of, weights_of
from ppr_core.errors import CheckpointError, ConfigError, need
from ppr_core.lab.checks import check
from ppr_core.lab.graph import CLEAN, NO_ATTACK, NO_DEFENSE
from ppr_core.lab.plan import Plan
from ppr_core.metrics import evaluate, triggered
from ppr_core.models.needs import need_channels
from ppr_core.reactivation.gates import Evidence, Gates
from ppr_core.runtime import Record, session

MEND = (
    "its stamp is trained, and one trained here is not the one that the victim knows; give its "
    "own images (--trigger CLEAN_FOLDER TRIGGERED_FOLDER, files of the same names)"
)


@dataclass(frozen=True)
class Arrivals:
    """What was seen of the files of a plan.

    Attributes:
        figures: model (victim, clean, or a defense's label) -> {"c_acc", "asr"}, percent.
        doubts: a sentence for each check that fails: such models get no verdict.
    """

    figures: Mapping[str, Record]
    doubts: list[str]


def need_known_trigger(plan: Plan) -> None:
    """Raise ConfigError where the trigger of a victim made elsewhere would be another one here."""
    for label, attack in plan.attacks.items():
        made = (label, NO_DEFENSE) in plan.made
        known = not (attack.trains_stamp or attack.learns_trigger)
        need(known or not made, f"expected a trigger that is known for {label}: {MEND}")


def examine(
    plan: Plan,
    attack: str,
    *,
    c_acc: float | None = None,
    asr: float | None = None,
    is_victim: bool = True,
    gates: Gates | None = None,
) -> Arrivals:
    """Measure C-Acc and ASR of the models made elsewhere, and check them; nothing is stored.

    Args:
        plan: with files of one attack's models.
        attack: its label.
        c_acc: what the victim's maker reports, percent.
        asr: likewise.
        is_victim: whether the attack's own file is a backdoored model that still obeys.
        gates: thresholds of the checks.

    Raises:
        CheckpointError: the first model does not do what its maker reports; or a file that cannot
            be read, or does not fit.
        ConfigError: a trigger that is not known here.
        DataError: images that the trigger does not fit.
    """
    need_known_trigger(plan)
    check(plan)
    with session(precision=plan.study.precision), torch.no_grad():
        models = {_role(of): (file, _built(plan, file)) for of, file in plan.made.items()}
        trigger = known_trigger(plan, attack)
        test = plan.images.test
        stamped = triggered(
            trigger.attack.stampable(test, state=trigger.state), trigger, trigger.target
        )
        figures = {role: evaluate(model, test, stamped) for role, (_, model) in models.items()}
        file, victim = models["victim"]
        told = figures["victim"]
        _need_reported(plan, file, victim, told, c_acc, asr)
        doubts = [] if c_acc is not None else _chance(plan, file, victim, told)
        if not doubts and (sentence := other_normalisation(victim, test)):
            doubts = [sentence]
    evidence = Evidence(
        classes=test.num_classes,
        victim_c_acc=told["c_acc"],
        victim_asr=told["asr"] if is_victim else None,
        clean_c_acc=figures.get(CLEAN, {}).get("c_acc"),
    )
    rest = [found["c_acc"] for role, found in figures.items() if role not in ("victim", CLEAN)]
    found = [evidence.replace(c_acc=own) for own in rest] or [evidence]
    for one in found:
        doubts += [text for text in (gates or Gates())(one) if text not in doubts]
    return Arrivals(figures, doubts)


def known_trigger(plan: Plan, attack: str) -> Trigger:
    """Return the trigger of an attack with what files hold of it; nothing is trained.

    Raises:
        DataError: files that are missing, or that do not fit the images.
    """
    method = plan.attacks[attack]
    state: dict[str, Tensor] = {}
    if isinstance(method, Replayed):
        state = prepared(method, plan.images, rng=torch.Generator().manual_seed(0))
    return Trigger(method, {name: t.to(plan.device) for name, t in state.items()})


def _role(of: tuple[str, str]) -> str:
    attack, defense = of
    return (CLEAN if attack == NO_ATTACK else "victim") if defense == NO_DEFENSE else defense


def _built(plan: Plan, file: Path) -> nn.Module:
    model = plan.setting.build(seed=0)
    need_channels(model, plan.images.test.images)
    model.load_state_dict(weights_of(file, model))
    return model.to(plan.device).eval()


def _need_reported(
    plan: Plan,
    file: Path,
    model: nn.Module,
    found: Record,
    c_acc: float | None,
    asr: float | None,
) -> None:
    """Raise CheckpointError where a model does not do what its maker reports; say what would."""
    try:
        if c_acc is not None or asr is not None:
            wanted = found["c_acc"] if c_acc is None else c_acc
            need_behaviour(found, plan.images.test.num_classes, c_acc=wanted, asr=asr)
    except CheckpointError as error:
        raise CheckpointError(
            f"{file}: {error}{_hints(plan, file, model, found['c_acc'])}"
        ) from None


def _chance(plan: Plan, file: Path, model: nn.Module, found: Record) -> list[str]:
    """Say whether a model has hardly learnt its task, where nobody says what to expect."""
    try:
        need_behaviour({"c_acc": found["c_acc"]}, plan.images.test.num_classes)
    except CheckpointError as error:
        return [f"{file}: {error}{_hints(plan, file, model, found['c_acc'])}."]
    return []


def _hints(plan: Plan, file: Path, model: nn.Module, c_acc: float) -> str:
    """Say what the weights fit as well, and how well each does on the data."""
    hints: list[str] = []
    tried: list[Tried] = []
    with contextlib.suppress(ConfigError):
        tried = alternatives(tensors_of(file), plan.images.test, file)
    if len(tried) > 1 or (tried and tried[0].c_acc > c_acc):
        figures = ", ".join(f"{one.name}: {one.c_acc:.1f}" for one in tried)
        hints.append(f"names and shapes fit, with C-Acc here, {figures}")
    sentence = other_normalisation(model, plan.images.test)
    hints += [sentence.rstrip("?")] if sentence else []
    return "".join(f"; {hint}" for hint in hints)
