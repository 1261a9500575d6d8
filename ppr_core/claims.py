"""The 60 testable claims of the paper, each with the question that decides it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ppr_core import results
from ppr_core.evidence import (
    AWAY,
    BASELINES,
    FAR,
    HIGH,
    IMPLANTED,
    LITTLE,
    LOW,
    NEAR,
    Answer,
    Evidence,
    all_of,
    at_least,
    at_most,
    every,
    explains,
    falls,
)
from ppr_core.plan import Plan
from ppr_core.results import PURIFIED_BELOW
from ppr_core.tracking import Store

Test = Callable[[Evidence], Answer]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, in short, and how a study's runs decide it.

    Attributes:
        number: as in the list of testable claims; sections A to E.
        text: the claim, in our words.
        needs: what a run has to measure before there is a verdict.
        test: the question; None where no run can answer it.
    """

    number: int
    text: str
    needs: str
    test: Test | None = None


@dataclass(frozen=True)
class Verdict:
    """What our runs say of one claim."""

    number: int
    claim: str
    verdict: Literal["holds", "fails", "not tested"]
    ours: str
    needs: str


def _pam_line(e: Evidence) -> Answer:
    ours, exact = e.line(["pam"]), e.line(["ep"])
    return at_most(float((ours - exact).abs().mean()), LOW, "mean distance of the two curves")


def _barriers(e: Evidence) -> Answer:
    if "barrier" not in e.cells:
        return None
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


def _gap(e: Evidence, column: str, who: str, other: str) -> float:
    return e.mean(column, who) - e.mean(column, other)


def _above_baselines(e: Evidence) -> Answer:
    best = min(e.each("p_asr").values(), default=float("nan"))
    return at_least(best - e.mean("p_asr", "pam"), FAR, "best baseline's P-ASR above PAM's")


def _higher_barrier(e: Evidence) -> Answer:
    if "barrier" not in e.cells:
        return None
    mean = e.mean("barrier", BASELINES)
    return at_least(e.mean("barrier", "pam") - mean, 0, "PAM's barrier above the baselines' mean")


def _small_rise(e: Evidence) -> Answer:
    return at_most(e.mean("p_asr", "pam") - e.mean("o_asr", "pam"), 3.0, "rise")


def _on_others(test: Test) -> Test:
    """Ask on CIFAR-100 and on Tiny-ImageNet."""

    def asked(e: Evidence) -> Answer:
        found = {name: test(e.at(dataset=name)) for name in ("cifar100", "tiny_imagenet")}
        return all_of(*(a and (a[0], f"{name}: {a[1]}") for name, a in found.items()))

    return asked


def _varied(settings: Iterable[tuple], *places: int) -> bool:
    """Tell whether there are settings of two data sets (0), models (1), or rates (2)."""
    return all(len({setting[place] for setting in settings}) > 1 for place in places)


def _same_everywhere(e: Evidence) -> Answer:
    rises: dict[str, dict[tuple, float]] = {}
    for setting, here in e.settings().items():
        for name, after in here.each("p_asr", purified=True).items():
            rise = after - here.mean("o_asr", name, purified=True)
            rises.setdefault(name, {})[setting] = rise
    if not _varied({setting for found in rises.values() for setting in found}, 0, 1, 2):
        return None
    several = {name: list(found.values()) for name, found in rises.items() if len(found) > 1}
    ranges = {name: max(found) - min(found) for name, found in several.items()}
    return every(ranges, lambda v: v <= FAR, "range of the rise")


def _query_everywhere(e: Evidence) -> Answer:
    found = {s: _column(here, "q_p_asr", BASELINES) for s, here in e.settings().items()}
    found = {setting: value for setting, value in found.items() if value == value}
    if not _varied(found, 1, 2):
        return None
    named = {f"{dataset} {model} {rate:g}": v for (dataset, model, rate), v in found.items()}
    return every(named, lambda v: v >= HIGH, "P-ASR")


