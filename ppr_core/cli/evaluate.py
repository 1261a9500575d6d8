"""`ppr evaluate`: measure models that were made elsewhere, once they do what they should."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppr_core.cli import foreign
from ppr_core.cli.study import compute, named, need_groups, override, read
from ppr_core.errors import CheckpointError, need

if TYPE_CHECKING:  # late, so that --help imports neither torch nor mlflow
    from ppr_core.lab.plan import Plan

# BackdoorBench's names of data sets -> ours; others have to be named.
DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "tiny": "tiny_imagenet"}
SET_HERE = ("rho_grid", "notebooks", "clean_control", "checkpoints")  # whatever a file says


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "measure RA, QRA and LMC of models made elsewhere (safetensors, a state_dict, .pt files)"
    parser = command("evaluate", _evaluate, text)
    parser.add_argument("--backdoored", metavar="FILE", help="the victim model")
    parser.add_argument("--purified", metavar="FILE", help="what a defense made")
    parser.add_argument("--clean", metavar="FILE", help="a never-poisoned model, as a control")
    parser.add_argument("--attack", help="registered, or module:Class; whose trigger it knows")
    foreign.add_trigger(parser)
    foreign.add_model(parser)
    parser.add_argument("--dataset", help="that they were trained on (default: cifar10)")
    text = "the victim's C-Acc, as its maker reports it; 1 point off is an error"
    parser.add_argument("--expect-c-acc", type=float, metavar="PERCENT", help=text)
    text = "likewise its ASR, within 2 points"
    parser.add_argument("--expect-asr", type=float, metavar="PERCENT", help=text)
    text = "measure although a check fails; there is no verdict then"
    parser.add_argument("--anyway", action="store_true", help=text)
    parser.add_argument("-f", "--file", help="study file with further settings")
    override(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    """Check models that this project did not make, then measure them as a study of their own."""
    from ppr_core.lab import arrivals
    from ppr_core.lab.store import Store

    for file in filter(None, (arguments.backdoored, arguments.purified, arguments.clean)):
        foreign.need_weights(Path(file))  # first of all: the data may have to be downloaded
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
    head = foreign.head_of(Path(first))
    known = not head or head.dataset in ("", *DATASETS) or arguments.dataset or arguments.file
    need(known, f"expected --dataset for {first}: its {head and head.dataset!r} is not known here")
    label, attack = foreign.attack_of(arguments, head)
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
    values["model"] = foreign.normalised(
        values["model"], *(stats if any(stats) else foreign.file_stats(first))
    )
    values |= {"rho_grid": [], "notebooks": [], "clean_control": False}
    files = {"clean": arguments.clean, label: first, f"{label}/purified": arguments.purified}
    values["checkpoints"] = {name: file for name, file in files.items() if file}
    _leave_out(values, label, arguments)
    plan = Plan(Study(**values))
    if values["attacks"][label].get("method") in foreign.REPLAYED:
        values["attacks"][label]["poison_rate"] = foreign.stored_share(
            plan, label, needed=bool(arguments.purified)
        )
        plan = Plan(Study(**values))
    return label, plan


def _leave_out(values: dict[str, Any], label: str, arguments: argparse.Namespace) -> None:
    """Take out of a study what its models and its trigger cannot serve, and say so."""
    out, measures = [], values["measures"]
    if values["attacks"][label].get("method") in foreign.REPLAYED:
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
