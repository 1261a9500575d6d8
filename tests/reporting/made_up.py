"""Made-up results for the tests of claims: one row a defense and seed, in the paper's setting."""

import pandas as pd

from ppr_core.reporting.claims import CLAIMS, judge
from ppr_core.reporting.evidence import BASELINES, Evidence
from ppr_core.reporting.setting import paper_rho

ROW = {
    "dataset": "cifar10",
    "model": "resnet18",
    "poison_rate": 0.05,
    "attack": "badnet",
    "seed": 0,
    "rho": None,
    "ra_poisons": 5,
    "o_c_acc": 93.0,
    "o_asr": 2.0,
    "p_c_acc": 93.0,
    "p_asr": 90.0,
    "status": "done",
    "level": "paper",
    "scale": "",
}
SPREAD = (-0.5, 0.0, 0.5)  # of three seeds about what a test gives
PAM = {"rho": 0.9, "p_asr": 3.0, "o_asr": 1.0, "o_c_acc": 91.0}
FROM_SCRATCH = "resnet18_imagenet from scratch"
IMAGENET = {"model": "resnet18_imagenet"}


def cells(*, at=None, seeds=1, **by_defense):
    """One row a defense and seed; the values given are its P-ASR, or a mapping of columns."""
    made = []
    for seed in range(seeds):
        move = 0 if seeds == 1 else SPREAD[seed]
        for name, value in by_defense.items():
            changes = value if isinstance(value, dict) else {"p_asr": value}
            own = {"o_asr": 99.0} if name == "none" else {}  # the backdoored model itself
            row = {**ROW, **own, **(at or {}), "defense": name, **changes, "seed": seed}
            for column in row:
                if column.startswith(("p_a", "o_", "q", "barrier")) and row[column] is not None:
                    row[column] = row[column] + move
            made.append(row)
    return pd.DataFrame(made)


def all_with(**columns):
    return dict.fromkeys(BASELINES, columns)


def of(**by_defense):
    return Evidence(cells(**by_defense))


def spanning(*studies):
    """The first of the studies is asked about; the others are further ones."""
    return Evidence(studies[0], further=pd.concat([pd.DataFrame(), *studies[1:]]))


def line(errors, who, start="backdoored", attack="badnet", ts=None):
    ts = ts or [index / (len(errors) - 1) for index in range(len(errors))]
    about = {"attack": attack, "seed": 0, "start": start, "batch_norm": "interpolate"}
    return [
        {**about, "defense": name, "t": t, "backdoor_error": error, "clean_error": 7.0}
        for name in who
        for t, error in zip(ts, errors, strict=True)
    ]


def along(*lines, rows=None):
    """Evidence of paths; cells of all that the paths belong to."""
    measured = cells(**(rows or {"ep": 3.0, "pam": PAM, **ALL}))
    return Evidence(measured, paths=pd.DataFrame([point for one in lines for point in one]))


def asked(*points, **by_defense):
    """Evidence of perturbations: (defense, perturbation, P-ASR, C-ASR) at the largest budget."""
    frame = pd.DataFrame(points, columns=["defense", "perturbation", "p_asr", "c_asr"])
    frame = frame.assign(attack="badnet", seed=0, scored="self")
    weaker = frame.assign(eps=0.0, p_asr=0.0, c_asr=0.0)
    frame = pd.concat([frame.assign(eps=16 / 255), weaker], ignore_index=True)
    return Evidence(cells(**(by_defense or ALL)), queries=frame)


def transferred(*pairs, **by_defense):
    """Evidence of transfers: (source, target, P-ASR)."""
    frame = pd.DataFrame(pairs, columns=["source", "target", "p_asr"])
    return Evidence(cells(**(by_defense or ALL)), transfers=frame.assign(attack="badnet", seed=0))


def retuned(*asr):
    frame = pd.DataFrame({"epoch": range(len(asr)), "asr": asr})
    both = [frame.assign(defense=name, attack="badnet", seed=0) for name in ("bti", "fst")]
    return Evidence(cells(**ALL), histories=pd.concat(both))


def grid(seeds=1, **columns):
    """Evidence of PAM at several rho; each column's values from the smallest to the largest."""
    made = pd.DataFrame(columns)
    rho = made.index / (len(made) - 1)
    row = {**ROW, "defense": "pam"}
    parts = []
    for seed in range(seeds):
        moved = made + (0 if seeds == 1 else SPREAD[seed])
        parts.append(pd.DataFrame([row] * len(made)).assign(rho=rho, seed=seed, **moved))
    return Evidence(pd.concat(parts, ignore_index=True))


def on_both(first, second=None, **at):
    """The same cells on CIFAR-100 and on Tiny-ImageNet, beside a study of CIFAR-10."""
    sets = (("cifar100", first), ("tiny_imagenet", second or first))
    made = [cells(at={"dataset": name, **IMAGENET, **at}, **rows) for name, rows in sets]
    return spanning(cells(**ALL), *made)


def at_rate(rate, rows, **at):
    return spanning(cells(**ALL), cells(at={"poison_rate": rate, **at}, **rows))


def everywhere(*by_setting, column="p_asr", **more):
    """Four studies: a second rate, a second model, a second data set."""
    changes = [{}, {"poison_rate": 0.01}, {"model": "resnet50"}]
    changes.append({"dataset": "cifar100", **IMAGENET})
    pairs = zip(changes, by_setting, strict=False)
    return spanning(*(cells(at=at, **all_with(**{column: value, **more})) for at, value in pairs))


def whole(settings, seeds=3, **rows):
    """Several seeds of the same cells in each setting, against all attacks of the paper's tables.

    PAM's rho of 0.9 becomes the paper's.
    """
    names = ("dataset", "model", "poison_rate")
    made = []
    for place in settings:
        few = place[0] != "cifar10" or place[2] == 0.01
        for attack in ("badnet", "blended", "ssba", "lc")[: 3 if few else 4]:
            rho = paper_rho(place[0], attack)
            own = {
                who: {**what, "rho": rho} if who == "pam" and what["rho"] == 0.9 else what
                for who, what in rows.items()
            }
            at = {**dict(zip(names, place, strict=True)), "attack": attack}
            made.append(cells(at=at, seeds=seeds, **own))
    return Evidence(pd.concat(made, ignore_index=True))


def attacks(**by_attack):
    """Cells of several attacks: attack -> {defense: columns}."""
    made = [cells(at={"attack": attack}, **rows) for attack, rows in by_attack.items()]
    return pd.concat(made, ignore_index=True)


ALL = dict.fromkeys(BASELINES, 90.0)


def verdict(number, evidence):
    return judge(CLAIMS[number - 1], evidence)
