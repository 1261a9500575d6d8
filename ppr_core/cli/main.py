"""The command line: `python -m ppr_core ...`, also installed as `ppr`."""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Before torch starts its threads: rivals that spin while they wait slow each other forty-fold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml

from ppr_core.errors import CheckpointError, ConfigError, DataError, StoreError, need
from ppr_core.lab.places import ROOT

PORTS = {"ui": 5000, "lab": 8888, "dashboard": 8866}
KINDS = ("attacks", "defenses", "datasets", "models", "measures")


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code (2: a user's mistake, 1: something failed)."""
    arguments = _parser().parse_args(argv)
    here = os.getcwd()  # a user's own methods are imported from where they stand
    if here not in sys.path:
        sys.path.append(here)
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([known, here] if known else [here])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "papermill", "matplotlib", "traitlets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return arguments.command(arguments)
    except (ConfigError, DataError, CheckpointError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the next start goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `ppr list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ppr", description="Is a purified model really safe?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        return command

    study = add("study", _study, "compute a study, execute its notebooks, write its report")
    _study_arguments(study)
    study.add_argument("--engine", choices=("local", "ray"), default="local", help="where to run")
    study.add_argument("--gpu-share", type=float, default=1.0, help="GPU share of a stage (ray)")
    study.add_argument("--no-notebooks", action="store_true", help="compute the stages only")
    study.add_argument("--dry-run", action="store_true", help="list the stages and what is cached")
    _evaluate_arguments(add)
    run = add("run", _run, "execute one notebook with a study's settings")
    run.add_argument("notebook", help="path, or name such as 02_retuning_attack")
    run.add_argument("-f", "--file", help="study file whose settings it gets")
    run.add_argument("-p", "--set", action="append", default=[], metavar="KEY=VALUE")
    listing = add("list", _list, "list what there is, with sources and hyper-parameters")
    listing.add_argument("kind", choices=KINDS)
    listing.add_argument("name", nargs="?", help="show this one's hyper-parameters")
    listing.add_argument("--format", choices=("text", "csv"), default="text")
    report = add("report", _report, "print a study's table, or write its HTML report")
    _study_arguments(report)
    kinds = ("text", "csv", "markdown", "html", "claims", "claims-csv", "tables", "tables-csv")
    report.add_argument("--format", choices=(*kinds, "tables-markdown"), default="text")
    text = "judge this table of cells (of --format csv) in place of the store's runs"
    report.add_argument("--cells", metavar="CSV", help=text)
    text = "a further study, for the claims that span several data sets, models or rates"
    report.add_argument("--also", action="append", default=[], metavar="FILE", help=text)
    for name, run_server, text in (
        ("ui", _ui, "open the MLflow UI on 127.0.0.1"),
        ("lab", _lab, "open JupyterLab on 127.0.0.1"),
        ("dashboard", _dashboard, "open the explorer as a web page (Voila) on 127.0.0.1"),
    ):
        server = add(name, run_server, text)
        server.add_argument("--port", type=int, default=PORTS[name])
    add("doctor", _doctor, "check versions, device, store, disk and threads")
    return parser


def _evaluate_arguments(add: Callable[..., argparse.ArgumentParser]) -> None:
    text = "measure RA, QRA and LMC of models made elsewhere (safetensors, or a state_dict)"
    command = add("evaluate", _evaluate, text)
    command.add_argument("--backdoored", required=True, metavar="FILE", help="the victim model")
    command.add_argument("--purified", required=True, metavar="FILE", help="what a defense made")
    command.add_argument("--clean", metavar="FILE", help="a never-poisoned model, as a control")
    command.add_argument("--attack", required=True, help="whose trigger the victim knows")
    command.add_argument("--model", help="architecture of all of them (default: resnet18)")
    command.add_argument("--dataset", help="that they were trained on (default: cifar10)")
    command.add_argument("-f", "--file", help="study file with further settings")
    _override(command)


def _study_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", help="study file, such as params/demo.yaml")
    command.add_argument(
        "--defense",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="a defense of your own beside the study's",
    )
    _override(command)


def _override(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-p", "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting"
    )


def _plan(arguments: argparse.Namespace) -> Any:
    """Resolve the study that a command's arguments describe."""
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.study import Study

    values = _settings(arguments.file, arguments.set)
    own = Study.load(arguments.file).defenses.items()
    own = {label: given.get("method", label) for label, given in own}
    for name in arguments.defense:
        label = name.rpartition(":")[2].lower()
        need(
            own.setdefault(label, name) == name,
            f"expected a class of another name than {label!r} (in any case) in --defense {name}: "
            "the study has a defense of that name; rename the class",
        )
        values.setdefault("defenses", {}).setdefault(label, {})["method"] = name
    return Plan(Study(**values))


def _settings(
    file: str | None, pairs: list[str], values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Read a study file and overrides such as `training.epochs=3` into one mapping."""
    from ppr_core.lab.study import Study

    values = {**(values or {})}
    values |= Study.load(file).model_dump(exclude_unset=True) if file else {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        need(equals, f"expected KEY=VALUE, got {pair!r}")
        place = values
        *groups, last = key.split(".")
        for group in groups:
            place = place.setdefault(group, {})
            need(isinstance(place, dict), f"expected {group!r} in {key!r} to be a group")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: expected a YAML value, got {text!r}: {error}") from None
    return values


def _study(arguments: argparse.Namespace) -> int:
    from ppr_core.lab import notebooks
    from ppr_core.lab.desk import Lab
    from ppr_core.lab.store import Store

    plan = _plan(arguments)
    sections = [notebooks.find(name) for name in plan.study.notebooks]
    store = Store()
    if arguments.dry_run:
        return _dry_run(plan, Lab(store))
    if arguments.no_notebooks:
        sections = []
    return _compute(plan, store, sections, arguments.engine, arguments.gpu_share)


def _compute(plan: Any, store: Any, sections: list[Path], *where: Any) -> int:
    """Compute a study, print its table, execute its notebooks, write its report."""
    from ppr_core.lab import engine, notebooks
    from ppr_core.lab.desk import Lab
    from ppr_core.reporting import claims, comparison, report, results

    print(f"study {plan.study.name}: {len(plan.stages())} stages on {plan.device}", flush=True)
    lab = Lab(store)
    failures = engine.run(plan, lab, *where)
    comparison.log_cells(plan, store)
    print("\n" + results.text_table(results.cells(plan, store)) + "\n", flush=True)
    clock = time.time()
    broken = notebooks.execute_all(sections, plan, store)
    told = time.time() - clock
    path = report.write(plan, store, claims.gather(plan, store))
    print(f"time     {_shares({'computing stages': lab.computing, 'notebooks': told})}")
    print(f"report   {path}")
    print("compare  make ui      (MLflow, experiment " + repr(plan.study.name) + ")")
    print("explore  make lab     (JupyterLab, notebooks/)")
    for name, reason in failures.items():
        print(f"failed   {name}: {reason}", file=sys.stderr)
    return 1 if failures or broken else 0


def _shares(seconds: dict[str, float]) -> str:
    """Say how long this process has run, and which shares of it the named parts have taken."""
    import psutil

    whole = time.time() - psutil.Process().create_time()
    parts = [f"{100 * part / whole:.0f} % {name}" for name, part in seconds.items()]
    rest = 100 * (whole - sum(seconds.values())) / whole
    return f"{whole // 60:.0f}:{whole % 60:02.0f}; " + ", ".join([*parts, f"{rest:.0f} % the rest"])


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
    values = _settings(arguments.file, [], given) | {"name": given["name"]}  # not that study's
    for what, name in (("dataset", arguments.dataset), ("model", arguments.model)):
        if name and name != values[what].get("name"):  # what is named here counts, not the file
            values[what] = {"name": name}
    values = _settings(None, arguments.set, values)
    if "query" in values["measures"] and not arguments.clean:
        values["measures"]["query"].setdefault("surrogate", "ep")
    values["attacks"] = {attack: values.get("attacks", {}).get(attack, {})}
    values["defenses"] = {"ep": values.get("defenses", {}).get("ep", {})}
    values |= {"rho_grid": [], "notebooks": []}
    values["checkpoints"] = {name: file for name, file in files.items() if file}
    values["clean_control"] = False
    return _compute(Plan(Study(**values)), Store(), [])


def _dry_run(plan: Any, lab: Any) -> int:
    stages = plan.stages()
    cached = [lab.cached(stage) for stage in stages]
    for stage, there in zip(stages, cached, strict=True):
        print(f"{'cached ' if there else 'compute'}  {stage.name}")
    print(f"{len(stages) - sum(cached)} of {len(stages)} stages to compute")
    return 0


# -- one notebook -----------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from ppr_core.config import unknown
    from ppr_core.lab import notebooks
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.section import resolve
    from ppr_core.lab.store import Store

    notebook = notebooks.find(arguments.notebook)
    known = notebooks.declared(notebook)
    for pair in arguments.set:
        name = pair.partition("=")[0].split(".")[0]
        need(name in known, unknown(f"parameter of {notebook.stem}", name, known))
    values = _settings(arguments.file, arguments.set)
    plan = Plan(resolve({**known, **values}))
    return notebooks.execute(notebook, plan, Store())


# -- listings and checks ---------------------------------------------------------------------


def _registries() -> Mapping[str, Mapping[str, type]]:
    from ppr_core.attacks import ATTACKS
    from ppr_core.data import DATASETS
    from ppr_core.defenses import DEFENSES
    from ppr_core.lab.plan import MEASURES
    from ppr_core.models import MODELS
    from ppr_core.reactivation.retuning import Retuning

    measures = {name: cls for name, cls in MEASURES.items() if cls.model_fields}
    measures = {"retuning": Retuning, **measures}
    return dict(zip(KINDS, (ATTACKS, DEFENSES, DATASETS, MODELS, measures), strict=True))


def _list(arguments: argparse.Namespace) -> int:
    import pandas as pd

    from ppr_core.config import unknown

    registry = _registries()[arguments.kind]
    if arguments.name:
        need(
            arguments.name in registry,
            unknown(arguments.kind.removesuffix("s"), arguments.name, registry),
        )
        table = pd.DataFrame(registry[arguments.name].describe())
    else:
        table = pd.DataFrame([_entry(name, cls) for name, cls in registry.items()]).fillna("")
    if arguments.format == "csv":
        table.to_csv(sys.stdout, index=False)
    else:
        _print_columns(table)
    return 0


def _entry(name: str, cls: type) -> dict[str, str]:
    about = (cls.__doc__ or "").strip().splitlines()[0]
    row = {"name": name, "about": about, "source": cls.source}
    if hasattr(cls, "privileges"):
        row["privileges"] = cls.privileges
    settings = [f"{row['name']}={row['default']}" for row in cls.describe()]
    return {**row, "settings": " ".join(settings)}


def _print_columns(table: Any) -> None:
    """Print a table with its last column cut to the terminal's width."""
    width = shutil.get_terminal_size((160, 24)).columns
    widths = [max(len(str(v)) for v in [name, *table[name]]) for name in table.columns]
    for row in [list(table.columns), *table.to_numpy().tolist()]:
        line = "  ".join(f"{value!s:{size}s}" for value, size in zip(row, widths, strict=True))
        print(line.rstrip() if not sys.stdout.isatty() else line[:width].rstrip())


def _report(arguments: argparse.Namespace) -> int:
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.store import Store
    from ppr_core.lab.study import Study
    from ppr_core.reporting import boards, claims, report, results

    plan, store = _plan(arguments), Store()
    further = [Plan(Study(**_settings(file, arguments.set))) for file in arguments.also]
    if arguments.format == "csv":
        results.cells(plan, store).to_csv(sys.stdout, index=False)
        return 0
    if arguments.format == "markdown":
        print(results.markdown_table(results.cells(plan, store)))
        return 0
    evidence = boards.read(plan, arguments.cells) if arguments.cells else None
    evidence = evidence or claims.gather(plan, store, further)
    if arguments.format in boards.FORMATS:
        print(boards.printed(evidence, arguments.format))
        return 0
    path = report.write(plan, store, evidence)
    if arguments.format == "html":
        print(path)
        return 0
    print(results.text_table(evidence.cells))
    print(f"\n{claims.text(claims.scoreboard(evidence))}\nreport   {path}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from ppr_core.cli import doctor

    return doctor.check()


# -- servers -----------------------------------------------------------------------------------


def free_port(port: int) -> int:
    """Return this port if it is free on 127.0.0.1, or the next free one."""
    import socket

    last = 65535
    need(0 < port <= last, f"expected a port from 1 to {last}, got {port}")
    for candidate in range(port, min(port + 99, last) + 1):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", candidate)) != 0:
                return candidate
    raise ConfigError(f"expected a free port from {port} on, got none; use --port")


def _ui(arguments: argparse.Namespace) -> int:
    from ppr_core.lab.store import Store

    store, port = Store(), free_port(arguments.port)
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    print(f"MLflow UI on http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return subprocess.call(command, env=environment)


def _lab(arguments: argparse.Namespace) -> int:
    port = free_port(arguments.port)
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--ServerApp.root_dir={ROOT}", "--LabApp.default_url=/lab/tree/notebooks"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return subprocess.call(command)


def _dashboard(arguments: argparse.Namespace) -> int:
    port = free_port(arguments.port)
    command = [sys.executable, "-m", "voila", str(ROOT / "notebooks" / "00_explorer.ipynb")]
    command += ["--Voila.ip=127.0.0.1", f"--port={port}", "--token"]
    return subprocess.call(command)
