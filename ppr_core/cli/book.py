"""`ppr book`: a gallery of what studies have found, to be read without installing anything."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ppr_core.lab.places import ROOT, results_folder

STUDIES = ("demo", "judge_demo")


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    book = command("book", _book, "build a static site from executed notebooks, reports, reference")
    book.add_argument("study", nargs="*", default=list(STUDIES), help="names of studies")
    book.add_argument("--out", metavar="FOLDER", type=Path, help="of the site")


def _book(arguments: argparse.Namespace) -> int:
    from ppr_core.lab.store import Store
    from ppr_core.reporting import book

    target = arguments.out or results_folder() / "book"
    submissions = ROOT / "notebooks" / "results" / "leaderboard"
    names = [Path(name).stem for name in arguments.study]
    print(book.build(Store(), names, target, submissions))
    return 0
