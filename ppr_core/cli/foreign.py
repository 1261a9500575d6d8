"""Models and triggers made elsewhere, as flags name them: for evaluate, scan and judge."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppr_core.errors import CheckpointError, ConfigError, DataError, need

if TYPE_CHECKING:  # late, so that --help imports neither torch nor mlflow
    from ppr_core.checkpoints import Head
    from ppr_core.lab.plan import Plan

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
OWN = {  # what the attack of a trigger made elsewhere is called in tables, and its class
    "picture": "ppr_core.attacks.foreign:PictureTrigger",
    "function": "ppr_core.attacks.foreign:FunctionTrigger",
    "pairs": "ppr_core.attacks.replayed:PairTrigger",
    "stored": "ppr_core.bench:BenchTrigger",
}

REPLAYED = (OWN["pairs"], OWN["stored"])
# Flags that only some triggers know; beside others they are refused.
FLAGS = {"at": ("picture",), "alpha": ("picture",), "mask": ("picture",), "images": ("stored",)}
SERVED = {
    "picture": "a picture as --trigger",
    "stored": "the stored images of an attack_result.pt, without --attack and --trigger",
}


def add_trigger(parser: argparse.ArgumentParser) -> None:
    """Let a command name the trigger that a victim knows."""
    text = "picture, file.py:function, or two folders of pairs: clean and triggered images"
    parser.add_argument("--trigger", nargs="+", metavar="PATH", help=text)
    parser.add_argument("--at", metavar="ROW,COLUMN", help="upper left corner of a picture")
    parser.add_argument("--alpha", type=float, help="share of a picture in each pixel")
    parser.add_argument("--mask", metavar="FILE", help="of a picture: white is the trigger")
    parser.add_argument("--images", metavar="FOLDER", help="of the images that a .pt file names")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Let a command name an architecture and its normalisation."""
    text = "architecture: registered, module:Class or file.py:Class (default: resnet18)"
    parser.add_argument("--model", help=text)
    text = "of what the architecture takes, by channel, such as 0.5,0.5,0.5"
    parser.add_argument("--mean", metavar="R,G,B", help=text)
    parser.add_argument("--std", metavar="R,G,B", help="its spread")


def need_weights(file: Path) -> None:
    """Raise CheckpointError where a file is none, or holds no weights that are finite numbers."""
    from ppr_core.bench import tensors_of
    from ppr_core.weights import need_finite

    need(file.is_file(), f"expected a file, got {file}", CheckpointError)
    found = tensors_of(file)
    need(found, f"expected tensors by name in {file}, got none", CheckpointError)
    need_finite(found, file)


def head_of(file: Path) -> "Head | None":
    """Return what a result file of BackdoorBench says of itself; None for any other."""
    from ppr_core.checkpoints import is_result, read_head

    return read_head(file) if is_result(file) else None


def attack_of(arguments: argparse.Namespace, head: "Head | None") -> tuple[str, dict[str, Any]]:
    """Return what the attack is called, and its settings; refuse flags of other triggers."""
    label, settings = _trigger(arguments, head)
    kind = label if settings.get("method") == OWN.get(label) else ""
    for flag, kinds in FLAGS.items():
        need(
            getattr(arguments, flag) is None or kind in kinds,
            f"expected --{flag} with {SERVED[kinds[0]]}, got it beside "
            f"{SERVED.get(kind, f'the trigger {label!r}')}; leave it out",
        )
    return label, settings


