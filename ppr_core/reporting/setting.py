"""How a study's setting differs from the paper's, which limits the grade of its evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ppr_core.attacks import ATTACKS
from ppr_core.config import Settings
from ppr_core.data import DATASETS
from ppr_core.defenses import DEFENSES, Defense, Pam
from ppr_core.lab.graph import CLEAN, NO_ATTACK, NO_DEFENSE
from ppr_core.lab.measures import MEASURES
from ppr_core.lab.plan import Plan
from ppr_core.models import MODELS
from ppr_core.reactivation.retuning import PAPER_COUNTS

LEVELS = PAPER, SMALLER, OTHER = "paper", "smaller", "other"  # see `setting_columns`
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
# What makes a row of the paper's another than its label's own method with the defaults.
VARIANTS = {"ssba": {"variant": "stegastamp"}}
CHOSEN = {"anp_oracle": {"method": "anp", "select": "oracle_asr"}}
# Clean images that the defender tunes on and selects settings with, by data set. The paper does not
# give them: 5 % of the training set, as BackdoorBench's configurations have, and 1 % more.
RESERVES = {"tiny_imagenet": (5000, 1000)}
RESERVE = (2500, 500)
ASKED = ("query", "query_ep", "query_alone", "path", "connection")  # the paper's, beside RA
# Not of size or budget: QRA has one budget of images and epochs, whatever it is asked of.
PROTOCOL = ("drawn images", "model ", "poison rate ", "attack ", "RA ", "query")
DEFENSE = ": other "
FIGURES = (
    *("width", "train_images", "epochs", "drawn", "ra_share", "ra_epochs", "ra_lr"),
    "measure_scale",
)


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
            width or budget), or "other". It is that of the model and of RA (see `used`).
        scale: what differs, in words; empty for the paper's very setting.
        measure_scale: what differs of QRA and of the paths, each part led by the measure's label.
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
    about = {"level": level_of(parts), "scale": "; ".join(parts)}
    return {**given, **about, "measure_scale": "; ".join(_measured(plan, attack))}


def used(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return cells with the level and the scale of those of their figures that are used.

    A model and its RA may be in the paper's setting where QRA or the path is not.

    Args:
        rows: with the columns of `setting_columns`.
        columns: the figures used.
    """
    labels = [m for m in ASKED if {c.name for c in MEASURES[m].columns} & {*columns}]
    if not labels or "measure_scale" not in rows:
        return rows
    begin = tuple(f"{label} " for label in labels)
    scales, levels = [], []
    columns = ("scale", "level", "measure_scale")
    for scale, level, told in rows[[*columns]].fillna("").itertuples(index=False):
        own = [part for part in told.split("; ") if part.startswith(begin)]
        scales.append("; ".join(part for part in (scale, *own) if part))
        levels.append(max(level, level_of(own), key=LEVELS.index))
    return rows.assign(scale=scales, level=levels)


def victim_scale(scale: str) -> str:
    """Return the part of a scale that a cell shares with its victim: all but its defense's."""
    return "; ".join(part for part in scale.split("; ") if DEFENSE not in part)


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
    if name != DRAWN and (count := getattr(plan.setting.dataset, "test", None)):
        found.append(f"{count:,} test images")
    if model in MODELS:  # another one is a departure by its name
        found += _differing("", plan.setting.model, MODELS[model]().flat())
    short = {"epochs": 10, "lr": 0.001} if name in PRETRAINED else {}
    default = type(method).model_fields["training"].default  # of the class: others may be required
    return found + _differing("training ", method.training, default.flat() | short)


def _protocol(plan: Plan, attack: str) -> list[str]:
    """Return where attack, rate, architecture or RA are not those that the paper has at any scale.

    The attack is compared with what its label names, whatever method stands under it.
    """
    name, model = plan.study.dataset["name"], plan.study.model["name"]
    found = []
    if model not in ARCHITECTURES.get(name, ARCHITECTURES["cifar10"]):
        found.append(f"model {model}")
    if attack == NO_ATTACK:
        return found
    method, retuning = plan.attacks[attack], plan.retuning(attack)
    rates = (0.05,) if name in PRETRAINED else RATES
    if method.poison_rate not in rates:
        found.append(f"poison rate {method.poison_rate:g}")
    counts = COUNTS.get(name, PAPER_COUNTS)
    if attack not in counts:
        found.append(f"attack {attack}")
    elif type(method) is not ATTACKS[attack]:
        found.append(f"attack {attack} by {type(method).__name__}")
    else:
        paper = ATTACKS[attack]().flat() | VARIANTS.get(attack, {})
        told_above = ("poison_rate", "training")
        found += _differing(f"attack {attack} ", method, paper, told_above)
    paper = type(retuning)().flat() | {"poisoned": counts.get(attack, retuning.poisoned)}
    paper |= {"schedule.lr": 0.001} if name in PRETRAINED else {}
    return found + _differing("RA ", retuning, paper)


def _published(plan: Plan, label: str, rho: float | None) -> list[str]:
    """Return what of a defense, or of what it is given, is not its paper's, PAM's rho apart.

    It is compared with what its label names, whatever method stands under it.
    """
    method = _defense(plan, label, rho)
    if method is None:
        return []
    study, groups = plan.study, []
    to_select = round(study.validation * study.reserve)
    held = (study.reserve - to_select, to_select)
    if held != (paper_held := RESERVES.get(study.dataset["name"], RESERVE)):
        groups.append(f"reserve {held[0]} + {held[1]} ({paper_held[0]} + {paper_held[1]})")
    chosen = {"method": label} | CHOSEN.get(label, {})
    cls = DEFENSES.get(chosen.pop("method"))
    if cls is None and type(method).__module__.startswith("ppr_core."):
        cls = type(method)
    if cls is not None and type(method) is not cls:
        groups.append(f"method {type(method).__name__}")
    elif cls is not None:
        paper = cls().flat() | chosen
        paper |= FINER.get(label, {}) if study.dataset["name"] in PRETRAINED else {}
        but = ("rho",) if isinstance(method, Pam) else ()
        groups += [part.split(" ")[0].split(".")[0] for part in _differing("", method, paper, but)]
    return [f"{label}{DEFENSE}{', '.join(dict.fromkeys(groups))}"] if groups else []


def _measured(plan: Plan, attack: str) -> list[str]:
    """Return where QRA or the paths are not taken as in the paper."""
    found = []
    for label in ASKED:
        method = plan.measures.get(label, {}).get(attack)
        if method is None:
            continue
        cls = MEASURES[label]
        if type(method) is not cls:
            found.append(f"{label} by {type(method).__name__}")
        else:
            found += _differing(f"{label} ", method, cls.against(attack, cls.fixed).flat())
    return found


def _differing(
    head: str, own: Settings, paper: Mapping[str, Any], but: Sequence[str] = ()
) -> list[str]:
    """Return "head key own (paper)" for every setting that differs, but for some groups."""
    values = own.flat()
    keys = dict.fromkeys([*paper, *values])
    return [
        f"{head}{key} {values.get(key)} ({paper.get(key)})"
        for key in keys
        if values.get(key) != paper.get(key) and key.split(".")[0] not in but
    ]


def _defense(plan: Plan, label: str, rho: float | None) -> Defense | None:
    if label in ("", NO_DEFENSE, CLEAN):
        return None
    for (named, _), method in plan.defenses.items():
        if named == label and (not isinstance(method, Pam) or rho in (None, method.rho)):
            return method
    return None
