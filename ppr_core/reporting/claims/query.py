"""Section B of the claims: query-based reactivation (QRA).

Every generator is learnt on a purified model and scored on five; the columns of `results.cells`
say which (q: the authors' code, qe: eq. 2 with EP as surrogate, q1: eq. 1 alone).
"""

import pandas as pd

from ppr_core.reporting.claims.base import (
    CIFAR10,
    MAIN,
    RARE,
    Answer,
    Claim,
    all_of,
    awake,
    leaving,
    mean_in,
    of_baselines,
    of_purified,
    stands_in,
)
from ppr_core.reporting.claims.rules import bounds, tolerance, within
from ppr_core.reporting.evidence import SETTING, Evidence, Scope, Span, purified
from ppr_core.reporting.results import among

# The clean model counts where EP is the surrogate. Where it was itself the surrogate, its low
# score is trained in: the clean model counts that no generator saw.
CONTROLS = {"qe": "qe_clean", "q": "q_unseen"}
WHERE = Scope(
    (*RARE, *(place for place in CIFAR10 if place not in MAIN)),
    {"attack": ["badnet", "blended"]},
)


def _rise(e: Evidence) -> Answer | None:
    rows = e.baselines("o_asr", "q_p_asr")
    rows = rows.assign(rise=rows["q_p_asr"] - rows["o_asr"])
    return of_purified(lambda k: mean_in(k, "rise", bounds(20), "rise"), rows, least=2)


def _stays_low(rows: pd.DataFrame, column: str) -> Answer | None:
    return of_purified(lambda kept: mean_in(kept, column, bounds(22), column), rows)


def _control(e: Evidence) -> Answer | None:
    """Judge by the paper's form (EP as surrogate) where it was run, else by the unseen model."""
    for form, control in CONTROLS.items():
        rows = e.baselines("o_asr", f"{control}_c_asr", f"{control}_p_asr")
        if not len(rows):
            continue
        parts = [_stays_low(rows, f"{control}_{what}_asr") for what in ("c", "p")]
        if form == "q":
            return leaving(all_of(*parts), "eq. 2 with EP as surrogate (query_ep): not measured")
        return all_of(*parts)
    return None


def _removed(e: Evidence) -> Answer | None:
    rows = e.baselines("o_asr", "q1_clean_p_asr", "qe_clean_p_asr", "qe_p_asr")
    rows = rows.assign(
        fall=rows["q1_clean_p_asr"] - rows["qe_clean_p_asr"],
        rise=rows["qe_p_asr"] - rows["o_asr"],
    )
    return all_of(
        of_purified(lambda k: mean_in(k, "fall", bounds(24), "fall on the clean model"), rows),
        of_purified(
            lambda k: mean_in(k, "rise", within(tolerance("far")), "rise kept on purified models"),
            rows,
        ),
    )


def _no_ordinary(e: Evidence) -> Answer | None:
    """An ordinary perturbation takes clean models and clean images along; this one does not."""
    rows = e.baselines("o_asr", "q_p_asr", "q_unseen_p_asr")
    rows = rows.assign(gap=rows["q_p_asr"] - rows["q_unseen_p_asr"])
    what = "P-ASR above the unseen clean model's"
    return all_of(
        of_purified(lambda k: mean_in(k, "gap", bounds(25), what), rows),
        _above_universal(e, purified(rows)),
    )


def _above_universal(e: Evidence, rows: pd.DataFrame) -> Answer | None:
    if not len(e.queries) or not len(rows):
        return None
    keys = [c for c in (*SETTING, "attack", "defense", "seed") if c in e.queries]
    points = e.queries[e.queries["eps"] == e.queries["eps"].max()]
    points = points.merge(rows[keys].drop_duplicates(), on=keys)
    gap = (points["p_asr"] - points["c_asr"]).groupby([points["perturbation"], points["seed"]])
    gap = gap.mean().unstack(0).reindex(columns=["qra", "universal"])
    gap = (gap["qra"] - gap["universal"]).dropna()
    if not len(gap):
        return None
    span = Span.of(gap)
    text = f"P-ASR over C-ASR: QRA's gap above a universal one's {span}"
    return Answer(span.against(*bounds(25)), text, rows, span.seeds)


def _transfer(e: Evidence) -> Answer | None:
    """Among purified baselines only: neither FT, PAM and oracles, nor what is not purified."""
    if not len(e.transfers):
        return None
    rows = e.baselines("o_asr")
    kept = purified(rows)
    keys = [c for c in (*SETTING, "attack", "seed") if c in e.transfers]
    pairs = among(e.transfers, kept, ("source", "target"), keys)
    pairs = pairs[pairs["source"] != pairs["target"]]
    if pairs["source"].nunique() < 2:
        return None
    span = Span.of(pairs.groupby("seed")["p_asr"].mean())
    text = f"P-ASR on the others {span} over {len(pairs)} pairs"
    used = kept[kept["defense"].isin({*pairs["source"], *pairs["target"]})]
    found = Answer(span.against(*bounds(26)), text, used, span.seeds)
    dropped = len(e.transfers) - len(pairs)
    why = f"{dropped} pairs with a model that is no purified baseline" if dropped else ""
    return leaving(found, why, awake(rows), *stands_in(used))


def _everywhere(e: Evidence) -> Answer | None:
    rows = e.baselines("o_asr", "q_p_asr")
    kept = purified(rows)
    if kept["model"].nunique() < 2 or kept["poison_rate"].nunique() < 2:
        return None
    return of_baselines(27, "q_p_asr", "P-ASR", SETTING)(e)


CLAIMS = [
    Claim(20, Scope(MAIN), _rise),
    Claim(21, Scope(MAIN), of_baselines(21, "q_c_asr", "C-ASR")),
    Claim(22, Scope(MAIN), _control),
    Claim(23, Scope(MAIN), of_baselines(23, "q1_clean_p_asr", "P-ASR", mean=True)),
    Claim(24, Scope(MAIN), _removed),
    Claim(25, Scope(MAIN), _no_ordinary),
    Claim(26, Scope(MAIN), _transfer),
    Claim(27, WHERE, _everywhere),
    Claim(28),
]
