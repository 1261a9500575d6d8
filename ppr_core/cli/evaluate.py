"""`ppr evaluate`: measure models that were made elsewhere, once they do what they should."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppr_core.cli.study import compute, named, need_groups, override, read
from ppr_core.errors import CheckpointError, ConfigError, DataError, need

if TYPE_CHECKING:  # late, so that --help imports neither torch nor mlflow
    from ppr_core.checkpoints import Head
    from ppr_core.lab.plan import Plan

# BackdoorBench's names of data sets -> ours; others have to be named.
DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "tiny": "tiny_imagenet"}
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
SET_HERE = ("rho_grid", "notebooks", "clean_control", "checkpoints")  # whatever a file says


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "measure RA, QRA and LMC of models made elsewhere (safetensors, a state_dict, .pt files)"
    parser = command("evaluate", _evaluate, text)
    parser.add_argument("--backdoored", metavar="FILE", help="the victim model")
    parser.add_argument("--purified", metavar="FILE", help="what a defense made")
    parser.add_argument("--clean", metavar="FILE", help="a never-poisoned model, as a control")
    parser.add_argument("--attack", help="registered, or module:Class; whose trigger it knows")
    text = "picture, file.py:function, or two folders of pairs: clean and triggered images"
    parser.add_argument("--trigger", nargs="+", metavar="PATH", help=text)
    parser.add_argument("--at", metavar="ROW,COLUMN", help="upper left corner of a picture")
    parser.add_argument("--alpha", type=float, help="share of a picture in each pixel")
    parser.add_argument("--mask", metavar="FILE", help="of a picture: white is the trigger")
    parser.add_argument("--images", metavar="FOLDER", help="of the images that a .pt file names")
    add_model(parser)
    parser.add_argument("--dataset", help="that they were trained on (default: cifar10)")
    text = "the victim's C-Acc, as its maker reports it; 1 point off is an error"
    parser.add_argument("--expect-c-acc", type=float, metavar="PERCENT", help=text)
    text = "likewise its ASR, within 2 points"
    parser.add_argument("--expect-asr", type=float, metavar="PERCENT", help=text)
    text = "measure although a check fails; there is no verdict then"
    parser.add_argument("--anyway", action="store_true", help=text)
    parser.add_argument("-f", "--file", help="study file with further settings")
    override(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Let a command name an architecture and its normalisation."""
    text = "architecture: registered, module:Class or file.py:Class (default: resnet18)"
    parser.add_argument("--model", help=text)
    text = "of what the architecture takes, by channel, such as 0.5,0.5,0.5"
    parser.add_argument("--mean", metavar="R,G,B", help=text)
    parser.add_argument("--std", metavar="R,G,B", help="its spread")


def _evaluate(arguments: argparse.Namespace) -> int:
    """Check models that this project did not make, then measure them as a study of their own."""
    from ppr_core.lab import arrivals
    from ppr_core.lab.store import Store

    for file in filter(None, (arguments.backdoored, arguments.purified, arguments.clean)):
        _need_weights(Path(file))  # first of all: the data may have to be downloaded
    label, plan = resolve(arguments)
    seen = arrivals.examine(
        plan,
        label,
        c_acc=arguments.expect_c_acc,
        asr=arguments.expect_asr,
        is_victim=bool(arguments.backdoored),
    )
    test = plan.images.test
    for role, found in seen.figures.items():
        print(f"{role:9s} C-Acc {found['c_acc']:.1f}, ASR {found['asr']:.1f}", flush=True)
    print(f"of {len(test)} test images, {test.num_classes} classes", flush=True)
    for doubt in seen.doubts:
        print(f"check     {doubt}", file=sys.stderr, flush=True)
    need(
        arguments.anyway or not seen.doubts,
        f"expected models that pass every check, got {len(seen.doubts)} that fails (above): no "
        "verdict, and nothing is measured; mend it, or add --anyway",
        CheckpointError,
    )
    done = compute(plan, Store(), [])
    if seen.doubts:
        print("verdict  none, for a check failed (above)")
    return done


