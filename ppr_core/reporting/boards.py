"""Claims boards and the paper's tables as text, and boards of tables that were kept as CSV."""

from pathlib import Path

import pandas as pd

from ppr_core.defenses.dist_reg import DistReg
from ppr_core.defenses.parts.masks import MaskPruning
from ppr_core.errors import DataError, need
from ppr_core.lab.plan import Plan
from ppr_core.reporting import claims, tables
from ppr_core.reporting.evidence import Evidence
from ppr_core.reporting.setting import with_settings

# Format on the command line -> how it is made.
FORMATS = {
    "claims": lambda e: claims.markdown(claims.scoreboard(e)),
    "claims-csv": lambda e: claims.board(claims.scoreboard(e)).to_csv(index=False).rstrip(),
    "tables": lambda e: tables.joined(tables.all_tables(_union(e)), "text"),
    "tables-markdown": lambda e: tables.joined(tables.all_tables(_union(e)), "markdown"),
    "tables-csv": lambda e: tables.joined(tables.all_tables(_union(e)), "csv").rstrip(),
}
NEEDED = ("dataset", "model", "poison_rate", "attack", "defense", "seed", "rho", "status")
SCORES = ("q_", "qe_", "q1_")  # of QRA; without the control's they are of an older measure
CONTROL = "q_unseen_p_asr"
UNKNOWN = "diagnostics not kept"  # status of a row whose defense may have failed unseen


def printed(evidence: Evidence, kind: str) -> str:
    """Return what the evidence says in one of `FORMATS`."""
    return FORMATS[kind](evidence)


def read(plan: Plan, file: str | Path) -> Evidence:
    """Return the evidence of a table of cells that was kept, with the setting of its study.

    QRA's scores of a table without those on the unseen clean model come from an older measure,
    whose control was another; they are left out. Of a table without the warnings of its defenses,
    the rows of those that invert a trigger, or prune by masks, are not judged: an inversion may
    have failed, or nothing have been pruned.

    Raises:
        DataError: no such file, or no table of cells.
    """
    path = Path(file)
    need(path.is_file(), f"expected a table of cells, got {file} (no such file)", DataError)
    rows = pd.read_csv(path, keep_default_na=True)
    missing = [name for name in NEEDED if name not in rows]
    need(
        not missing,
        f"expected a table of cells, got {file} without {', '.join(missing)}; make one with "
        "`report FILE --format csv`",
        DataError,
    )
    if CONTROL not in rows:
        rows = rows.drop(columns=[name for name in rows if str(name).startswith(SCORES)])
    if "warnings" not in rows:
        doubting = {label for (label, _), method in plan.defenses.items() if _may_doubt(method)}
        rows.loc[rows["defense"].isin(doubting) & (rows["status"] == "done"), "status"] = UNKNOWN
    return Evidence(with_settings(plan, rows))


def _may_doubt(method: object) -> bool:
    return hasattr(method, "inversion") or isinstance(method, MaskPruning | DistReg)


def _union(evidence: Evidence) -> pd.DataFrame:
    return pd.concat([evidence.cells, evidence.further], ignore_index=True)
