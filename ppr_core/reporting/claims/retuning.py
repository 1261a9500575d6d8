"""Section A of the claims: the retuning attack (RA)."""

import pandas as pd

from ppr_core.reporting.claims.base import (
    ALL,
    CIFAR10,
    EVERY,
    MAIN,
    OTHER_SETS,
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
)
from ppr_core.reporting.claims.compared import gap_in, gaps
from ppr_core.reporting.evidence import SETTING, Evidence, Scope, purified
from ppr_core.reporting.results import PURIFIED_BELOW, WOKEN_BY
from ppr_core.reporting.rules import bounds, threshold


def _same_everywhere(e: Evidence) -> Answer | None:
    """Compare each defense's rise over settings, on the attacks that it has in all of its own."""
    rows = e.baselines("o_asr", "p_asr")
    kept = purified(rows)
    kept = kept.assign(rise=kept["p_asr"] - kept["o_asr"])
    parts = []
    for _, own in kept.groupby(["defense", "seed"]):
        places = own.groupby(SETTING).ngroup()
        shared = places.groupby(own["attack"]).transform("nunique") == places.nunique()
        if places.nunique() > 1 and shared.any():
            parts.append(own[shared])
    if not parts:
        return None
    kept = pd.concat(parts)
    for column in SETTING:
        values = kept.groupby(["defense", "seed"])[column].nunique()
        if (values > 1).groupby("defense").any().sum() < 2:
            return None  # of two defenses at least, over data sets, models and rates
    rises = kept.groupby(["defense", *SETTING, "seed"])["rise"].mean()
    ranges = rises.groupby(["defense", "seed"]).agg(lambda r: r.max() - r.min())
    table = ranges.rename("range").reset_index()
    found = each_in(table, "range", bounds(2), "range of the rise over settings", ["defense"])
    return leaving(resting(found, kept), awake(rows))


def _come_back(e: Evidence) -> Answer | None:
    def ask(name: str) -> Answer | None:
        rows, what = e.of(name, "o_asr", "p_asr"), f"P-ASR of {name}"
        return of_purified(lambda k: mean_in(k, "p_asr", bounds(3, name), what), rows, least=1)

    return all_of(ask("anp_oracle"), ask("fst"))


def _best_of_baselines(e: Evidence) -> Answer | None:
    rows = e.baselines("o_asr")
    best = rows[rows["defense"].isin(["anp_oracle", "fst"])]
    rest = rows[~rows["defense"].isin(["anp_oracle", "anp", "fst"])]
    if best["defense"].nunique() < 2 or not len(rest):
        return None
    parts = []
    for name in ("anp_oracle", "fst"):
        gap = gaps(best[best["defense"] == name], rest, "o_asr", falls=True)
        parts.append(gap_in(gap, bounds(4), f"O-ASR of the best other above {name}'s"))
    return all_of(*parts)


def _ten_samples(e: Evidence) -> Answer | None:
    rows = e.of("clean", "o_asr", "p_asr")
    return mean_in(rows.assign(rise=rows["p_asr"] - rows["o_asr"]), "rise", bounds(10), "rise")


def _quick(e: Evidence) -> Answer | None:
    """Ask how much of the rise comes within few epochs, of the models in which there is one."""
    rows = purified(e.baselines("o_asr", "p_asr"))
    if not len(e.histories) or rows["defense"].nunique() < 2:
        return None
    keys = [c for c in (*SETTING, "attack", "defense", "seed") if c in e.histories]
    course = e.histories.merge(rows[keys].drop_duplicates(), on=keys)
    table = course.pivot_table(index=keys, columns="epoch", values="asr")
    few = int(threshold("epochs"))
    if few not in table or table.shape[1] <= few or table.columns[-1] == few:
        return None
    rise = table.ffill(axis=1).iloc[:, -1] - table.iloc[:, 0]
    share = (100 * (table[few] - table.iloc[:, 0]) / rise)[rise >= WOKEN_BY]
    found = share.dropna().rename("share").reset_index()
    if found["defense"].nunique() < 2:
        return None
    idle = len(table) - len(found)
    asked = mean_in(found, "share", bounds(11), f"percent of the rise within {few} epochs")
    why = f"{idle} models that RA lifts by less than {WOKEN_BY:g} points" if idle else ""
    return leaving(resting(asked, rows.merge(found[keys], on=keys)), why)


def _less_than_exact(e: Evidence) -> Answer | None:
    rows = e.of("bti", "o_asr", "p_asr")
    gap = gaps(purified(rows), e.of("ep", "p_asr"), "p_asr")
    return leaving(gap_in(gap, bounds(13), "P-ASR of BTI above EP's"), awake(rows))


def _most_fail(number: int) -> Test:
    def ask(e: Evidence) -> Answer | None:
        rows = e.baselines("o_asr")
        if rows["defense"].nunique() < 2:
            return None
        rows = rows.assign(left=100.0 * (rows["o_asr"] > PURIFIED_BELOW))
        what = f"percent of the cells with an O-ASR above {PURIFIED_BELOW:g}"
        return mean_in(rows, "left", bounds(number), what)

    return ask


