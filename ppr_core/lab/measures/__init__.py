"""What a study measures of its models, one file a measure; a new one is registered here."""

from ppr_core.lab.measures.aligned_path import AlignedPath
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.measures.battery import Battery
from ppr_core.lab.measures.clean_model import CleanModel
from ppr_core.lab.measures.clean_retuning import CleanRetuning
from ppr_core.lab.measures.connection import Connection
from ppr_core.lab.measures.controls import Controls
from ppr_core.lab.measures.curve import Curve
from ppr_core.lab.measures.existence import Existence
from ppr_core.lab.measures.flagged import Flagged
from ppr_core.lab.measures.path import Path
from ppr_core.lab.measures.query import Query
from ppr_core.lab.measures.query_alone import QueryAlone
from ppr_core.lab.measures.query_ep import QueryEp
from ppr_core.lab.measures.query_self import QuerySelf
from ppr_core.lab.measures.retuning import Retuning
from ppr_core.lab.measures.separation import Separation
from ppr_core.lab.measures.transfer import Transfer
from ppr_core.lab.measures.triggers import Triggers

__all__ = ["MEASURES", "Column", "Measure"]

MEASURES: dict[str, type[Measure]] = {
    "retuning": Retuning,
    "query": Query,
    "query_ep": QueryEp,
    "query_alone": QueryAlone,
    "query_self": QuerySelf,
    "transfer": Transfer,
    "controls": Controls,
    "triggers": Triggers,
    "clean_retuning": CleanRetuning,
    "path": Path,
    "connection": Connection,
    "aligned_path": AlignedPath,
    "curve": Curve,
    "flagged": Flagged,
    "existence": Existence,
    "separation": Separation,
    "clean_model": CleanModel,
    "battery": Battery,
}