def _most_fail(e: Evidence) -> Answer:
    found = e.each("o_asr")
    if len(found) < 2:
        return None
    left = sum(value > PURIFIED_BELOW for value in found.values())
    text = f"{left} of {len(found)} baselines leave an O-ASR above {PURIFIED_BELOW:g}"
    return left > len(found) / 2, text


def _most_fail_below_one_percent(e: Evidence) -> Answer:
    rates = e.at().cells["poison_rate"].unique()
    return _most_fail(e.at(poison_rate=[rate for rate in rates if rate < 0.01]))


def _pretrained_gain(e: Evidence) -> Answer:
    scratch = e.at(model=["resnet18", "resnet18_imagenet from scratch"])
    gain = e.at(model="resnet18_imagenet").mean("o_c_acc", "clean")
    return at_least(gain - scratch.mean("o_c_acc", "clean"), NEAR, "C-Acc gained")


def _ten_samples(e: Evidence) -> Answer:
    ten = e.at(attack="badnet", ra_poisons=10)
    return at_least(ten.mean("p_asr", "clean") - ten.mean("o_asr", "clean"), FAR, "rise")


def _dashes(e: Evidence) -> Answer:
    dense, rare = e.at(model="densenet161", attack="badnet"), e.at(poison_rate=0.01)
    return all_of(
        at_least(dense.mean("o_asr", "anp"), PURIFIED_BELOW, "O-ASR of ANP"),
        at_least(rare.at(attack="blended").mean("o_asr", "ft_sam"), PURIFIED_BELOW, "of FT-SAM"),
    )


def _quick(e: Evidence) -> Answer:
    if not len(e.histories):
        return None
    rows = e.histories[e.histories["defense"].isin(BASELINES)]
    mean = rows.groupby("epoch")["asr"].mean()
    if len(mean) < 3:
        return None
    share = (mean.loc[2] - mean.loc[0]) / max(mean.iloc[-1] - mean.loc[0], 1e-9)
    return at_least(100 * float(share), HIGH, "percent of the rise within two epochs")


def _controls(e: Evidence) -> Answer:
    """An ordinary perturbation takes clean images along; one that wakes a backdoor does not."""
    gaps = [
        e.woken(what, BASELINES) - e.woken(what, BASELINES, "c_asr")
        for what in ("qra", "universal")
    ]
    return at_least(gaps[0] - gaps[1], FAR, "P-ASR over C-ASR: QRA's gap above a universal one's")


def _best_of_baselines(e: Evidence) -> Answer:
    found = e.each("o_asr")
    if not {"anp", "fst"} < set(found):
        return None
    ranked = sorted(found, key=found.get)
    text = ", ".join(f"{name} {found[name]:.1f}" for name in ranked)
    return set(ranked[:2]) == {"anp", "fst"}, f"O-ASR: {text}"


def _column(e: Evidence, column: str, who: str | Sequence[str]) -> float:
    return e.mean(column, who) if column in e.cells else float("nan")


FIVE = "at least two of the defenses anp, ibau, ft_sam, fst, bti, through RA"
TEXT = "nothing that a run could give: the claim is about the paper's text or settings"
GRID = "a rho grid of PAM, through RA"
PAM = "PAM through RA"
PATH = "the measure path"
QRA = "the measure query"


def _of_several(test: Test) -> Test:
    """Ask only where at least two of the baselines went through RA: one speaks for no other."""
    return lambda e: test(e) if len(e.each("p_asr")) > 1 else None


def _on_grid(column: str, by: float, what: str) -> Test:
    return lambda e: falls(e.along_rho(column), by, what) if column in e.cells else None


def _proxy(e: Evidence) -> Answer:
    found = e.along_rho("p_asr")
    if not len(found) or found.index[0] != 0:
        return None
    return all_of(
        at_least(float(found.iloc[0]), HIGH, "P-ASR at rho 0"),
        falls(found, FAR, "P-ASR"),
    )


def _flat_above(e: Evidence) -> Answer:
    found = e.along_rho("p_asr")
    found = found[found.index >= 0.3]
    if len(found) < 2:
        return None
    return at_most(float(found.max() - found.min()), LOW, "range of P-ASR from rho 0.3")


