"""Section B of the claims: query-based reactivation (QRA).

Every generator is learnt on a purified model and scored on five; the columns of `results.cells`
say which (q: the authors' code, qe: eq. 2 with EP as surrogate, q1: eq. 1 alone).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from ppr_core.reporting.claims.base import (
    ALL,
    CIFAR10,
    MAIN,
    RARE,
    Answer,
    Claim,
    Test,
    all_of,
    awake,
    each_in,
    leaving,
    mean_in,
    of_baselines,
    of_purified,
    resting,
    stands_in,
)
from ppr_core.reporting.evidence import SETTING, Evidence, Scope, Span, by_seed, purified
from ppr_core.reporting.results import WOKEN_BY
from ppr_core.reporting.rules import Limits, bounds, threshold, within

# Form -> the models without the backdoor that count. Where EP is the surrogate, the clean model;
# where that was the surrogate, its low score is trained in: the one that no generator saw, and EP.
ENDS = {"qe": ("clean",), "q": ("unseen", "ep")}
CONTROLS = {form: f"{form}_{ends[0]}" for form, ends in ENDS.items()}  # what figures show
ROWS = {"qe": "qra, eq. 2", "q": "qra"}  # what the points of a form are called
MODELS = {"clean": "the clean model", "unseen": "the unseen clean model", "ep": "EP"}
WHERE = Scope(
    (*RARE, *(place for place in CIFAR10 if place not in MAIN)),
    {"attack": ["badnet", "blended"]},
)
Asked = Callable[[Evidence, pd.DataFrame, str], Answer | None]


def _in_both_forms(ask: Asked, *, controlled: bool = False) -> Test:
    """Ask of the paper's form, and say what the authors' shows beside it, or in its place.

    Args:
        ask: of the evidence, the baselines' rows and the form.
        controlled: whether scores on a model without the backdoor are needed, too.
    """

    def test(e: Evidence) -> Answer | None:
        found = {}
        for form, ends in ENDS.items():
            control = [f"{form}_{ends[0]}_{what}_asr" for what in "cp"] if controlled else []
            found[form] = ask(e, e.baselines("o_asr", f"{form}_p_asr", *control), form)
        paper, authors = found["qe"], found["q"]
        if paper is None:
            missing = "eq. 2 with EP as surrogate (query_ep): not measured, the authors' form is"
            return leaving(authors and replace(authors, indirect=True), missing)
        beside = f"; the authors' form: {authors.ours} ({authors.status})" if authors else ""
        return replace(paper, ours=paper.ours + beside)

    return test


def _risen(rows: pd.DataFrame, form: str) -> pd.DataFrame:
    return rows.assign(rise=rows[f"{form}_p_asr"] - rows["o_asr"])


def _rise(e: Evidence, rows: pd.DataFrame, form: str) -> Answer | None:
    return of_purified(lambda k: mean_in(k, "rise", bounds(20), "rise"), _risen(rows, form))


def _of_working(
    ask: Callable[[pd.DataFrame], Answer | None], rows: pd.DataFrame, form: str
) -> Answer | None:
    """Ask of generators that wake their model: one that does nothing leaves all else alone, too."""

    def working(kept: pd.DataFrame) -> Answer | None:
        works = kept[kept["rise"] >= WOKEN_BY]
        idle = len(kept) - len(works)
        why = f"{idle} of {len(kept)} generators that lift ASR by less than {WOKEN_BY:g} points"
        found = ask(works) if works["defense"].nunique() > 1 else None
        return leaving(found, why if idle else "")

    return of_purified(working, _risen(rows, form))


def _clean_images(e: Evidence, rows: pd.DataFrame, form: str) -> Answer | None:
    column = f"{form}_c_asr"
    if column not in rows:
        return None
    return _of_working(lambda k: each_in(k, column, bounds(21), "C-ASR"), rows, form)


def _control(e: Evidence, rows: pd.DataFrame, form: str) -> Answer | None:
    def ask(kept: pd.DataFrame) -> Answer | None:
        parts = [
            each_in(kept, f"{form}_{end}_{what}_asr", bounds(22), f"{what.upper()}-ASR on {name}")
            for end, name in _ends(kept, form).items()
            for what in "cp"
        ]
        return all_of(*parts)

    return _of_working(ask, rows, form)


def _ends(rows: pd.DataFrame, form: str) -> dict[str, str]:
    """Return the controls of a form that were scored, with their names."""
    scored = [end for end in ENDS[form] if rows.get(f"{form}_{end}_p_asr") is not None]
    return {end: MODELS[end] for end in scored if rows[f"{form}_{end}_p_asr"].notna().any()}


def _above_control(
    rows: pd.DataFrame, form: str, limits: Limits, by: Sequence[str] = ()
) -> Answer | None:
    """Ask whether P-ASR is above that on the models without the backdoor, the highest of them."""
    ends = _ends(rows, form)
    if not ends:
        return None
    highest = rows[[f"{form}_{end}_p_asr" for end in ends]].astype(float).max(axis=1)
    rows = rows.assign(gap=rows[f"{form}_p_asr"] - highest)
    what = f"P-ASR above that on {' and '.join(ends.values())}"
    if by:
        return of_purified(lambda k: each_in(k, "gap", limits, what, by), rows)
    return of_purified(lambda k: mean_in(k, "gap", limits, what), rows)


def _removed(e: Evidence) -> Answer | None:
    rows = e.baselines("o_asr", "q1_clean_p_asr", "qe_clean_p_asr", "qe_p_asr")
    rows = _risen(rows, "qe").assign(fall=rows["q1_clean_p_asr"] - rows["qe_clean_p_asr"])
    low, far = within(high=threshold("low")), within(threshold("far"))

    def ask(kept: pd.DataFrame) -> Answer | None:
        return all_of(
            mean_in(kept, "fall", bounds(24), "fall on the clean model"),
            mean_in(kept, "qe_clean_p_asr", low, "P-ASR left there"),
            mean_in(kept, "rise", far, "rise kept on purified models"),
        )

    return of_purified(ask, rows)


def _no_ordinary(e: Evidence, rows: pd.DataFrame, form: str) -> Answer | None:
    """An ordinary perturbation takes clean models and clean images along; this one does not."""
    return all_of(
        _above_control(rows, form, bounds(25)),
        _above_universal(e, purified(rows), form),
    )


def _above_universal(e: Evidence, rows: pd.DataFrame, form: str) -> Answer | None:
    """Compare on the model itself, at the paper's budget or the largest below it."""
    if not len(e.queries) or not len(rows):
        return None
    keys = [c for c in (*SETTING, "attack", "defense", "seed") if c in e.queries]
    paper = threshold("budget") / 255
    points = e.queries[(e.queries["scored"] == "self") & (e.queries["eps"] <= paper + 1e-6)]
    points = points[points["eps"] == points["eps"].max()].merge(rows[keys].drop_duplicates())
    over = points.assign(over=points["p_asr"] - points["c_asr"])
    over = over.pivot_table(index=keys, columns="perturbation", values="over")
    if not len(over) or not {ROWS[form], "universal"} <= {*over}:
        return None
    gap = (over[ROWS[form]] - over["universal"]).dropna().rename("gap").reset_index()
    what = "P-ASR over C-ASR: QRA's gap above a universal one's"
    found = resting(mean_in(gap, "gap", bounds(25), what), rows.merge(gap[keys]))
    eps = 255 * float(points["eps"].max())
    return leaving(found, f"at {eps:g}/255" if eps < 255 * paper - 1e-3 else "")