def _trigger(arguments: argparse.Namespace, head: "Head | None") -> tuple[str, dict[str, Any]]:
    """Return what the attack is called, and its settings."""
    paths, name = arguments.trigger or [], arguments.attack
    need(
        not (paths and name),
        f"expected --attack or --trigger, got both ({name}, {' '.join(paths)})",
    )
    if name:
        from ppr_core.cli.study import own_label

        return (own_label(name), {"method": name}) if ":" in name else (name, {})
    if not paths:
        return "stored", _stored(arguments, head)
    need(len(paths) <= 2, f"expected one trigger, or two folders, got {len(paths)} paths")
    if len(paths) == 2:
        return "pairs", {"method": OWN["pairs"], "clean": paths[0], "triggered": paths[1]}
    (path,) = paths
    if ":" in path:
        return "function", {"method": OWN["function"], "path": path}
    need(
        Path(path).suffix.lower() in PICTURES,
        f"expected a picture ({' '.join(PICTURES)}), file.py:function or two folders as --trigger, "
        f"got {path}",
    )
    need(Path(path).is_file(), f"expected a picture at {path}, got no file", DataError)
    settings = {"method": OWN["picture"], "path": path, "mask": arguments.mask}
    settings["at"] = _numbers(arguments.at, int, "--at") if arguments.at else None
    settings["alpha"] = arguments.alpha
    return "picture", {key: value for key, value in settings.items() if value is not None}


def _stored(arguments: argparse.Namespace, head: "Head | None") -> dict[str, Any]:
    """Return the settings of the trigger that a result file tells of."""
    head = need(
        head,
        "expected --attack NAME or --trigger PATH (a picture, file.py:function, or two folders of "
        "pairs), got neither, and no attack_result.pt that holds triggered images",
    )
    stored = need(
        head.stored("test", arguments.images),
        f"expected stored triggered images in {head.path}, got a model alone; give --trigger, or "
        "the attack_result.pt as --backdoored",
        DataError,
    )
    settings = {"method": OWN["stored"], "path": str(head.path), "target": int(stored.labels[0])}
    return settings | ({"images": arguments.images} if arguments.images else {})


def stored_share(plan: "Plan", label: str, *, needed: bool) -> float:
    """Return the share of the training images whose triggered version is stored."""
    from ppr_core.lab.arrivals import known_trigger

    trigger, train = known_trigger(plan, label), plan.images.train
    known = trigger.attack.stampable(train, state=trigger.state)
    need(
        len(known) or not needed,
        "expected triggered versions of training images among the stored ones, for RA draws its "
        "poisons from them, got none; add such pairs, or give the trigger itself",
        DataError,
    )
    return len(known) / len(train)


def as_given(spec: dict[str, Any], arguments: argparse.Namespace, file: str) -> dict[str, Any]:
    """Return an architecture's settings, normalised as flags say, or as a file of weights does."""
    stats = (arguments.mean, arguments.std)
    return normalised(spec, *(stats if any(stats) else file_stats(file)))


def file_stats(file: str) -> tuple[str | None, str | None]:
    """Return mean and spread as flags give them, where a file of weights holds them."""
    from ppr_core.bench import tensors_of
    from ppr_core.weights import stats_of

    try:
        found = stats_of(tensors_of(Path(file)))
    except CheckpointError:  # what is wrong with it is said where it is read
        found = None
    if found is None:
        return None, None
    mean, std = (",".join(map(str, part)) for part in found)
    print(f"model     normalised by what {file} holds: mean {mean}, std {std}")
    return mean, std


def normalised(spec: dict[str, Any], mean: str | None, std: str | None) -> dict[str, Any]:
    """Return an architecture's settings with another normalisation."""
    from ppr_core.config import from_registry
    from ppr_core.models import MODELS

    if not (mean or std):
        return spec
    given = {"mean": mean, "std": std}
    stats = {
        name: _numbers(need(text, "expected both --mean and --std, got one"), float, f"--{name}")
        for name, text in given.items()
    }
    made = from_registry(MODELS, spec, "model")
    if {"mean", "std"} <= set(type(made).model_fields):
        return spec | stats
    return {"name": "ppr_core.models.own:Normalised", "model": spec, **stats}


def _numbers(text: str, kind: type, flag: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"expected numbers with commas for {flag}, got {text!r}") from None
