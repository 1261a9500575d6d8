"""How a study's setting differs from the paper's, which limits the grade of its evidence."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ppr_core.data import DATASETS
from ppr_core.defenses import Defense, Pam
from ppr_core.lab.graph import NO_ATTACK
from ppr_core.lab.plan import Plan
from ppr_core.models import MODELS
from ppr_core.reactivation.retuning import PAPER_COUNTS

PAPER, SMALLER, OTHER = "paper", "smaller", "other"  # levels, see `setting_columns`
DRAWN = "shapes"  # the data set that is drawn by code
PRETRAINED = ("cifar100", "tiny_imagenet")  # trained from ImageNet's weights, source: sec. B.1
RATES = (0.01, 0.05, 0.1)
UPSCALED = ("resnet18_imagenet",)
ARCHITECTURES = {
    "cifar10": ("resnet18", "resnet50", "densenet161"),
    "cifar100": UPSCALED,
    "tiny_imagenet": UPSCALED,
}
# RA's poisoned samples and PAM's rho. Source: Min et al. 2024, sec. B.2.
COUNTS = {"cifar10": PAPER_COUNTS} | {
    name: {"badnet": 25, "blended": 10, "ssba": 35} for name in PRETRAINED
}
RHO = {"badnet": 0.9, "lc": 0.9, "blended": 0.5, "ssba": 0.5}
RHO_PRETRAINED = 0.4
# Defenses on CIFAR-100 and Tiny-ImageNet, where they differ from the defaults. Source: sec. B.2.
FINER = {
    "ep": {"schedule.lr": 0.001},
    "ft_sam": {"rho": 0.5, "schedule.lr": 0.001},
    "fst": {"alpha": 0.001, "schedule.lr": 0.005},
    "bti": {"tuning.lr": 0.001},
    "pam": {"tuning.lr": 0.001},
}
PROTOCOL = ("drawn images", "model ", "poison rate ", "attack ", "RA ")  # not of size or budget
DEFENSE = ": other "
FIGURES = ("width", "train_images", "epochs", "drawn", "ra_share", "ra_epochs", "ra_lr")
CHOICES = ("rho", "select", "method")  # that make a row of its own, not another budget


def paper_rho(dataset: str, attack: str) -> float | None:
    """Return the rho that the paper gives PAM against one attack; None where it gives none."""
    return RHO_PRETRAINED if dataset in PRETRAINED else RHO.get(attack)


def setting_columns(
    plan: Plan, attack: str, defense: str = "", rho: float | None = None
) -> dict[str, Any]:
    """Return how the setting of one cell differs from the paper's.

    Args:
        plan: of the study.
        attack: label; "none" for rows of the never-poisoned model.
        defense: label; empty for the setting of attack and RA alone.
        rho: of PAM, which a study may have at several.

    Returns:
        width: channels of the classifier's first stage, where it has that setting.
        train_images: training images kept; None for all.
        epochs: of the training of the backdoored (or clean) model.
        ra_share, ra_epochs, ra_lr: of the retuning attack.
        drawn: whether the images are drawn by code.
        level: "paper" (its very setting), "smaller" (real images and its protocol, at a smaller
            width or budget), or "other".
        scale: what differs, in words; empty for the paper's very setting.
    """
    method = plan.clean if attack == NO_ATTACK else plan.attacks[attack]
    given = {
        "width": getattr(plan.setting.model, "width", None),
        "train_images": getattr(plan.setting.dataset, "train", None),
        "epochs": method.training.epochs,
        "drawn": isinstance(plan.setting.dataset, DATASETS[DRAWN]),
    }
    if attack in plan.attacks:
        retuning = plan.retuning(attack)
        schedule = retuning.schedule
        given |= {"ra_share": retuning.share, "ra_epochs": schedule.epochs, "ra_lr": schedule.lr}
    parts = [*_budget(plan, method), *_protocol(plan, attack), *_published(plan, defense, rho)]
    return {**given, "level": level_of(parts), "scale": "; ".join(parts)}


def with_settings(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """Return a study's cells with the columns of `setting_columns`, where they lack them."""
    if "level" in rows or not len(rows):
        return rows
    known = {*plan.attacks, NO_ATTACK}
    found = [
        setting_columns(plan, row["attack"], row["defense"], row["rho"])
        if row["attack"] in known
        else {}
        for _, row in rows.iterrows()
    ]
    settings = pd.DataFrame(found, rows.index)
    made = rows.drop(columns=settings.columns, errors="ignore").join(settings)
    made.attrs = rows.attrs  # pandas forgets them, and with them a user's own columns
    return made


