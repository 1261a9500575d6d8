"""Section B of the claims: query-based reactivation (QRA)."""

from ppr_core.reporting.claims.base import TEXT, Claim, varied
from ppr_core.reporting.evidence import (
    BASELINES,
    FAR,
    HIGH,
    LOW,
    Answer,
    Evidence,
    all_of,
    at_least,
    at_most,
    every,
)

QRA = "the measure query"


def _controls(e: Evidence) -> Answer:
    """An ordinary perturbation takes clean images along; one that wakes a backdoor does not."""
    gaps = [
        e.woken(what, BASELINES) - e.woken(what, BASELINES, "c_asr")
        for what in ("qra", "universal")
    ]
    return at_least(gaps[0] - gaps[1], FAR, "P-ASR over C-ASR: QRA's gap above a universal one's")


def _query_everywhere(e: Evidence) -> Answer:
    found = {s: here.mean("q_p_asr", BASELINES) for s, here in e.settings().items()}
    found = {setting: value for setting, value in found.items() if value == value}
    if not varied(found, 1, 2):
        return None
    named = {f"{dataset} {model} {rate:g}": v for (dataset, model, rate), v in found.items()}
    return every(named, lambda v: v >= HIGH, "P-ASR")


CLAIMS = [
    Claim(
        20,
        "QRA raises ASR by 66 points on average",
        QRA,
        lambda e: at_least(
            e.mean("q_p_asr", BASELINES) - e.mean("o_asr", BASELINES), 66.13 - FAR, "rise"
        ),
    ),
    Claim(
        21,
        "QRA leaves clean images alone",
        QRA,
        lambda e: at_most(e.mean("q_c_asr", BASELINES), LOW, "C-ASR"),
    ),
    Claim(
        22,
        "QRA does nothing to the clean model",
        QRA,
        lambda e: all_of(
            at_most(e.mean("q_c_asr", "clean"), LOW, "C-ASR"),
            at_most(e.mean("q_p_asr", "clean"), LOW, "P-ASR"),
        ),
    ),
    Claim(
        23,
        "Eq. 1 alone attacks the clean model, too",
        "the measure query_alone",
        lambda e: at_least(e.woken("qra, no surrogate", ["clean"]), HIGH, "P-ASR"),
    ),
    Claim(
        24,
        "The surrogate's term removes that",
        "the measure query_alone",
        lambda e: at_least(
            e.woken("qra, no surrogate", ["clean"]) - e.woken("qra", ["clean"]), FAR, "fall"
        ),
    ),
    Claim(
        25,
        "QRA is no ordinary adversarial perturbation",
        "the measures query and controls",
        _controls,
    ),
    Claim(
        26,
        "QRA transfers: 32 % ASR on the other models",
        "the measure transfer",
        lambda e: at_least(
            float(e.transfers["p_asr"].mean()) if len(e.transfers) else float("nan"),
            32.1 - FAR,
            "P-ASR on the others",
        ),
    ),
    Claim(
        27,
        "QRA works at other rates and on other models",
        "studies of two rates and two models, with the measure query",
        _query_everywhere,
    ),
    Claim(28, "QRA needs queries only", TEXT),
]
