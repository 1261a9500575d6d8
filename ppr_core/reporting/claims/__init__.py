"""The 60 testable claims of the paper, each with the question that decides it; and our verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.reporting import results
from ppr_core.reporting.claims import pam, paths, query, retuning, setting
from ppr_core.reporting.claims.base import TEXT, Claim
from ppr_core.reporting.evidence import Evidence

__all__ = [
    "CLAIMS",
    "TEXT",
    "Claim",
    "Verdict",
    "board",
    "gather",
    "judge",
    "scoreboard",
    "tally",
    "text",
]

CLAIMS = [*retuning.CLAIMS, *query.CLAIMS, *paths.CLAIMS, *pam.CLAIMS, *setting.CLAIMS]


@dataclass(frozen=True)
class Verdict:
    """What our runs say of one claim."""

    number: int
    claim: str
    verdict: Literal["holds", "fails", "not tested"]
    ours: str
    needs: str


def gather(plan: Plan, store: Store, further: Sequence[Plan] = ()) -> Evidence:
    """Read what a study's runs say from the store.

    Args:
        plan: of the study that decides.
        store: that holds the runs.
        further: other studies, for the claims that span several data sets, models or rates.
    """
    return Evidence(
        results.cells(plan, store),
        results.queries(plan, store),
        results.transfers(plan, store),
        results.paths(plan, store),
        results.histories(plan, store, "retuned"),
        pd.concat([pd.DataFrame(), *(results.cells(other, store) for other in further)]),
    )


def scoreboard(evidence: Evidence) -> list[Verdict]:
    """Return a verdict on each of the paper's claims, by number."""
    return [judge(claim, evidence) for claim in CLAIMS]


def judge(claim: Claim, evidence: Evidence) -> Verdict:
    """Return what the evidence says of one claim."""
    answer = claim.test(evidence) if claim.test and len(evidence.cells) else None
    verdict = "not tested" if answer is None else "holds" if answer[0] else "fails"
    return Verdict(claim.number, claim.text, verdict, answer[1] if answer else "", claim.needs)


def board(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return the scoreboard as a table; what was not tested says what it would take."""
    return pd.DataFrame(
        {
            "claim": [f"{v.number}. {v.claim}" for v in verdicts],
            "verdict": [v.verdict for v in verdicts],
            "ours": [v.ours or f"needs {v.needs}" for v in verdicts],
        }
    )


def text(verdicts: Sequence[Verdict]) -> str:
    """Return the scoreboard as text, a claim a line: what was tested first, then what it takes."""
    ranked = sorted(verdicts, key=lambda v: v.verdict == "not tested")
    lines = [
        f"{v.verdict:10s} {v.number:3d}. {v.claim}: {v.ours or f'needs {v.needs}'}" for v in ranked
    ]
    return "\n".join([*lines, tally(verdicts)])


def tally(verdicts: Sequence[Verdict]) -> str:
    """Return the counts in one line."""
    counts = {name: sum(v.verdict == name for v in verdicts) for name in ("holds", "fails")}
    left = len(verdicts) - sum(counts.values())
    return (
        f"claims of the paper, by this study's runs: {counts['holds']} hold, "
        f"{counts['fails']} fail, {left} not tested"
    )