def with_scale(rows: pd.DataFrame) -> pd.DataFrame:
    """Return cells with a level and a scale, those too that tell of none."""
    for column, default in (("level", OTHER), ("scale", "scale not recorded")):
        known = rows[column] if column in rows else pd.Series(None, rows.index, dtype=object)
        rows = rows.assign(**{column: known.astype(object).where(known.notna(), default)})
    return rows


def level_of(parts: Sequence[str]) -> str:
    """Return the level of a setting from what differs; what the protocol fixes makes it another."""
    if any(part.startswith(PROTOCOL) or DEFENSE in part for part in parts):
        return OTHER
    return SMALLER if parts else PAPER


def _budget(plan: Plan, method: Any) -> list[str]:
    """Return where images, architecture or training are fewer than the paper's."""
    name, model = plan.study.dataset["name"], plan.study.model["name"]
    found = []
    if name not in ARCHITECTURES:
        found.append("drawn images" if name == DRAWN else f"images of {name}")
    if count := getattr(plan.setting.dataset, "train", None):
        found.append(f"{count:,} training images")
    if model in MODELS:  # another one is a departure by its name
        own, paper = plan.setting.model.flat(), MODELS[model]().flat()
        found += [f"{key} {own[key]} ({paper[key]})" for key in paper if own[key] != paper[key]]
    short = {"epochs": 10, "lr": 0.001} if name in PRETRAINED else {}
    default = type(method).model_fields["training"].default  # of the class: others may be required
    own, paper = method.training.flat(), default.flat() | short
    found += [
        f"training {key} {own[key]} ({paper[key]})" for key in paper if own[key] != paper[key]
    ]
    return found


def _protocol(plan: Plan, attack: str) -> list[str]:
    """Return where rates, architecture or RA are not those that the paper has at any scale."""
    name, model = plan.study.dataset["name"], plan.study.model["name"]
    found = []
    if model not in ARCHITECTURES.get(name, ARCHITECTURES["cifar10"]):
        found.append(f"model {model}")
    if attack == NO_ATTACK:
        return found
    rate, retuning = plan.attacks[attack].poison_rate, plan.retuning(attack)
    rates = (0.05,) if name in PRETRAINED else RATES
    if rate not in rates:
        found.append(f"poison rate {rate:g}")
    counts = COUNTS.get(name, PAPER_COUNTS)
    if attack not in counts:
        found.append(f"attack {attack}")
    own = {**retuning.flat(), "poisoned": retuning.poisoned}
    paper = type(retuning)().flat() | {"poisoned": counts.get(attack, retuning.poisoned)}
    paper |= {"schedule.lr": 0.001} if name in PRETRAINED else {}
    return found + [f"RA {k} {own[k]} ({paper[k]})" for k in paper if own[k] != paper[k]]


def _published(plan: Plan, label: str, rho: float | None) -> list[str]:
    """Return which settings of a defense are not its paper's, its rho and selection apart."""
    method = _defense(plan, label, rho)
    if method is None or not type(method).__module__.startswith("ppr_core."):
        return []
    own, paper = method.flat(), type(method)().flat()
    if plan.study.dataset["name"] in PRETRAINED:
        paper |= FINER.get(label, {})
    changed = [k for k in paper if own.get(k) != paper[k] and k.split(".")[-1] not in CHOICES]
    if label == "ft_sam" and own.get("rho") != paper.get("rho"):
        changed.append("rho")
    groups = dict.fromkeys(key.split(".")[0] for key in changed)
    return [f"{label}{DEFENSE}{', '.join(groups)}"] if changed else []


def _defense(plan: Plan, label: str, rho: float | None) -> Defense | None:
    for (named, _), method in plan.defenses.items():
        if named == label and (not isinstance(method, Pam) or rho in (None, method.rho)):
            return method
    return None