def _rises(e: Evidence, column: str, what: str) -> Answer:
    found = e.along_rho(column) if column in e.cells else pd.Series(dtype=float)
    return falls(-found, 0.0, f"minus the {what}") if len(found) > 1 else None


def _range(e: Evidence, column: str) -> float:
    found = e.along_rho(column)
    return float(found.max() - found.min()) if len(found) > 1 else float("nan")


def _gap_to_baselines(e: Evidence) -> float:
    return e.mean("o_c_acc", "pam") - e.mean("o_c_acc", BASELINES)


CLAIMS = [
    # A. Retuning attack
    Claim(
        1,
        "RA wakes every purified model",
        FIVE,
        lambda e: every(e.each("p_asr", purified=True), lambda v: v >= HIGH, "P-ASR"),
    ),
    Claim(
        2,
        "RA's effect is the same across data sets, models and rates",
        "studies of at least two of each, with two of the baselines",
        _same_everywhere,
    ),
    Claim(
        3,
        "ANP and FST come back to about 82 and 85 % ASR",
        "anp and fst through RA",
        lambda e: all_of(
            at_most(abs(e.mean("p_asr", "anp") - 82), FAR, "ANP: distance from 82:"),
            at_most(abs(e.mean("p_asr", "fst") - 85), FAR, "FST: distance from 85:"),
        ),
    ),
    Claim(4, "ANP and FST purify best", "anp, fst and another baseline", _best_of_baselines),
    Claim(
        5,
        "The clean model stays low under RA",
        "the clean control",
        lambda e: at_most(e.mean("p_asr", "clean"), LOW, "P-ASR"),
    ),
    Claim(
        6,
        "EP stays low under RA",
        "ep through RA",
        lambda e: at_most(e.mean("p_asr", "ep"), LOW, "P-ASR"),
    ),
    Claim(7, "RA takes less than 1 % of the training poisons", TEXT),
    Claim(8, "RA takes 1000 samples in all", TEXT),
    Claim(
        9,
        "Clean samples keep C-Acc during RA",
        FIVE,
        _of_several(
            lambda e: at_least(
                e.mean("p_c_acc", BASELINES) - e.mean("o_c_acc", BASELINES), -LITTLE, "C-Acc change"
            )
        ),
    ),
    Claim(
        10,
        "Ten BadNet samples would wake a clean model, too",
        "a study of BadNet with retuning.poisoned: 10, and the clean control",
        _ten_samples,
    ),
    Claim(11, "RA needs a few epochs only", FIVE, _of_several(_quick)),
    Claim(
        12,
        "A low ASR does not mean that the backdoor is gone",
        FIVE,
        _of_several(
            lambda e: all_of(
                at_most(e.mean("o_asr", BASELINES, purified=True), PURIFIED_BELOW, "O-ASR"),
                at_least(e.mean("p_asr", BASELINES, purified=True), HIGH, "P-ASR"),
            )
        ),
    ),
    Claim(
        13,
        "BTI, a proxy of EP, is less robust than EP",
        "bti and ep through RA",
        lambda e: at_least(_gap(e, "p_asr", "bti", "ep"), FAR, "P-ASR of BTI above EP's"),
    ),
    Claim(
        14,
        "At 1 % most defenses fail against LC",
        "a study of LC at 1 %, with two of the baselines",
        lambda e: _most_fail(e.at(attack="lc", poison_rate=0.01)),
    ),
    Claim(
        15,
        "LC does not implant on CIFAR-100 and Tiny-ImageNet",
        "studies of LC on both",
        _on_others(
            lambda e: at_most(e.at(attack="lc").mean("o_asr", "none"), IMPLANTED, "ASR of LC")
        ),
    ),
    Claim(
        16,
        "ANP fails on DenseNet-161 (BadNet), FT-SAM on Blended at 1 %",
        "studies of both",
        _dashes,
    ),
    Claim(
        17,
        "Most methods fail below a rate of 1 %",
        "a study below 1 %, with two of the baselines",
        _most_fail_below_one_percent,
    ),
    Claim(
        18,
        "Training CIFAR-100 and Tiny-ImageNet from scratch costs C-Acc",
        "studies of resnet18_imagenet on both, pretrained and not, with the clean control",
        _on_others(_pretrained_gain),
    ),
    Claim(19, "BTI's unlearning purifies better than its other variant", "BTI's other variant"),
    # B. Query-based reactivation
    Claim(
        20,
        "QRA raises ASR by 66 points on average",
        QRA,
        lambda e: at_least(
            _column(e, "q_p_asr", BASELINES) - e.mean("o_asr", BASELINES), 66.13 - FAR, "rise"
        ),
    ),
    Claim(
        21,
        "QRA leaves clean images alone",
        QRA,
        lambda e: at_most(_column(e, "q_c_asr", BASELINES), LOW, "C-ASR"),
    ),
    Claim(
        22,
        "QRA does nothing to the clean model",
        QRA,
        lambda e: all_of(
            at_most(_column(e, "q_c_asr", "clean"), LOW, "C-ASR"),
            at_most(_column(e, "q_p_asr", "clean"), LOW, "P-ASR"),
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
    # C. Linear mode connectivity
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
        "So it is at 1 %",
        "a study at 1 %, with the measure path",
        lambda e: _higher_barrier(e.at(poison_rate=0.01)),
    ),
    Claim(
        38,
        "So it is on CIFAR-100 and Tiny-ImageNet",
        "studies of both, with the measure path",
        _on_others(_higher_barrier),
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
    # D. Path-aware minimization
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
        lambda e: at_most(_gap(e, "p_asr", "pam", "ep"), NEAR, "P-ASR of PAM above EP's"),
    ),
    Claim(
        43,
        "PAM is far more robust than the baselines",
        FIVE + ", and PAM",
        _of_several(_above_baselines),
    ),
    Claim(
        44, "PAM's O-ASR is below 2 %", PAM, lambda e: at_most(e.mean("o_asr", "pam"), 2.0, "O-ASR")
    ),
    Claim(
        45,
        "PAM costs about 2 points of C-Acc",
        PAM,
        lambda e: at_most(_gap(e, "o_c_acc", "none", "pam"), 2.0 + 1.0, "C-Acc lost"),
    ),
    Claim(46, "PAM's ASR rises by less than 3 points under RA", PAM, _small_rise),
    Claim(
        47,
        "So it is at 1 %",
        "a study of PAM at 1 %",
        lambda e: _small_rise(e.at(poison_rate=0.01)),
    ),
    Claim(
        48,
        "So it is on CIFAR-100 and Tiny-ImageNet",
        "studies of PAM on both",
        _on_others(_small_rise),
    ),
    Claim(
        49,
        "PAM keeps a good C-Acc among the baselines",
        FIVE + ", and PAM",
        _of_several(
            lambda e: at_least(_gap_to_baselines(e), -LITTLE, "C-Acc above the baselines' mean")
        ),
    ),
    Claim(50, "Inverted triggers alone do not hold; the path step does", GRID + " from 0", _proxy),
    Claim(
        51,
        "A larger rho raises the barrier",
        GRID + ", with the measure path",
        lambda e: _rises(e, "barrier", "barrier"),
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
    Claim(53, "A larger rho gains robustness", GRID, _on_grid("p_asr", FAR, "P-ASR")),
    Claim(54, "Above 0.3, rho matters little", GRID, _flat_above),
    Claim(55, "rho is chosen so that C-Acc stays above 92 %", TEXT),
    Claim(
        56,
        "A larger rho deviates further",
        GRID + ", with the measure path",
        lambda e: _rises(e, "distance", "distance"),
    ),
    Claim(
        57,
        "BTI with SAM does not reach PAM",
        "bti_sam and PAM through RA",
        lambda e: at_least(_gap(e, "p_asr", "bti_sam", "pam"), FAR, "P-ASR above PAM's"),
    ),
    Claim(58, "Results are means of three seeds, with errors", TEXT),
    # E. Set-up
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