def resolve(arguments: argparse.Namespace) -> tuple[str, "Plan"]:
    """Return the attack's label, and the study that a command's arguments describe."""
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.study import Study

    first = arguments.backdoored or arguments.purified
    need(first, "expected --backdoored FILE, --purified FILE or both, got neither")
    for pair in arguments.set:
        name = pair.partition("=")[0].split(".")[0]
        need(name not in SET_HERE, f"expected no -p {name}: this command sets it; leave it out")
    for file in (arguments.backdoored, arguments.purified, arguments.clean):
        need(not file or Path(file).is_file(), f"expected a file, got {file}", CheckpointError)
    head = _head(Path(first))
    known = not head or head.dataset in ("", *DATASETS) or arguments.dataset or arguments.file
    need(known, f"expected --dataset for {first}: its {head and head.dataset!r} is not known here")
    label, attack = _attack(arguments, head)
    given = {
        "name": "evaluate",
        "dataset": {"name": DATASETS.get(head.dataset, "cifar10") if head else "cifar10"},
        "model": head.spec() if head and not arguments.model else {"name": "resnet18"},
        "measures": {"query": {}, "path": {}},
    }
    values = read(arguments.file, [], given) | {"name": given["name"]}  # not that study's
    values = named(values, arguments)  # what is named here counts, not the file
    values["attacks"] = {label: {**values.get("attacks", {}).get(label, {}), **attack}}
    values["defenses"] = {"ep": values.get("defenses", {}).get("ep", {})}
    values = read(None, arguments.set, values)
    need_groups(values)
    need(
        list(values["attacks"]) == [label],
        f"expected settings of the attack {label} alone (-p attacks.{label}.KEY=VALUE), got "
        f"{', '.join(values['attacks']) or 'none'}",
    )
    stats = (arguments.mean, arguments.std)
    values["model"] = normalised(values["model"], *(stats if any(stats) else file_stats(first)))
    values |= {"rho_grid": [], "notebooks": [], "clean_control": False}
    files = {"clean": arguments.clean, label: first, f"{label}/purified": arguments.purified}
    values["checkpoints"] = {name: file for name, file in files.items() if file}
    _leave_out(values, label, arguments)
    plan = Plan(Study(**values))
    if values["attacks"][label].get("method") in REPLAYED:
        values["attacks"][label]["poison_rate"] = _share(plan, label, bool(arguments.purified))
        plan = Plan(Study(**values))
    return label, plan


def _need_weights(file: Path) -> None:
    """Raise CheckpointError where a file is none, or holds no weights that are finite numbers."""
    from ppr_core.bench import tensors_of
    from ppr_core.weights import need_finite

    need(file.is_file(), f"expected a file, got {file}", CheckpointError)
    found = tensors_of(file)
    need(found, f"expected tensors by name in {file}, got none", CheckpointError)
    need_finite(found, file)


def _share(plan: "Plan", label: str, needed: bool) -> float:
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


def _head(file: Path) -> "Head | None":
    """Return what a result file of BackdoorBench says of itself; None for any other."""
    from ppr_core.checkpoints import is_result, read_head

    return read_head(file) if is_result(file) else None


def _attack(arguments: argparse.Namespace, head: "Head | None") -> tuple[str, dict[str, Any]]:
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


def _leave_out(values: dict[str, Any], label: str, arguments: argparse.Namespace) -> None:
    """Take out of a study what its models and its trigger cannot serve, and say so."""
    out, measures = [], values["measures"]
    if values["attacks"][label].get("method") in REPLAYED:
        values["defenses"] = {}
        out.append("EP: stored images cannot show the trigger on others")
    if not arguments.backdoored:
        measures.pop("path", None)
        measures.pop("query", None)
        out.append(
            "LMC and QRA: they need the backdoored model; the row `none` is the purified one"
        )
    if "query" in measures and not arguments.clean:
        if values["defenses"]:
            measures["query"].setdefault("surrogate", "ep")
        else:
            del measures["query"]
            out.append("QRA: it needs a surrogate, EP or --clean")
    for text in out:
        print(f"left out  {text}")


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
