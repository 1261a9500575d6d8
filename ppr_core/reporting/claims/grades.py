"""What an answer is worth: its grade, what it rests on, and what is missing or was left out."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pandas as pd

from ppr_core.reporting import paper
from ppr_core.reporting.claims.base import Answer, Claim, stands_in
from ppr_core.reporting.evidence import HONEST, SETTING, Evidence, Place, purified
from ppr_core.reporting.rules import threshold
from ppr_core.reporting.setting import COUNTS, OTHER, PAPER, paper_rho

CELLS = range(3, 10)  # the paper's tables of every cell
RHO = 10  # its table of PAM's rho
NAMED = 4  # of what is missing, the rest is counted


def graded(claim: Claim, answer: Answer, here: Evidence) -> dict[str, Any]:
    """Return verdict, grade and what they rest on."""
    rows, status = answer.rows, answer.status
    inside = claim.scope.inside(rows)
    lacking = _lacking(claim, rows[inside], here.cells)
    left = [*answer.left_out, *stands_in(rows), *_other_rho(rows), *lacking]
    keys = [c for c in (*SETTING, "attack", "defense", "rho") if c in rows]
    cells = rows.groupby(keys, dropna=False)["seed"].nunique()
    seeds = min(answer.seeds, int(cells.min()))
    grade = "seen"
    if seeds >= threshold("seeds") and not _other_rho(rows) and (rows["level"] != OTHER).all():
        exact = (rows["level"] == PAPER).all() and inside.all()
        whole = exact and not answer.indirect and not [*stands_in(rows), *lacking]
        grade = "decided" if whole else "indicated"
    missing = claim.scope.missing(rows) if inside.any() else []
    if missing and claim.scope.settings:
        named = ", ".join(" ".join(f"{p}" for p in place if p is not None) for place in missing)
        left.append(f"not asked in {named}")
        if status == "holds" and grade != "seen":
            status = "open"  # it holds here; the claim is about more
    scales = [scale for scale in rows["scale"].unique() if scale]
    if scales:
        more = f" (and {len(scales) - 1} more)" if len(scales) > 1 else ""
        left.append(f"at another scale: {min(scales, key=len)}{more}")
    if seeds < 2:
        status = {"holds": "yes", "fails": "no"}.get(status, status)
    return {
        "verdict": status,
        "grade": grade,
        "ours": answer.ours,
        "seeds": seeds,
        "cells": len(cells),
        "left_out": "; ".join(left),
    }


@cache
def _tables() -> dict[tuple[Any, ...], frozenset[str]]:
    """Return the attacks that the paper's tables have, by setting and defense."""
    numbers = paper.numbers()
    numbers = numbers[numbers["table"].isin(CELLS)]
    return dict(numbers.groupby([*SETTING, "defense"])["attack"].agg(frozenset))


def _wanted(claim: Claim, place: Place) -> Iterator[tuple[str, str]]:
    """Yield the (defense, attack) of a setting that a claim is about."""
    tables = _tables()
    tabled = {name for *_, name in tables}
    usual = tables.get((*place, "none"), frozenset(COUNTS.get(str(place[0]), ())))
    asked = frozenset(claim.attacks or claim.scope.must.get("attack", usual))
    for name in claim.names:
        there = frozenset() if name in tabled and (*place, "none") in tables else usual
        there = tables.get((*place, name), there)
        yield from ((name, attack) for attack in (there & asked if usual & asked else asked))


def _lacking(claim: Claim, rows: pd.DataFrame, all_rows: pd.DataFrame) -> list[str]:
    """Say which cells of the paper's tables are missing; one that is not purified was asked."""
    awake = all_rows.drop(purified(all_rows).index)
    there = pd.concat([rows, awake])[[*SETTING, "defense", "attack"]]
    there = there.assign(defense=there["defense"].replace(HONEST))
    found = {tuple(row) for row in there.to_numpy()}
    wanted = [
        (*place, *pair)
        for place in map(tuple, rows[SETTING].drop_duplicates().to_numpy())
        for pair in sorted(_wanted(claim, place))
    ]
    names = ["/".join(cell[-2:]) for cell in wanted if cell not in found]
    said = []
    if names:
        short = list(dict.fromkeys(names))
        more = f" and {len(short) - NAMED} more" if len(short) > NAMED else ""
        listed = ", ".join(short[:NAMED]) + more
        said.append(f"not measured: {len(names)} of {len(wanted)} cells ({listed})")
    if claim.grid and len(rows):
        numbers = paper.numbers()
        grid = sorted(numbers.loc[numbers["table"] == RHO, "rho"].unique())
        measured = {*rows["rho"].astype(float), *all_rows["rho"].astype(float)}
        lost = [f"{rho:g}" for rho in grid if rho not in measured]
        said += [f"not measured: rho {', '.join(lost)}"] if lost else []
    return said


def _other_rho(rows: pd.DataFrame) -> list[str]:
    """Say where PAM was not run at the paper's rho; a grid has all of its own."""
    if "rho" not in rows or not (rows["defense"] == "pam").any():
        return []
    rows = rows[(rows["defense"] == "pam") & rows["rho"].notna()]
    found = []
    for (dataset, attack), part in rows.groupby(["dataset", "attack"]):
        rho, theirs = part["rho"].astype(float), paper_rho(str(dataset), str(attack))
        if theirs not in set(rho) and len(rho):
            said = "none" if theirs is None else f"{theirs:g}"
            found.append(f"PAM at rho {rho.max():g} against {attack} (the paper: {said})")
    return found
