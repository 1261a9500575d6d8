"""Section C of the claims: linear mode connectivity."""

from ppr_core.reporting.claims.base import Claim, gap, on_others
from ppr_core.reporting.evidence import (
    AWAY,
    BASELINES,
    FAR,
    LITTLE,
    LOW,
    Answer,
    Evidence,
    all_of,
    at_least,
    at_most,
    every,
    explains,
)

PATH = "the measure path"


def _barriers(e: Evidence) -> Answer:
    return every(e.each("barrier", purified=True), lambda v: v >= LOW, "barrier")


def _connected(e: Evidence) -> Answer:
    found = {name: float(e.line([name], "purified").min()) for name in e.each("o_asr")}
    found = {name: value for name, value in found.items() if value == value}
    return every(found, lambda v: v >= AWAY, "lowest backdoor error on the path to EP")


def _exact_far(e: Evidence) -> Answer:
    line = e.line(["ep"])
    return at_least(float(line[line.index >= 0.2].min()), AWAY, "EP's lowest error from t = 0.2")


def _wake_early(e: Evidence) -> Answer:
    found = {}
    for name in e.each("o_asr"):
        line = e.line([name])
        if len(line):
            found[name] = 100 - float(line[line.index < 0.5].iloc[-1])
    exact = e.line(["ep"])
    rest = 100 - float(exact[exact.index < 0.5].iloc[-1]) if len(exact) else float("nan")
    return all_of(
        every(found, lambda v: v > FAR, "ASR at the last point before t = 0.5"),
        at_most(rest, LITTLE, "EP's ASR there"),
    )


def _between(e: Evidence) -> Answer:
    found = {}
    for name in e.each("o_asr"):
        line = e.line([name])
        if len(line) > 2:
            found[name] = float(line.iloc[-1] - line.iloc[-2])
    return every(found, lambda v: v >= 0, "ASR gained one point before the end")


def _alike_and_not(e: Evidence) -> Answer:
    to_ep, home, exact = e.line(["bti"], "purified"), e.line(["bti"]), e.line(["ep"])
    return all_of(
        at_least(float(to_ep.min()), AWAY, "lowest error from BTI to EP"),
        at_least(float((home - exact).abs().mean()), LOW, "distance of their curves to W0"),
    )


def _higher_barrier(e: Evidence) -> Answer:
    return at_least(
        gap(e, "barrier", "pam", BASELINES), 0, "PAM's barrier above the baselines' mean"
    )


def _pam_line(e: Evidence) -> Answer:
    ours, exact = e.line(["pam"]), e.line(["ep"])
    return at_most(float((ours - exact).abs().mean()), LOW, "mean distance of the two curves")


CLAIMS = [
    Claim(29, "Every purified model lies behind a barrier", PATH, _barriers),
    Claim(30, "No barrier between EP and the others", "the measure connection", _connected),
    Claim(31, "EP's backdoor error stays high from t = 0.2", PATH, _exact_far),
    Claim(32, "The others regain 20 % ASR before t = 0.5, EP 2 % at most", PATH, _wake_early),
    Claim(33, "How far along the path explains P-ASR", PATH, explains),
    Claim(34, "Between W0 and W the ASR is higher than at W", PATH, _between),
    Claim(
        35,
        "BTI is like EP on the way to EP, and unlike on the way to W0",
        "the measure connection, with bti",
        _alike_and_not,
    ),
    Claim(36, "PAM's barrier is above the baselines'", PATH, _higher_barrier),
    Claim(
        37,
        "PAM's barrier is above the baselines' at 1 %, too",
        "a study at 1 %, with the measure path",
        lambda e: _higher_barrier(e.at(poison_rate=0.01)),
    ),
    Claim(
        38,
        "PAM's barrier is above the baselines' on CIFAR-100 and Tiny-ImageNet, too",
        "studies of both, with the measure path",
        on_others(_higher_barrier),
    ),
    Claim(
        39,
        "Clean error has almost no barrier",
        PATH,
        lambda e: at_most(
            float(e.cells["clean_barrier"].astype(float).max())
            if "clean_barrier" in e.cells
            else float("nan"),
            LITTLE,
            "largest barrier",
        ),
    ),
    Claim(40, "PAM's path is like EP's", PATH, _pam_line),
]
