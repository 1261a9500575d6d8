"""`ppr evaluate`: measure models that were made elsewhere."""

import argparse
from collections.abc import Callable

from ppr_core.cli.study import compute, override, read


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "measure RA, QRA and LMC of models made elsewhere (safetensors, or a state_dict)"
    parser = command("evaluate", _evaluate, text)
    parser.add_argument("--backdoored", required=True, metavar="FILE", help="the victim model")
    parser.add_argument("--purified", required=True, metavar="FILE", help="what a defense made")
    parser.add_argument("--clean", metavar="FILE", help="a never-poisoned model, as a control")
    parser.add_argument("--attack", required=True, help="whose trigger the victim knows")
    parser.add_argument("--model", help="architecture of all of them (default: resnet18)")
    parser.add_argument("--dataset", help="that they were trained on (default: cifar10)")
    parser.add_argument("-f", "--file", help="study file with further settings")
    override(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    """Measure models that this project did not make, as a study of their own."""
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.store import Store
    from ppr_core.lab.study import Study

    attack = arguments.attack
    files = {"clean": arguments.clean, attack: arguments.backdoored}
    files[f"{attack}/purified"] = arguments.purified
    given = {
        "name": "evaluate",
        "dataset": {"name": "cifar10"},
        "model": {"name": "resnet18"},
        "measures": {"query": {}, "path": {}},
    }
    values = read(arguments.file, [], given) | {"name": given["name"]}  # not that study's
    for what, name in (("dataset", arguments.dataset), ("model", arguments.model)):
        if name and name != values[what].get("name"):  # what is named here counts, not the file
            values[what] = {"name": name}
    values = read(None, arguments.set, values)
    if "query" in values["measures"] and not arguments.clean:
        values["measures"]["query"].setdefault("surrogate", "ep")
    values["attacks"] = {attack: values.get("attacks", {}).get(attack, {})}
    values["defenses"] = {"ep": values.get("defenses", {}).get("ep", {})}
    values |= {"rho_grid": [], "notebooks": []}
    values["checkpoints"] = {name: file for name, file in files.items() if file}
    values["clean_control"] = False
    return compute(Plan(Study(**values)), Store(), [])
