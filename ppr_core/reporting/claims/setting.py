"""Section E of the claims: what every study rests on."""

from ppr_core.reporting.claims.base import ALL, EVERY, Answer, Claim, each_in
from ppr_core.reporting.evidence import SETTING, Evidence, Scope
from ppr_core.reporting.rules import bounds


def _implanted(e: Evidence) -> Answer | None:
    return each_in(e.of("none", "o_asr"), "o_asr", bounds(59), "ASR", SETTING)


def _purify(e: Evidence) -> Answer | None:
    rows = e.baselines("o_asr")
    if rows["defense"].nunique() < 2:
        return None
    return each_in(rows, "o_asr", bounds(60), "O-ASR")


CLAIMS = [
    Claim(59, Scope(EVERY), _implanted, ("none",)),
    Claim(60, Scope(EVERY), _purify, ALL),
]
