"""Post-purification robustness: measure whether a purified model is really free of its backdoor.

Everything that a researcher needs is imported from here. A name is loaded when it is first used, so
that `import ppr_core` costs nothing and imports neither torch nor mlflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; a test holds these to the table below
    from ppr_core.attacks import ATTACKS as ATTACKS
    from ppr_core.attacks import Attack as Attack
    from ppr_core.attacks import Trigger as Trigger
    from ppr_core.config import Field as Field
    from ppr_core.config import Settings as Settings
    from ppr_core.data import DATASETS as DATASETS
    from ppr_core.data import load as load_data
    from ppr_core.data.base import Dataset as Dataset
    from ppr_core.data.images import ImageSet as ImageSet
    from ppr_core.data.splits import reserve as reserve
    from ppr_core.defenses import DEFENSES as DEFENSES
    from ppr_core.defenses import Defense as Defense
    from ppr_core.defenses import TrainingDefense as TrainingDefense
    from ppr_core.lab.measures import MEASURES as MEASURES
    from ppr_core.lab.measures.base import Measure as Measure
    from ppr_core.lab.store import Store as Store
    from ppr_core.lab.study import Study as Study
    from ppr_core.method import Outcome as Outcome
    from ppr_core.metrics import evaluate as evaluate
    from ppr_core.metrics import triggered as triggered
    from ppr_core.models import MODELS as MODELS
    from ppr_core.models import build as build_model
    from ppr_core.models.base import Architecture as Architecture
    from ppr_core.reactivation.retuning import Retuning as Retuning
    from ppr_core.reporting.judging import judge as judge
    from ppr_core.reporting.run import run_study as run_study
    from ppr_core.training.fit import Schedule as Schedule
    from ppr_core.training.fit import fit as fit

# Where each name stands; "new=old" offers it under another one.
_NAMES = {
    "attacks": "ATTACKS Attack Trigger",
    "config": "Field Settings",
    "data": "DATASETS load_data=load",
    "data.base": "Dataset",
    "data.images": "ImageSet",
    "data.splits": "reserve",
    "defenses": "DEFENSES Defense TrainingDefense",
    "lab.measures": "MEASURES",
    "lab.measures.base": "Measure",
    "lab.store": "Store",
    "lab.study": "Study",
    "method": "Outcome",
    "metrics": "evaluate triggered",
    "models": "MODELS build_model=build",
    "models.base": "Architecture",
    "reactivation.retuning": "Retuning",
    "reporting.judging": "judge",
    "reporting.run": "run_study",
    "training.fit": "Schedule fit",
}
_PLACES = {
    name.partition("=")[0]: (f"ppr_core.{module}", name.rpartition("=")[2])
    for module, names in _NAMES.items()
    for name in names.split()
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Load one of the names above, when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'ppr_core' has no attribute {name!r}")
    module, there = _PLACES[name]
    value = globals()[name] = getattr(import_module(module), there)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
