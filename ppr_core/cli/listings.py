"""`ppr list`: what there is, with sources and hyper-parameters."""

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ppr_core.cli.study import own, own_label
from ppr_core.errors import need

if TYPE_CHECKING:
    import pandas as pd

    from ppr_core.config import Settings

KINDS = ("attacks", "defenses", "datasets", "models", "measures")


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    listing = command("list", _list, "list what there is, with sources and hyper-parameters")
    listing.add_argument("kind", choices=KINDS)
    listing.add_argument("name", nargs="?", help="show this one's hyper-parameters")
    listing.add_argument("--format", choices=("text", "csv"), default="text")
    own(listing, "measure", "a measure of your own beside the registered ones")


def _registries() -> Mapping[str, Mapping[str, type["Settings"]]]:
    from ppr_core.attacks import ATTACKS
    from ppr_core.data import DATASETS
    from ppr_core.defenses import DEFENSES
    from ppr_core.lab.measures import MEASURES
    from ppr_core.models import MODELS

    return dict(zip(KINDS, (ATTACKS, DEFENSES, DATASETS, MODELS, MEASURES), strict=True))


def _list(arguments: argparse.Namespace) -> int:
    import pandas as pd

    from ppr_core.config import unknown
    from ppr_core.lab.plan import own_measure

    registry = {**_registries()[arguments.kind]}
    if arguments.kind == "measures":
        registry |= {own_label(name): own_measure(name) for name in arguments.measure}
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


def _entry(name: str, cls: type["Settings"]) -> dict[str, str]:
    about = (cls.__doc__ or "").strip().splitlines()[0]
    row = {"name": name, "about": about, "source": cls.source}
    if hasattr(cls, "columns"):
        row["columns"] = ", ".join(column.name for column in cls.columns)
    if hasattr(cls, "privileges"):
        row["privileges"] = cls.privileges
    if hasattr(cls, "needed") and not any(f.is_required() for f in cls.model_fields.values()):
        usual: Any = cls()
        row["needs"] = ", ".join(usual.needed())  # of a model, besides forward and parameters
    settings = [f"{row['name']}={row['default']}" for row in cls.describe()]
    return {**row, "settings": " ".join(settings)}


def _print_columns(table: "pd.DataFrame") -> None:
    """Print a table with its last column cut to the terminal's width."""
    width = shutil.get_terminal_size((160, 24)).columns
    widths = [max(len(str(v)) for v in [name, *table[name]]) for name in table.columns]
    for row in [list(table.columns), *table.to_numpy().tolist()]:
        line = "  ".join(f"{value!s:{size}s}" for value, size in zip(row, widths, strict=True))
        print(line.rstrip() if not sys.stdout.isatty() else line[:width].rstrip())
