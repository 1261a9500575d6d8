"""The 60 testable claims of the paper, each with the question that decides it; and our verdicts."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.reporting import results
from ppr_core.reporting.claims import pam, paths, query, retuning, setting
from ppr_core.reporting.claims.base import Answer, Claim, leaving, stands_in
from ppr_core.reporting.claims.rules import rules
from ppr_core.reporting.evidence import FRAMES, SETTING, Evidence
from ppr_core.reporting.setting import OTHER, PAPER, paper_rho, with_settings

CLAIMS = [*retuning.CLAIMS, *query.CLAIMS, *paths.CLAIMS, *pam.CLAIMS, *setting.CLAIMS]
GRADES = ("decided", "indicated", "seen", "text")
ENOUGH = 3  # seeds from which evidence is more than seen
NOT_TESTED = "not tested"
ORDER = ("holds", "fails", "open", "yes", "partly", "no")
WIDTH = 110


@dataclass(frozen=True)
class Verdict:
    """What runs say of one claim.

    Attributes:
        number: of the claim.
        claim: in our words.
        verdict: "holds", "fails" or "open"; with one seed "yes" or "no"; "not tested".
        grade: how much that is worth: decided, indicated, seen; text, where no run could tell.
        ours: our figures with their 95 % intervals over seeds.
        paper: the paper's figures.
        tables: what the paper's own tables say: YES, PARTLY, NO, or not shown.
        seeds: that it rests on.
        cells: that it rests on.
        left_out: what was left out, and in which settings it was not asked.
        needs: what it would take.
    """

    number: int
    claim: str
    verdict: str
    grade: str = ""
    ours: str = ""
    paper: str = ""
    tables: str = ""
    seeds: int = 0
    cells: int = 0
    left_out: str = ""
    needs: str = ""

    @property
    def told(self) -> str:
        """Our figures; where there are none, what it would take."""
        return self.ours or f"needs {self.needs}"

    @property
    def rests(self) -> str:
        """On what the verdict rests, in words."""
        if not self.seeds:
            return ""
        count = f"{self.seeds} seed{'s' * (self.seeds != 1)}, {self.cells} cell"
        return count + "s" * (self.cells != 1)


def gather(
    plan: Plan,
    store: Store,
    further: Sequence[Plan] = (),
    places: Sequence[Mapping[str, str]] = (),
) -> Evidence:
    """Read what the runs of several studies say from the store.

    Args:
        plan: of the study that is asked about.
        store: that holds the runs.
        further: other studies, for the claims that span several data sets, models or rates.
        places: of all of them, the data set and the architecture that theirs stand for, where
            those are scaled counterparts; their level and scale say so.
    """
    plans = (plan, *further)
    cells = [with_settings(one, results.cells(one, store)) for one in plans]
    for index, place in enumerate(places):
        cells[index] = cells[index].assign(**place)
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in FRAMES}
    for one in plans:
        rates = {a: m.poison_rate for a, m in one.attacks.items()}
        for name in FRAMES:
            read = getattr(results, name)
            frame = read(one, store, "retuned") if name == "histories" else read(one, store)
            if len(frame):
                row = cells[plans.index(one)].iloc[0]
                about = {column: row[column] for column in ("dataset", "model")}
                frames[name].append(frame.assign(**about, poison_rate=frame["attack"].map(rates)))
    return Evidence(
        cells[0],
        **{name: _joined(found) for name, found in frames.items()},
        further=pd.concat([pd.DataFrame(), *cells[1:]]),
    )


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the points of several studies, each once; the labels keep their order."""
    if len(frames) < 2:
        return frames[0] if frames else pd.DataFrame()
    names = dict.fromkeys(n for f in frames for n in f["name"].cat.categories)
    found = pd.concat([f.astype({"name": str}) for f in frames], ignore_index=True)
    found["name"] = pd.Categorical(found["name"], list(names))
    return found.drop_duplicates(ignore_index=True)


def scoreboard(evidence: Evidence) -> list[Verdict]:
    """Return a verdict on each of the paper's claims, by number."""
    return [judge(claim, evidence) for claim in CLAIMS]


def judge(claim: Claim, evidence: Evidence) -> Verdict:
    """Return what the evidence says of one claim."""
    words = claim.words
    about: dict[str, Any] = {"number": claim.number, "claim": words["text"]}
    about |= {name: words[name] for name in ("paper", "tables", "needs")}
    if claim.test is None:
        answered = f"answered from the paper's text and tables, not by a run: {words['answer']}"
        return Verdict(**about, verdict=words["verdict"], grade="text", ours=answered)
    answer = None
    if len(evidence.cells) or len(evidence.further):
        here = evidence.at(claim.scope)
        answer = claim.test(here) if len(here.cells) else None
        answer = leaving(answer, *evidence.left_out(claim.scope))
    if answer is None:
        return Verdict(**about, verdict=NOT_TESTED)
    return Verdict(**about, **_graded(claim, answer))


