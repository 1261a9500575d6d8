"""The standard tracks: what all rows of one share, and whether a submission is a row of it."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

from ppr_core.config import digest
from ppr_core.errors import DataError, need
from ppr_core.lab.graph import NO_ATTACK, NO_DEFENSE, identity
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting.submissions import Submission
from ppr_core.weights import sha256

MEASURE = "battery"
CODE = ("version", "code", "class")  # of a method's identity: what its settings do not say

Standing = Literal["row", "own track", "older"]


def alone(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a track's settings without what its rows do not share: EP is its only defense."""
    exact = {"ep": (values.get("defenses") or {}).get("ep", {})}
    return {**values, "defenses": exact, "rho_grid": [], "notebooks": []}


@cache
def shipped(name: str) -> Plan | None:
    """Return a standard track, one of params/judge_*.yaml; None where there is none so called."""
    files = {path.stem: path for path in (ROOT / "params").glob("judge_*.yaml")}
    if name not in files:
        return None
    return Plan(Study(**alone(Study.load(files[name]).model_dump(exclude_unset=True))))


def conditions(plan: Plan, attack: str) -> dict[str, Any]:
    """Return what all rows of an attack on a track share, whatever the defense and the seeds.

    Args:
        plan: of the track.
        attack: its label.
    """
    study, setting = plan.study, plan.setting
    made = {
        label: sha256(file)
        for (label, defense), file in plan.made.items()
        if defense == NO_DEFENSE and label in (attack, NO_ATTACK)
    }
    found = {
        "dataset": identity(setting.dataset),
        "model": identity(setting.model),
        "precision": study.precision,
        "reserve": study.reserve,
        "validation": study.validation,
        "clean": identity(plan.clean),
        "attack": identity(plan.attacks[attack]),
        "ep": identity(plan.defenses[plan.exact, None]) if plan.exact else None,
        MEASURE: identity(plan.measures[MEASURE][attack]) if MEASURE in plan.measures else None,
        "made_elsewhere": made,
    }
    return json.loads(json.dumps(found))


def differences(own: Any, track: Any, path: str = "") -> Iterator[tuple[str, str, bool]]:
    """Yield where conditions differ: dotted name, a sentence, whether only the code is another."""
    if isinstance(own, dict) and isinstance(track, dict):
        for key in sorted({*own, *track}):
            place = path if key == "settings" else f"{path}.{key}".lstrip(".")
            if key in own and key in track:
                yield from differences(own[key], track[key], place)
            else:
                yield place, f"{place} is known to one of both alone", path != "made_elsewhere"
    elif own != track:
        code = path.rpartition(".")[2] in CODE
        yield path, f"{path} is {own} (the track has {track})", code


def changed(plan: Plan, attack: str, standard: Plan | None) -> str:
    """Say in which settings a plan is not the track that it is called by; "" where it is."""
    if standard is None:
        return ""
    if attack not in standard.attacks:
        return f"{attack} is no attack of it"
    found = differences(conditions(plan, attack), conditions(standard, attack))
    return "; ".join(text for _, text, _ in found)


def name_of(plan: Plan, attack: str, standard: Plan | None) -> str:
    """Return the name of the track that a plan's rows are of: another one if it is changed."""
    name = plan.study.name
    if not changed(plan, attack, standard):
        return name
    return f"{name}-changed-{digest(conditions(plan, attack))[:8]}"


def standing(one: Submission) -> Standing:
    """Say whether a submission may stand beside the others of its track.

    Returns:
        "row" if it was computed with the track's settings of today, "older" if with an earlier
        version of the code, "own track" if its track is none of the standard ones.

    Raises:
        DataError: its settings are not those of its track.
    """
    track = shipped(one.track)
    need(
        not one.conditions or one.battery == digest(one.conditions.get(MEASURE)),
        "expected the digest of the battery that it names, got another one",
        DataError,
    )
    if track is None:
        return "own track"
    if not one.conditions:
        return "older"
    need(
        one.attack in track.attacks,
        f"expected an attack of the track {one.track} ({', '.join(track.attacks)}), got "
        f"{one.attack}",
        DataError,
    )
    found = list(differences(one.conditions, conditions(track, one.attack)))
    if any(code for _, _, code in found):
        return "older"
    told = "; ".join(text for _, text, _ in found)
    need(
        not found,
        f"expected the settings of the track {one.track}, got others: {told}; judge it without "
        "them, or as a track of another name",
        DataError,
    )
    return "row"