def _transfer(e: Evidence) -> Answer | None:
    """Among purified baselines only: neither FT, PAM and oracles, nor what is not purified."""
    if not len(e.transfers):
        return None
    rows = e.baselines("o_asr")
    kept = purified(rows)
    pairs, keys = e.between(kept)
    if pairs["source"].nunique() < 2:
        return None
    span = Span.of(by_seed(pairs, "p_asr", (*SETTING, "attack", "source", "target")))
    text = f"P-ASR on the others {span} over {len(pairs)} pairs"
    ends = [
        pairs[[*keys, end]].set_axis([*keys, "defense"], axis=1) for end in ("source", "target")
    ]
    used = kept.merge(pd.concat(ends).drop_duplicates())
    found = Answer(span.against(bounds(26)), text, used, span.seeds)
    dropped = len(e.transfers) - len(pairs)
    why = f"{dropped} pairs with a model that is no purified baseline" if dropped else ""
    return leaving(found, why, awake(rows), *stands_in(used))


def _everywhere(e: Evidence, rows: pd.DataFrame, form: str) -> Answer | None:
    kept = purified(rows)
    if kept["model"].nunique() < 2 or kept["poison_rate"].nunique() < 2:
        return None
    column = f"{form}_p_asr"
    return all_of(
        of_purified(lambda k: each_in(k, column, bounds(27), "P-ASR", SETTING), rows),
        _above_control(rows, form, within(threshold("far")), SETTING),
    )


CLAIMS = [
    Claim(20, Scope(MAIN), _in_both_forms(_rise), ALL),
    Claim(21, Scope(MAIN), _in_both_forms(_clean_images), ALL),
    Claim(22, Scope(MAIN), _in_both_forms(_control, controlled=True), ALL),
    Claim(23, Scope(MAIN), of_baselines(23, "q1_clean_p_asr", "P-ASR", mean=True), ALL),
    Claim(24, Scope(MAIN), _removed, ALL),
    Claim(25, Scope(MAIN), _in_both_forms(_no_ordinary, controlled=True), ALL),
    Claim(26, Scope(MAIN), _transfer, ALL),
    Claim(27, WHERE, _in_both_forms(_everywhere, controlled=True), ALL),
    Claim(28),
]
