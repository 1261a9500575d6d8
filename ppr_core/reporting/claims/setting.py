"""Section E of the claims: what every study rests on."""

from ppr_core.reporting.claims.base import FIVE, Claim
from ppr_core.reporting.evidence import IMPLANTED, at_least, every
from ppr_core.reporting.results import PURIFIED_BELOW

CLAIMS = [
    Claim(
        59,
        "The attacks implant",
        "a backdoored model",
        lambda e: at_least(e.mean("o_asr", "none"), IMPLANTED, "ASR"),
    ),
    Claim(
        60,
        "The baselines purify",
        FIVE,
        lambda e: every(e.each("o_asr"), lambda v: v <= PURIFIED_BELOW, "O-ASR"),
    ),
]
