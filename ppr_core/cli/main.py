"""The command line: `python -m ppr_core ...`, also installed as `ppr`."""

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable

# Before torch starts its threads: rivals that spin while they wait slow each other forty-fold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ppr_core.cli import book, doctor, evaluate, judge, listings, paper, scan, servers, study
from ppr_core.errors import CheckpointError, ConfigError, DataError, StoreError

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # what a full disk says


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code (2: a user's mistake, 1: something failed)."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs is closed
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
    except ModuleNotFoundError as error:  # the core is installed alone
        if (error.name or "").partition(".")[0] == "ppr_core":
            raise
        mend = "pip install 'ppr-core[lab]'"
        print(f"error: expected the package {error.name}, got none; {mend}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the next start goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `ppr list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in FULL:
            raise
        mend = "free some disk and start again (finished stages are kept)"
        print(f"error: expected room on the disk, got: {error}; {mend}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ppr", description="Is a purified model really safe?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=run)
        return made

    for part in (study, paper, evaluate, scan, judge, book, listings, servers, doctor):
        part.add(command)
    return parser