def _no_label_consistent(e: Evidence) -> Answer | None:
    rows = e.of("none", "o_asr")
    if rows["dataset"].nunique() < 2:
        return None
    return each_in(rows, "o_asr", bounds(15), "ASR of LC", ["dataset"])


def _dashes(e: Evidence) -> Answer | None:
    anp, sam = e.of("anp_oracle", "o_asr"), e.of("ft_sam", "o_asr")
    anp = anp[(anp["model"] == "densenet161") & (anp["attack"] == "badnet")]
    sam = sam[(sam["poison_rate"] == 0.01) & (sam["attack"] == "blended")]
    return all_of(
        mean_in(anp, "o_asr", bounds(16), "O-ASR of anp_oracle"),
        mean_in(sam, "o_asr", bounds(16), "O-ASR of ft_sam"),
    )


def _pretrained_gain(e: Evidence) -> Answer | None:
    rows = e.of("clean", "o_c_acc")
    scratch = rows["model"].isin(["resnet18", "resnet18_imagenet from scratch"])
    first, second = rows[~scratch], rows[scratch]
    keys = ["dataset", "seed"]
    gain = first.groupby(keys)["o_c_acc"].mean() - second.groupby(keys)["o_c_acc"].mean()
    table = gain.dropna().rename("gain").reset_index()
    if table["dataset"].nunique() < 2:
        return None
    found = each_in(table, "gain", bounds(18), "C-Acc gained by pretraining", ["dataset"])
    return resting(found, rows)


def _other_variant(e: Evidence) -> Answer | None:
    gap = gaps(e.of("bti_p", "o_asr"), e.of("bti", "o_asr"), "o_asr")
    return gap_in(gap, bounds(19), "O-ASR of BTI (P) above BTI (U)'s")


def _clean_accuracy(e: Evidence) -> Answer | None:
    rows = e.baselines("o_asr", "p_c_acc", "o_c_acc")
    rows = rows.assign(change=rows["p_c_acc"] - rows["o_c_acc"])
    return of_purified(lambda k: each_in(k, "change", bounds(9), "C-Acc change"), rows)


def _stays_low(who: str, number: int) -> Test:
    return lambda e: each_in(e.of(who, "p_asr"), "p_asr", bounds(number), "P-ASR")


def _below_one_percent(rate: float) -> bool:
    return 0 < rate < 0.01


TEN = Scope((("cifar10", "resnet18", None),), {"ra_poisons": [10], "attack": ["badnet"]}, ("RA p",))
RARER = Scope((("cifar10", "resnet18", None),), {"poison_rate": _below_one_percent}, ("poison r",))
# All images of the target class of CIFAR-100, of Tiny-ImageNet: LC poisons no others.
LABELS = Scope(
    (("cifar100", "resnet18_imagenet", 0.01), ("tiny_imagenet", "resnet18_imagenet", 0.005)),
    {**OTHER_SETS, "attack": ["lc"], "poison_rate": [0.01, 0.005]},
    ("attack lc", "RA poisoned", "poison rate"),
)
SCRATCH = Scope(  # what is trained from scratch has the schedule of what the paper trains so
    tuple((name, None, None) for name in OTHER_SETS["dataset"]),
    OTHER_SETS,
    ("pretrained", "training epochs 100 (", "training lr 0.1 (", "model resnet18"),
)
DASHES = Scope((("cifar10", "densenet161", 0.05), *RARE))

CLAIMS = [
    Claim(1, Scope(EVERY), of_baselines(1, "p_asr", "P-ASR"), ALL),
    Claim(2, Scope(EVERY), _same_everywhere, ALL),
    Claim(3, Scope(CIFAR10), _come_back, ("anp_oracle", "fst")),
    Claim(4, Scope(CIFAR10), _best_of_baselines, ALL),
    Claim(5, Scope(EVERY), _stays_low("clean", 5), ("clean",)),
    Claim(6, Scope(EVERY), _stays_low("ep", 6), ("ep",)),
    Claim(7),
    Claim(8),
    Claim(9, Scope(EVERY), _clean_accuracy, ALL),
    Claim(10, TEN, _ten_samples, ("clean",)),
    Claim(11, Scope(EVERY), _quick, ALL),
    Claim(12, Scope(EVERY), of_baselines(12, "p_asr", "P-ASR", SETTING), ALL),
    Claim(13, Scope(EVERY), _less_than_exact, ("bti", "ep")),
    Claim(14, Scope(RARE, {"attack": ["lc"], "poison_rate": [0.01]}), _most_fail(14), ALL),
    Claim(15, LABELS, _no_label_consistent, ("none",)),
    Claim(16, DASHES, _dashes),
    Claim(17, RARER, _most_fail(17), ALL),
    Claim(18, SCRATCH, _pretrained_gain),
    Claim(19, Scope(MAIN), _other_variant, ("bti", "bti_p")),
]
