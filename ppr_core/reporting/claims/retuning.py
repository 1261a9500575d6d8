"""Section A of the claims: the retuning attack (RA)."""

from ppr_core.reporting.claims.base import FIVE, TEXT, Claim, gap, of_several, on_others, varied
from ppr_core.reporting.evidence import (
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
)
from ppr_core.reporting.results import PURIFIED_BELOW


def _same_everywhere(e: Evidence) -> Answer:
    rises: dict[str, dict[tuple, float]] = {}
    for setting, here in e.settings().items():
        for name, after in here.each("p_asr", purified=True).items():
            rise = after - here.mean("o_asr", name, purified=True)
            rises.setdefault(name, {})[setting] = rise
    if not varied({setting for found in rises.values() for setting in found}, 0, 1, 2):
        return None
    several = {name: list(found.values()) for name, found in rises.items() if len(found) > 1}
    ranges = {name: max(found) - min(found) for name, found in several.items()}
    return every(ranges, lambda v: v <= FAR, "range of the rise")


def _best_of_baselines(e: Evidence) -> Answer:
    found = e.each("o_asr")
    if not {"anp", "fst"} < set(found):
        return None
    ranked = sorted(found, key=found.get)
    text = ", ".join(f"{name} {found[name]:.1f}" for name in ranked)
    return set(ranked[:2]) == {"anp", "fst"}, f"O-ASR: {text}"


def _ten_samples(e: Evidence) -> Answer:
    ten = e.at(attack="badnet", ra_poisons=10)
    return at_least(ten.mean("p_asr", "clean") - ten.mean("o_asr", "clean"), FAR, "rise")


def _quick(e: Evidence) -> Answer:
    if not len(e.histories):
        return None
    rows = e.histories[e.histories["defense"].isin(BASELINES)]
    mean = rows.groupby("epoch")["asr"].mean()
    if len(mean) < 3:
        return None
    share = (mean.loc[2] - mean.loc[0]) / max(mean.iloc[-1] - mean.loc[0], 1e-9)
    return at_least(100 * float(share), HIGH, "percent of the rise within two epochs")


def _most_fail(e: Evidence) -> Answer:
    found = e.each("o_asr")
    if len(found) < 2:
        return None
    left = sum(value > PURIFIED_BELOW for value in found.values())
    text = f"{left} of {len(found)} baselines leave an O-ASR above {PURIFIED_BELOW:g}"
    return left > len(found) / 2, text


def _dashes(e: Evidence) -> Answer:
    dense, rare = e.at(model="densenet161", attack="badnet"), e.at(poison_rate=0.01)
    return all_of(
        at_least(dense.mean("o_asr", "anp"), PURIFIED_BELOW, "O-ASR of ANP"),
        at_least(rare.at(attack="blended").mean("o_asr", "ft_sam"), PURIFIED_BELOW, "of FT-SAM"),
    )


def _most_fail_below_one_percent(e: Evidence) -> Answer:
    rates = e.at().cells["poison_rate"].unique()
    return _most_fail(e.at(poison_rate=[rate for rate in rates if rate < 0.01]))


def _pretrained_gain(e: Evidence) -> Answer:
    scratch = e.at(model=["resnet18", "resnet18_imagenet from scratch"])
    gain = e.at(model="resnet18_imagenet").mean("o_c_acc", "clean")
    return at_least(gain - scratch.mean("o_c_acc", "clean"), NEAR, "C-Acc gained")


CLAIMS = [
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
        of_several(
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
    Claim(11, "RA needs a few epochs only", FIVE, of_several(_quick)),
    Claim(
        12,
        "A low ASR does not mean that the backdoor is gone",
        FIVE,
        of_several(
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
        lambda e: at_least(gap(e, "p_asr", "bti", "ep"), FAR, "P-ASR of BTI above EP's"),
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
        on_others(
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
        on_others(_pretrained_gain),
    ),
    Claim(19, "BTI's unlearning purifies better than its other variant", "BTI's other variant"),
]
