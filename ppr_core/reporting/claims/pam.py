"""Section D of the claims: path-aware minimization (PAM)."""

from ppr_core.reporting.claims.base import FIVE, TEXT, Claim, gap, of_several, on_others
from ppr_core.reporting.evidence import (
    BASELINES,
    FAR,
    HIGH,
    LITTLE,
    LOW,
    NEAR,
    Answer,
    Evidence,
    all_of,
    at_least,
    at_most,
    falls,
    rises,
)

PAM = "PAM through RA"
GRID = "a rho grid of PAM, through RA"


def _above_baselines(e: Evidence) -> Answer:
    best = min(e.each("p_asr").values(), default=float("nan"))
    return at_least(best - e.mean("p_asr", "pam"), FAR, "best baseline's P-ASR above PAM's")


def _small_rise(e: Evidence) -> Answer:
    return at_most(e.mean("p_asr", "pam") - e.mean("o_asr", "pam"), 3.0, "rise")


def _proxy(e: Evidence) -> Answer:
    found = e.along_rho("p_asr")
    if not len(found) or found.index[0] != 0:
        return None
    return all_of(
        at_least(float(found.iloc[0]), HIGH, "P-ASR at rho 0"),
        falls(found, FAR, "P-ASR"),
    )


def _range(e: Evidence, column: str) -> float:
    found = e.along_rho(column)
    return float(found.max() - found.min()) if len(found) > 1 else float("nan")


def _flat_above(e: Evidence) -> Answer:
    found = e.along_rho("p_asr")
    found = found[found.index >= 0.3]
    if len(found) < 2:
        return None
    return at_most(float(found.max() - found.min()), LOW, "range of P-ASR from rho 0.3")


CLAIMS = [
    Claim(
        41,
        "PAM's P-ASR is below 4.5 %",
        PAM,
        lambda e: at_most(e.mean("p_asr", "pam"), 4.5, "P-ASR"),
    ),
    Claim(
        42,
        "PAM is comparable to EP after RA",
        "PAM and ep through RA",
        lambda e: at_most(gap(e, "p_asr", "pam", "ep"), NEAR, "P-ASR of PAM above EP's"),
    ),
    Claim(
        43,
        "PAM is far more robust than the baselines",
        FIVE + ", and PAM",
        of_several(_above_baselines),
    ),
    Claim(
        44, "PAM's O-ASR is below 2 %", PAM, lambda e: at_most(e.mean("o_asr", "pam"), 2.0, "O-ASR")
    ),
    Claim(
        45,
        "PAM costs about 2 points of C-Acc",
        PAM,
        lambda e: at_most(gap(e, "o_c_acc", "none", "pam"), 2.0 + 1.0, "C-Acc lost"),
    ),
    Claim(46, "PAM's ASR rises by less than 3 points under RA", PAM, _small_rise),
    Claim(
        47,
        "PAM's ASR rises by less than 3 points at 1 %, too",
        "a study of PAM at 1 %",
        lambda e: _small_rise(e.at(poison_rate=0.01)),
    ),
    Claim(
        48,
        "PAM's ASR rises by less than 3 points on CIFAR-100 and Tiny-ImageNet, too",
        "studies of PAM on both",
        on_others(_small_rise),
    ),
    Claim(
        49,
        "PAM keeps a good C-Acc among the baselines",
        FIVE + ", and PAM",
        of_several(
            lambda e: at_least(
                gap(e, "o_c_acc", "pam", BASELINES), -LITTLE, "C-Acc above the baselines' mean"
            )
        ),
    ),
    Claim(50, "Inverted triggers alone do not hold; the path step does", GRID + " from 0", _proxy),
    Claim(
        51,
        "A larger rho raises the barrier",
        GRID + ", with the measure path",
        lambda e: rises(e.along_rho("barrier"), 0.0, "barrier"),
    ),
    Claim(
        52,
        "A larger rho costs a little C-Acc",
        GRID,
        lambda e: all_of(
            falls(e.along_rho("o_c_acc"), 0.0, "C-Acc"),
            at_most(_range(e, "o_c_acc"), NEAR, "range of C-Acc"),
        ),
    ),
    Claim(
        53,
        "A larger rho gains robustness",
        GRID,
        lambda e: falls(e.along_rho("p_asr"), FAR, "P-ASR"),
    ),
    Claim(54, "Above 0.3, rho matters little", GRID, _flat_above),
    Claim(55, "rho is chosen so that C-Acc stays above 92 %", TEXT),
    Claim(
        56,
        "A larger rho deviates further",
        GRID + ", with the measure path",
        lambda e: rises(e.along_rho("distance"), 0.0, "distance"),
    ),
    Claim(
        57,
        "BTI with SAM does not reach PAM",
        "bti_sam and PAM through RA",
        lambda e: at_least(gap(e, "p_asr", "bti_sam", "pam"), FAR, "P-ASR above PAM's"),
    ),
    Claim(58, "Results are means of three seeds, with errors", TEXT),
]
