"""`ppr paper`: the whole paper, or any series of studies, as one study of studies."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ppr_core.cli.study import override, placed, where
from ppr_core.errors import ConfigError
from ppr_core.lab.places import study_file

if TYPE_CHECKING:  # late, so that --help imports neither torch nor mlflow
    from ppr_core.lab.desk import Lab
    from ppr_core.lab.engine import Failures
    from ppr_core.lab.series import Entry, Series

FILE = "paper"


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    paper = command("paper", _paper, "compute the paper's tables, figures and claims, as one study")
    paper.add_argument("-f", "--file", default=FILE, help="series of studies (params/paper.yml)")
    paper.add_argument("--only", nargs="+", default=[], metavar="PART", help="such as table03")
    paper.add_argument("--scale", default="paper", help="scaled counterparts, such as laptop")
    text = "say what each part holds, shares and costs; compute nothing"
    paper.add_argument("--dry-run", action="store_true", help=text)
    where(paper)
    override(paper)


def _paper(arguments: argparse.Namespace) -> int:
    from ppr_core.lab.desk import Lab
    from ppr_core.lab.series import OWN_SCALE, Series
    from ppr_core.lab.store import Store

    path = study_file(arguments.file, ".yml")
    series = Series.load(path)
    entries = series.entries(path.parent, arguments.only, arguments.scale, arguments.set)
    lab = Lab(Store())
    if arguments.dry_run:
        return _dry_run(series, entries, lab, arguments.scale)
    _need_runnable(entries)
    name = series.name if arguments.scale == OWN_SCALE else f"{series.name}_{arguments.scale}"
    return _compute(name, entries, lab, arguments)


def _compute(name: str, entries: list["Entry"], lab: "Lab", arguments: argparse.Namespace) -> int:
    from ppr_core.lab import engine
    from ppr_core.lab.dropping import finished
    from ppr_core.lab.series import adding
    from ppr_core.reporting import claims, comparison, joint

    kept, failures = adding(entries), dict[str, "Failures"]()
    for index, entry in enumerate(kept):
        study = entry.plan.study
        print(f"\n{entry.part}: study {study.name} ({index + 1} of {len(kept)})", flush=True)
        told = engine.run(entry.plan, lab, **placed(arguments))
        if told:
            failures[study.name] = told
        comparison.log_cells(entry.plan, lab.store)
        if study.keep == "needed":
            later = [stage for other in kept[index + 1 :] for stage in other.plan.stages()]
            held = finished(lab.store)
            waiting = [stage for stage in later if stage.key not in held]
            print(f"dropped  {lab.drop(entry.plan.stages(), waiting) / 1e9:.2f} GB", flush=True)
    page, printed, verdicts = joint.write(name, kept, lab.store)
    print("\n" + "\n".join(table.caption() for table in printed))
    print(f"\n{claims.tally(verdicts)}\nreport   {page}")
    for study_name, reasons in failures.items():
        for stage, reason in reasons.items():
            print(f"failed   {study_name}: {stage}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _need_runnable(entries: list["Entry"]) -> None:
    """Raise ConfigError with a line for each reason that keeps parts from running."""
    from ppr_core.lab.series import faults

    found = faults(entries)
    if found:
        able = dict.fromkeys(entry.part for entry in entries)
        for parts in found.values():
            for part in parts:
                able.pop(part, None)
        rest = f"; without them: --only {' '.join(able)}" if able else ""
        lines = [f"{' '.join(parts)}: {reason}" for reason, parts in found.items()]
        raise ConfigError("\n".join(lines) + rest)


def _dry_run(series: "Series", entries: list["Entry"], lab: "Lab", scale: str) -> int:
    from ppr_core.lab import costs
    from ppr_core.lab.dropping import finished
    from ppr_core.lab.series import Images, shares

    images = {name: Images.labelled(name, values) for name, values in series.images.items()}
    absent = _assumed(entries)
    parts = shares(entries, finished(lab.store))
    known = series.scale(scale)
    titles = ("stages", "shared", "cached", "to do", "hours", "GB", "GB needed")
    print(f"{'part':10s} " + " ".join(f"{title:>9s}" for title in titles))
    for part in [*parts, None]:
        own = part.own if part else [stage for one in parts for stage in one.own]
        left = part.left if part else [stage for one in parts for stage in one.left]
        counts = [
            part.stages if part else len(own),
            part.shared if part else 0,
            part.cached if part else len(own) - len(left),
            len(left),
        ]
        time = costs.hours(left, known.image_us, images)
        sizes = [costs.gigabytes(own, images, needed=needed) for needed in (False, True)]
        texts = [f"{count:d}" for count in counts] + ["-" if time is None else f"{time:.1f}"]
        texts += [f"{size:.1f}" for size in sizes]
        print(f"{part.part if part else 'all':10s} " + " ".join(f"{text:>9s}" for text in texts))
    machine = known.machine or "a machine that the file does not name"
    print(f"\nhours: of what is to do, an estimate for {machine}; GB: of all that a part adds; GB")
    print("needed: what stays of it with -p keep=needed")
    for reason, names in absent.items():
        print(f"missing  {' '.join(names)}: {reason}")
    return 0


def _assumed(entries: list["Entry"]) -> dict[str, list[str]]:
    """Take data that is not here to be as its settings say; return reason -> parts."""
    from ppr_core.errors import DataError

    found: dict[str, list[str]] = {}
    for entry in entries:
        try:
            entry.plan.setting.images_key  # noqa: B018
        except DataError as error:
            entry.plan.setting.assume_images()
            if entry.part not in found.setdefault(str(error), []):
                found[str(error)].append(entry.part)
    return found