def _graded(claim: Claim, answer: Answer) -> dict[str, Any]:
    """Return verdict, grade and what they rest on."""
    rows, status = answer.rows, answer.status
    left = [*answer.left_out, *stands_in(rows), *_other_rho(rows)]
    grade = "seen"
    if answer.seeds >= ENOUGH and not _other_rho(rows) and (rows["level"] != OTHER).all():
        exact = (rows["level"] == PAPER).all() and claim.scope.inside(rows).all()
        grade = "decided" if exact and not [*stands_in(rows)] else "indicated"
    inside = claim.scope.inside(rows).any()
    missing = claim.scope.missing(rows) if inside else []
    if missing and claim.scope.settings:
        named = ", ".join(" ".join(f"{p}" for p in place if p is not None) for place in missing)
        left.append(f"not asked in {named}")
        if status == "holds" and grade != "seen":
            status = "open"  # it holds here; the claim is about more
    scales = [scale for scale in rows["scale"].unique() if scale]
    if scales:
        more = f" (and {len(scales) - 1} more)" if len(scales) > 1 else ""
        left.append(f"at another scale: {min(scales, key=len)}{more}")
    if answer.seeds < 2:
        status = {"holds": "yes", "fails": "no"}.get(status, status)
    keys = [c for c in (*SETTING, "attack", "defense", "rho") if c in rows]
    return {
        "verdict": status,
        "grade": grade,
        "ours": answer.ours,
        "seeds": answer.seeds,
        "cells": len(rows[keys].drop_duplicates()),
        "left_out": "; ".join(left),
    }


def _other_rho(rows: pd.DataFrame) -> list[str]:
    """Say where PAM was not run at the paper's rho; a grid has all of its own."""
    if "rho" not in rows or not (rows["defense"] == "pam").any():
        return []
    rows = rows[(rows["defense"] == "pam") & rows["rho"].notna()]
    found = []
    for (dataset, attack), part in rows.groupby(["dataset", "attack"]):
        rho, paper = part["rho"].astype(float), paper_rho(str(dataset), str(attack))
        if paper not in set(rho) and len(rho):
            said = "none" if paper is None else f"{paper:g}"
            found.append(f"PAM at rho {rho.max():g} against {attack} (the paper: {said})")
    return found


def board(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return the scoreboard as a table; what was not tested says what it would take."""
    rows = [
        {**asdict(v), "claim": f"{v.number}. {v.claim}", "ours": v.told, "left out": v.left_out}
        for v in verdicts
    ]
    return pd.DataFrame(rows).drop(columns=["number", "left_out", "needs"])


def text(verdicts: Sequence[Verdict]) -> str:
    """Return the scoreboard as text, by grade; what was not tested says what it would take."""
    lines = []
    for v in sorted(verdicts, key=lambda v: GRADES.index(v.grade) if v.grade else len(GRADES)):
        lines += _wrapped(
            f"{f'{v.grade}: {v.verdict}' if v.grade else v.verdict:18s} ", v.number, v
        )
    return "\n".join([*lines, "", *textwrap.wrap(tally(verdicts), WIDTH)])


def _wrapped(head: str, number: int, v: Verdict) -> list[str]:
    said = f"{head}{number:2d}. {v.claim}"
    rest = [v.told]
    if v.rests:
        rest.append(v.rests + (f"; left out: {v.left_out}" if v.left_out else ""))
    if v.grade:
        rest.append(f"the paper: {v.paper}; its tables: {v.tables}")
    indent = " " * 23
    folded = [
        textwrap.wrap(r, WIDTH, initial_indent=indent, subsequent_indent=indent) for r in rest
    ]
    return [said, *(line for lines in folded for line in lines)]


def markdown(verdicts: Sequence[Verdict]) -> str:
    """Return the claims that were answered as a short Markdown table, and their counts."""
    lines = ["| claim | verdict | ours | the paper | its tables |", "|---|---|---|---|---|"]
    tested = [v for v in verdicts if v.grade]
    for v in sorted(tested, key=lambda v: GRADES.index(v.grade)):
        about = f" ({v.rests})" if v.rests else ""
        said = [f"{v.number}. {v.claim}", f"{v.grade}: {v.verdict}", f"{v.ours}{about}"]
        lines.append(f"| {' | '.join([*said, v.paper, v.tables])} |")
    return "\n".join([f"Rules, version {rules()['version']}. {tally(verdicts)}.", "", *lines])


def tally(verdicts: Sequence[Verdict]) -> str:
    """Return the counts of each grade; grades are not added up."""
    parts = []
    for grade in GRADES:
        counts = dict.fromkeys(ORDER, 0)
        for v in verdicts:
            if v.grade == grade:
                counts[v.verdict] += 1
        shown = ", ".join(f"{count} {said}" for said, count in counts.items() if count)
        name = "from the paper's text and tables" if grade == "text" else grade
        parts.append(f"{name}: {shown or 'none'}")
    left = sum(v.verdict == NOT_TESTED for v in verdicts)
    return f"claims of the paper, by grade: {'; '.join(parts)}; not tested: {left}"
