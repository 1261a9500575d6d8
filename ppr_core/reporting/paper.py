"""The paper's numbers, beside those of our own runs."""

from importlib import resources

import pandas as pd

# The paper's names that are not ours.
NAMES = {"ftsam": "ft_sam", "attack": "none", "tiny": "tiny_imagenet"}
PRETRAINED = {"cifar100", "tiny_imagenet"}  # trained from ImageNet's weights, source: sec. B.1
COLUMNS = {
    ("O-Backdoor", "C-Acc"): "o_c_acc",
    ("O-Backdoor", "ASR"): "o_asr",
    ("O-Robustness", "C-Acc"): "o_c_acc",
    ("O-Robustness", "ASR"): "o_asr",
    ("P-Robustness", "C-Acc"): "p_c_acc",
    ("P-Robustness", "ASR"): "p_asr",
}
MEANINGS = ["dataset", "model", "poison_rate", "attack", "defense"]


def numbers() -> pd.DataFrame:
    """Return every number of the paper's tables: table, dataset, ..., rho, figure, paper.

    Source: Min et al. 2024, arXiv:2410.09838, Tables 1 to 11, as printed. `figure` is the name of
    the column of `results.cells` that measures the same.
    """
    with resources.files("ppr_core.reporting").joinpath("paper.csv").open() as file:
        table = pd.read_csv(file)
    table["defense"] = table["method"].replace(NAMES)
    table["dataset"] = table["dataset"].replace(NAMES)
    table.loc[table["dataset"].isin(PRETRAINED), "model"] += "_imagenet"
    pairs = zip(table["mode"], table["metric"], strict=True)
    table["figure"] = [COLUMNS[pair] for pair in pairs]
    table = table[table["attack"] != "avg"].dropna(subset="value")
    return table.rename(columns={"value": "paper"})[["table", *MEANINGS, "rho", "figure", "paper"]]


def compare(rows: pd.DataFrame, like: str = "") -> pd.DataFrame:
    """Return the paper's number, ours, their difference, and our spread, where both exist.

    Cells are matched by dataset, model, poisoning rate, attack and defense; those of PAM at one rho
    with the paper's main tables, whatever rho these took. A study at another scale has other names
    (or a width of its own), and matches nothing.

    Args:
        rows: `results.cells` of a study.
        like: name that the rows' data set shall go by, such as "cifar10" for a copy of CIFAR-10
            that was read through `folder`.
    """
    done = rows[rows["status"] == "done"]
    done = done.assign(dataset=like) if like else done
    figures = sorted(set(COLUMNS.values()))
    ours = done.melt([*MEANINGS, "rho", "seed"], figures, "figure", "ours").dropna(subset="ours")
    ours["ours"] = ours["ours"].astype(float)
    grouped = ours.groupby([*MEANINGS, "rho", "figure"], dropna=False, sort=False)["ours"]
    ours = grouped.agg(["mean", "std", "count"]).reset_index()
    ours = ours.rename(columns={"mean": "ours", "std": "spread", "count": "seeds"})
    theirs = numbers().rename(columns={"rho": "their_rho"})
    theirs = theirs.drop_duplicates([*MEANINGS, "their_rho", "figure"])
    both = theirs.merge(ours, on=[*MEANINGS, "figure"])
    both = both[both["their_rho"].isna() | (both["their_rho"] == both["rho"])]
    both["difference"] = both["ours"] - both["paper"]
    order = ["table", *MEANINGS, "rho", "figure", "paper", "ours", "difference", "spread", "seeds"]
    return both[order].reset_index(drop=True)
