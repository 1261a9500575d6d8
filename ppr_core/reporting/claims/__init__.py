"""The 60 testable claims of the paper, each with the question that decides it; and our verdicts."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.reporting import results
from ppr_core.reporting.claims import pam, paths, query, retuning, setting
from ppr_core.reporting.claims.base import Claim, awake, leaving
from ppr_core.reporting.claims.grades import graded
from ppr_core.reporting.evidence import FRAMES, LOST, Evidence
from ppr_core.reporting.rules import rules
from ppr_core.reporting.setting import with_settings

CLAIMS = [*retuning.CLAIMS, *query.CLAIMS, *paths.CLAIMS, *pam.CLAIMS, *setting.CLAIMS]
GRADES = ("decided", "indicated", "seen", "text")
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
    if not len(evidence.cells) and not len(evidence.further):
        return Verdict(**about, verdict=NOT_TESTED)
    here = evidence.at(claim.scope, any_accuracy=claim.accuracy)
    answer = claim.test(here) if len(here.cells) else None
    left = evidence.left_out(claim.scope, claim.names, any_accuracy=claim.accuracy)
    if answer is None:
        left += filter(None, [awake(here.of(claim.names, "o_asr"))])
        return Verdict(**about, verdict=NOT_TESTED, left_out="; ".join(left))
    if answer.status == "holds" and _lost(claim, evidence):
        answer = replace(answer, status="open")
    told = leaving(answer, *left) or answer
    return Verdict(**about, **graded(claim, told, here))


def _lost(claim: Claim, evidence: Evidence) -> bool:
    """Tell whether a model of PAM lost its accuracy, so that a claim about PAM is about more."""
    if "pam" not in claim.names or claim.grid or claim.accuracy:
        return False
    rows = evidence.finished
    lost = (rows["defense"] == "pam") & rows["stands"] & evidence.why[False].str.startswith(LOST)
    return bool(len(claim.scope.choose(rows[lost])))


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
    """Return the claims that were answered as a Markdown table, and their counts."""
    lines = ["| claim | verdict | ours | the paper | its tables |", "|---|---|---|---|---|"]
    tested = [v for v in verdicts if v.grade]
    for v in sorted(tested, key=lambda v: GRADES.index(v.grade)):
        about = f" ({v.rests})" if v.rests else ""
        about += f". Left out: {v.left_out}" if v.left_out else ""
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
