"""`ppr study`, `ppr run` and `ppr report`: what computes and tells a study."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppr_core.errors import need
from ppr_core.lab.places import study_file

if TYPE_CHECKING:  # late, so that --help imports neither torch nor mlflow
    from ppr_core.lab.desk import Lab
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.store import Store

OWN = ("attack", "defense", "measure")  # what the command line adds from a user's own file
NAMED = {"dataset": "data set", "model": "classifier"}  # what it takes in place of the file's
RED, PLAIN = "\033[31m", "\033[0m"  # of a terminal's text


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the commands."""
    study = command("study", _study, "compute a study, execute its notebooks, write its report")
    _study_arguments(study)
    where(study)
    study.add_argument("--no-notebooks", action="store_true", help="compute the stages only")
    study.add_argument("--dry-run", action="store_true", help="list the stages and what is cached")
    run = command("run", _run, "execute one notebook with a study's settings")
    run.add_argument("notebook", help="path, or name such as 02_retuning_attack")
    run.add_argument("-f", "--file", help="study file whose settings it gets")
    override(run)
    report = command("report", _report, "print a study's table, or write its HTML report")
    _study_arguments(report)
    kinds = ("text", "csv", "markdown", "html", "claims", "claims-csv", "tables", "tables-csv")
    report.add_argument("--format", choices=(*kinds, "tables-markdown"), default="text")
    text = "judge this table of cells (of --format csv) in place of the store's runs"
    report.add_argument("--cells", metavar="CSV", help=text)
    text = "a further study, for the claims that span several data sets, models or rates"
    report.add_argument("--also", action="append", default=[], metavar="FILE", help=text)


def where(command: argparse.ArgumentParser) -> None:
    """Let a command say where stages run."""
    command.add_argument("--engine", choices=("local", "ray"), default="local", help="where to run")
    command.add_argument("--gpu-share", type=float, default=1.0, help="GPU share of a stage (ray)")
    text = "main memory that a stage takes (ray); 0: not counted"
    command.add_argument("--memory-gb", type=float, default=0.0, metavar="GB", help=text)
    text = "processes that share the stages; default: one a core of a CPU, one of a GPU"
    command.add_argument("--workers", type=int, metavar="N", help=text)


def placed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `where` was told, as arguments of `engine.run`."""
    about = {"backend": arguments.engine, "gpu_share": arguments.gpu_share}
    return about | {"workers": arguments.workers, "memory_gb": arguments.memory_gb}


def _study_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", help="study file, or the name of one in params/, such as demo")
    for kind in OWN:
        own(command, kind, f"a {kind} of your own beside the study's")
    for what, word in NAMED.items():
        text = f"{word} in place of the study's: registered, module:Class or file.py:Class"
        command.add_argument(f"--{what}", metavar="NAME", help=text)
    override(command)


def own(command: argparse.ArgumentParser, kind: str, text: str) -> None:
    """Take classes from a user's own files."""
    command.add_argument(
        f"--{kind}", action="append", default=[], metavar="MODULE:CLASS", help=text
    )


def own_label(name: str) -> str:
    """Return what a study calls a user's own class: its name, in its case."""
    return name.rpartition(":")[2]


def override(command: argparse.ArgumentParser) -> None:
    """Let single settings be changed from the command line."""
    command.add_argument(
        "-p", "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting"
    )


def _plan(arguments: argparse.Namespace) -> "Plan":
    """Resolve the study that a command's arguments describe."""
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.study import Study

    values = read(None, arguments.set, named(read(arguments.file, []), arguments))
    study = Study.load(study_file(arguments.file))
    for kind in OWN:
        given = getattr(study, f"{kind}s").items()
        known = {label.lower(): (label, settings.get("method", label)) for label, settings in given}
        for name in getattr(arguments, kind):
            own = own_label(name)  # no second one in another case: files may not tell them apart
            label, method = known.setdefault(own.lower(), (own, name))
            need(
                method == name,
                f"expected a class of another name than {label!r} (in any case) in --{kind} "
                f"{name}: the study has a {kind} of that name; rename the class",
            )
            group = values.setdefault(f"{kind}s", {})
            odd = [key for key in group if key != label and key.lower() == label.lower()]
            need(
                not odd, f"expected -p {kind}s.{label}.KEY=VALUE, as the class is called, got {odd}"
            )
            group.setdefault(label, {})["method"] = name
    return Plan(Study(**values))


def need_groups(values: dict[str, Any]) -> None:
    """Raise ConfigError where a setting stands in the place of a group of settings."""
    for name in ("dataset", "model", "attacks", "defenses", "measures"):
        group = values.get(name, {})
        inner = group if isinstance(group, dict) and name.endswith("s") else {}
        for path, found in ((name, group), *((f"{name}.{n}", v) for n, v in inner.items())):
            need(
                isinstance(found, dict),
                f"expected a group of settings for {path}, got {found!r}; give single ones as "
                f"-p {path}.KEY=VALUE",
            )


