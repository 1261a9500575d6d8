"""`ppr list`: what there is, with sources and hyper-parameters."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ppr_core.cli.study import own, own_label
from ppr_core.errors import need

if TYPE_CHECKING:
    import pandas as pd

    from ppr_core.config import Settings

SHOWN = ("name", "about", "needs", "source")  # columns of an overview on a terminal
ANY = "any network"  # is enough for a method without needs
NARROW = 8  # characters: no column gives way beyond that
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
        return 0
    _print_columns(table)
    needs = _entry(arguments.name, registry[arguments.name]).get("needs") if arguments.name else ""
    if needs:
        told = f"needs of a model, besides forward and parameters: {needs}"
        print("\n" + "\n".join(textwrap.wrap(told, _width())))
    return 0


def _entry(name: str, cls: type["Settings"]) -> dict[str, str]:
    about = (cls.__doc__ or "").strip().splitlines()[0]
    row = {"name": name, "about": about, "source": cls.source}
    if hasattr(cls, "columns"):
        row["columns"] = ", ".join(column.name for column in cls.columns)
    if hasattr(cls, "privileges"):
        row["privileges"] = cls.privileges
    if hasattr(cls, "needed") and not any(f.is_required() for f in cls.model_fields.values()):
        usual: Any = cls()  # what it needs of a model, besides forward and parameters
        row["needs"] = ", ".join([*usual.needed(), *([usual.asks] if usual.asks else [])]) or ANY
    settings = [f"{row['name']}={row['default']}" for row in cls.describe()]
    return {**row, "settings": " ".join(settings)}


def _print_columns(table: "pd.DataFrame") -> None:
    """Print a table: on a terminal within its width, elsewhere a line a row."""
    lines: list[list[Any]] = [[*table.columns], *table.to_numpy().tolist()]
    rows = [[str(value) for value in line] for line in lines]
    natural = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if not sys.stdout.isatty():
        for row in rows:
            print(_line(row, natural))
        return
    if "settings" in table:  # of one method they are shown by its name
        told = table.loc[:, ~table.isin(["", ANY]).all()]  # that all take any is no news
        places = [list(table.columns).index(name) for name in SHOWN if name in told]
        rows = [[row[place] for place in places] for row in rows]
        natural = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths = fitted(natural, _width())
    for row in rows:
        parts = [textwrap.wrap(text, size) for text, size in zip(row, widths, strict=True)]
        for line in zip_longest(*parts, fillvalue=""):
            print(_line(line, widths))
    if "settings" in table:
        print("\nsettings of one: ppr list KIND NAME; all columns: --format csv")


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns - 1


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{t:{size}s}" for t, size in zip(texts, widths, strict=True)).rstrip()


def fitted(widths: Sequence[int], room: int) -> list[int]:
    """Return widths of columns, two blanks apart, that fit: the widest give way."""
    found, room = list(widths), room - 2 * (len(widths) - 1)
    while sum(found) > room and max(found) > NARROW:
        found[found.index(max(found))] -= 1
    return found
