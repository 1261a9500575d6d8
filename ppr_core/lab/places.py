"""Where the project's own files lie: in a checkout, or where a wheel has put them."""

import os
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = PACKAGE.parent
INSTALLED = not (_CHECKOUT / "params").is_dir()

# The folder of params/ and notebooks/. A wheel cannot put them beside the package.
ROOT = Path(sysconfig.get_path("data")) / "share" / "ppr_core" if INSTALLED else _CHECKOUT


def results_folder() -> Path:
    """Return the folder of the store: PPR_STORE, or mlruns/ in the checkout or where one stands."""
    return Path(os.environ.get("PPR_STORE") or _home() / "mlruns").resolve()


def data_folder() -> Path:
    """Return the folder of the data: PPR_DATA, or data/ in the checkout or where one stands."""
    return Path(os.environ.get("PPR_DATA") or _home() / "data").expanduser().absolute()


def environment() -> dict[str, str]:
    """Return this process's environment for one that starts elsewhere: store and data named."""
    named = {"PPR_STORE": str(results_folder()), "PPR_DATA": str(data_folder())}
    return {**os.environ, **named}


def importing() -> dict[str, str]:
    """Return this process's environment for a Python that imports what this one can."""
    known = [str(PACKAGE.parent), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known)}


def study_file(name: str, suffix: str = ".yaml") -> Path:
    """Return the study file of a path, or of a name in params/, such as demo.

    Args:
        name: path or name.
        suffix: of the files in params/; that of series of studies is .yml.
    """
    path = Path(name)
    shipped = ROOT / "params" / path.with_suffix(suffix).name
    return shipped if not path.exists() and shipped.exists() else path


def _home() -> Path:
    return Path.cwd() if INSTALLED else _CHECKOUT
