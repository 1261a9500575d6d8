"""Print every benchmark: `python -m tests.benchmarks [name ...]`; see also `gpu --help`."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch

from importlib import import_module

from tests.benchmarks.timing import heading

ALL = ("training", "attacks", "defenses", "paths", "store", "battery", "gpu")


def main(name, *arguments):
    """Run one; the others are not imported, for a GPU server may lack what they need."""
    return import_module(f"tests.benchmarks.{name}").main(*arguments)


if sys.argv[1:2] == ["gpu"]:  # takes arguments of its own
    sys.exit(main("gpu", sys.argv[2:]))
for name in sys.argv[1:] or ALL:
    heading(name)
    main(name)
