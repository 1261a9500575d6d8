"""What is wrong with a study's rows before any verdict, as `reactivation.gates` decides."""

import json
import logging
from typing import Any

import pandas as pd

from ppr_core.errors import CheckpointError
from ppr_core.lab.graph import CLEAN, NO_ATTACK, NO_DEFENSE, Stage
from ppr_core.lab.store import Run, Store
from ppr_core.method import Result
from ppr_core.reactivation.gates import Evidence, Gates

log = logging.getLogger(__name__)

Row = dict[str, Any]

MARK = " | "  # between the sentences of one row
SIGN = "†"  # beside a row or a figure that has none
NO_VERDICT = "no verdict."  # in every line of `listed`
DAMAGED = "Its result is damaged"  # what a row says whose defense's warnings cannot be read


def failed(rows: list[Row], doubts: list[list[str]], classes: int | None) -> list[str]:
    """Return for each row the checks that it fails, as sentences; empty where it passes.

    A row is held against the backdoored and the clean model of its attack and seed. The models of
    the attack "none" know no backdoor, and are not checked.

    Args:
        rows: of one study: attack, defense, seed and figures.
        doubts: of each row: what its defense warns of.
        classes: of the data; None where it is not known.
    """
    found = {(row["attack"], row["defense"], row["seed"]): row for row in rows}
    check, said = Gates(), []
    for row, warnings in zip(rows, doubts, strict=True):
        victim, clean = (
            found.get((row["attack"], name, row["seed"]), {}) for name in (NO_DEFENSE, CLEAN)
        )
        evidence = Evidence(
            classes=classes,
            victim_c_acc=_known(victim, "o_c_acc"),
            victim_asr=_known(victim, "o_asr"),
            clean_c_acc=_known(clean, "o_c_acc"),
            clean_p_asr=_known(clean, "p_asr"),
            c_acc=_known(row, "o_c_acc"),
            warnings=warnings,
        )
        known = row["attack"] != NO_ATTACK and _known(row, "o_asr") is not None
        damaged = [text for text in warnings if text.startswith(DAMAGED)]
        said.append(MARK.join([*damaged, *(check(evidence) if known else [])]))
    return said


def warnings_of(store: Store, run: Run | None) -> list[str]:
    """Return what a defense warned of; that a result is damaged where that cannot be read."""
    if run is None:
        return []
    try:
        return list(store.summary(run).info.get("warnings", []))
    except CheckpointError as error:
        return [f"{DAMAGED}: {error}"]


def kept(store: Store, run: Run | None) -> Result:
    """Return the figures and curves of a run; of a damaged one, or of none, an empty result."""
    try:
        return store.summary(run) if run else Result()
    except CheckpointError as error:
        log.warning("left out: %s", error)
        return Result()


def classes_of(store: Store, stages: list[Stage]) -> int | None:
    """Return how many classes the data has, as the first finished run noted it."""
    for stage in stages:
        run = store.find(stage.key)
        for given in run.inputs.dataset_inputs if run and run.inputs else ():
            return json.loads(given.dataset.profile or "{}").get("classes")
    return None


def column(rows: pd.DataFrame) -> pd.Series:
    """Return the checks that each row of a table fails; a table kept earlier may have none."""
    kept = rows["checks"] if "checks" in rows else pd.Series("", index=rows.index)
    return kept.fillna("").astype(str)


def listed(rows: pd.DataFrame) -> list[str]:
    """Return a line for each check that rows of a table fail, with the names of those rows."""
    sentences: dict[str, dict[str, None]] = {}
    for attack, defense, text in zip(rows["attack"], rows["defense"], column(rows), strict=True):
        for sentence in filter(None, text.split(MARK)):
            sentences.setdefault(sentence, {})[f"{attack} / {defense}"] = None
    return [f"{', '.join(names)}: {NO_VERDICT} {text}" for text, names in sentences.items()]


def _known(row: Row, name: str) -> float | None:
    """Return a figure, or None where a row has none."""
    value = row.get(name)
    return None if value is None or value != value else float(value)