def read(
    file: str | None, pairs: list[str], values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Read a study file and overrides such as `training.epochs=3` into one mapping."""
    from ppr_core.lab.settings_file import pair_of, put
    from ppr_core.lab.study import Study

    values = {**(values or {})}
    if file:
        values |= Study.load(study_file(file)).model_dump(exclude_unset=True)
    for pair in pairs:
        put(values, *pair_of(pair))
    return values


def named(values: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return settings with the data set and the model that flags name, where they are others."""
    for what in NAMED:
        name = getattr(arguments, what)
        if name and name != values.get(what, {}).get("name"):
            values = {**values, what: {"name": name}}
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
    return compute(plan, store, sections, _labels(arguments), **placed(arguments))


def _labels(arguments: argparse.Namespace) -> list[str]:
    """Return what the user's own methods of the command line are called."""
    return [own_label(name) for kind in OWN for name in getattr(arguments, kind)]


def compute(
    plan: "Plan",
    store: "Store",
    sections: list[Path],
    beside: Sequence[str] = (),
    **where: Any,
) -> int:
    """Compute a study, print its table, execute its notebooks, write its report."""
    from ppr_core.lab import engine, notebooks
    from ppr_core.lab.desk import Lab
    from ppr_core.reporting import claims, comparison, report, results

    print(f"study {plan.study.name}: {len(plan.stages())} stages on {plan.device}", flush=True)
    lab = Lab(store)
    failures = engine.run(plan, lab, **where)
    comparison.log_cells(plan, store)
    print("\n" + reddened(results.text_table(results.cells(plan, store))) + "\n", flush=True)
    clock = time.time()
    broken = notebooks.execute_all(sections, plan, store)
    told = time.time() - clock
    path = report.write(plan, store, claims.gather(plan, store), beside)
    if plan.study.keep == "needed":
        print(f"dropped  {lab.drop(plan.stages()) / 1e9:.2f} GB")
    print(f"time     {_shares({'computing stages': lab.computing, 'notebooks': told})}")
    print(f"report   {path}")
    page = comparison.pages(store, [plan.study.name])[plan.study.name]
    print(f"compare  make ui      then http://127.0.0.1:5000/{page}")
    print("explore  make lab     (JupyterLab, notebooks/)")
    for name, reason in failures.items():
        print(f"failed   {name}: {reason}", file=sys.stderr)
    return 1 if failures or broken else 0


def reddened(text: str, mark: str = "no verdict") -> str:
    """Return text with the lines that have a mark in red, on a terminal."""
    if not sys.stdout.isatty():
        return text
    return "\n".join(f"{RED}{line}{PLAIN}" if mark in line else line for line in text.split("\n"))


def _shares(seconds: dict[str, float]) -> str:
    """Say how long this process has run, and which shares of it the named parts have taken."""
    import psutil

    whole = time.time() - psutil.Process().create_time()
    parts = [f"{100 * part / whole:.0f} % {name}" for name, part in seconds.items()]
    rest = 100 * (whole - sum(seconds.values())) / whole
    return f"{whole // 60:.0f}:{whole % 60:02.0f}; " + ", ".join([*parts, f"{rest:.0f} % the rest"])


def _dry_run(plan: "Plan", lab: "Lab") -> int:
    from ppr_core.lab.checks import check

    check(plan)
    stages = plan.stages()
    cached = [lab.cached(stage) for stage in stages]
    for stage, there in zip(stages, cached, strict=True):
        print(f"{'cached ' if there else 'compute'}  {stage.name}")
    print(f"{len(stages) - sum(cached)} of {len(stages)} stages to compute")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from ppr_core.config import unknown
    from ppr_core.lab import notebooks
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.section import resolve
    from ppr_core.lab.store import Store
    from ppr_core.lab.study import Study

    notebook = notebooks.find(arguments.notebook)
    known = (*Study.model_fields, "overrides")
    for pair in arguments.set:
        name = pair.partition("=")[0].split(".")[0]
        need(name in known, unknown(f"parameter of {notebook.stem}", name, known))
    values = read(arguments.file, arguments.set)
    plan = Plan(resolve({**notebooks.declared(notebook), **values}))
    return notebooks.execute(notebook, plan, Store())


def _report(arguments: argparse.Namespace) -> int:
    from ppr_core.lab.plan import Plan
    from ppr_core.lab.store import Store
    from ppr_core.lab.study import Study
    from ppr_core.reporting import boards, claims, report, results

    plan, store = _plan(arguments), Store()
    further = [Plan(Study(**read(file, arguments.set))) for file in arguments.also]
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
    path = report.write(plan, store, evidence, _labels(arguments))
    if arguments.format == "html":
        print(path)
        return 0
    print(reddened(results.text_table(evidence.cells)))
    print(f"\n{claims.text(claims.scoreboard(evidence))}\nreport   {path}")
    return 0
