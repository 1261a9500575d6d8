"""The paper's numbers, beside those of our own runs."""

from importlib import resources

import pandas as pd

from ppr_core.reporting.evidence import SETTING
from ppr_core.reporting.setting import PAPER, PRETRAINED, paper_rho, with_scale

# The paper's names that are not ours. Its ANP is the one whose threshold test ASR chooses.
NAMES = {"ftsam": "ft_sam", "attack": "none", "tiny": "tiny_imagenet", "anp": "anp_oracle"}
COLUMNS = {
    ("O-Backdoor", "C-Acc"): "o_c_acc",
    ("O-Backdoor", "ASR"): "o_asr",
    ("O-Robustness", "C-Acc"): "o_c_acc",
    ("O-Robustness", "ASR"): "o_asr",
    ("P-Robustness", "C-Acc"): "p_c_acc",
    ("P-Robustness", "ASR"): "p_asr",
}
FIGURES = ["o_c_acc", "o_asr", "p_c_acc", "p_asr"]
MEANINGS = [*SETTING, "attack", "defense"]
AVERAGE = "avg"
ORDER = ["table", *MEANINGS, "rho", "figure", "paper", "ours", "difference", "spread", "seeds"]


def printed() -> pd.DataFrame:
    """Return every cell of the paper's tables as it stands there, its averages and dashes too.

    Source: Min et al. 2024, arXiv:2410.09838, Tables 1 to 11. `text` is the number as printed,
    empty for a dash; `rho` that of PAM, by sec. B.2 where the table has none.
    """
    with resources.files("ppr_core.reporting").joinpath("paper.csv").open() as file:
        table = pd.read_csv(file, dtype={"value": str})
    table["defense"] = table["method"].replace(NAMES)
    table["dataset"] = table["dataset"].replace(NAMES)
    table.loc[table["dataset"].isin(PRETRAINED), "model"] += "_imagenet"
    pairs = zip(table["mode"], table["metric"], strict=True)
    table["figure"] = [COLUMNS[pair] for pair in pairs]
    table["paper"] = table["value"].astype(float)
    table["text"] = table["value"].fillna("")
    chosen = [paper_rho(d, a) for d, a in zip(table["dataset"], table["attack"], strict=True)]
    table["rho"] = table["rho"].fillna(pd.Series(chosen, table.index, dtype=float))
    table["rho"] = table["rho"].where(table["defense"] == "pam")
    return table


def numbers() -> pd.DataFrame:
    """Return every number of the paper's tables: table, dataset, ..., rho, figure, paper.

    `figure` is the name of the column of `results.cells` that measures the same; averages and
    dashes are left out.
    """
    table = printed()
    table = table[table["attack"] != AVERAGE].dropna(subset="paper")
    return table[["table", *MEANINGS, "rho", "figure", "paper"]]


def averages() -> pd.DataFrame:
    """Return the 60 averages that the paper prints in Tables 1 and 2, as `numbers`."""
    table = printed()
    return table[table["attack"] == AVERAGE][["table", *MEANINGS, "rho", "figure", "paper"]]


def compare(rows: pd.DataFrame, *, other_scale: bool = False) -> pd.DataFrame:
    """Return the paper's number, ours, their difference, and our spread, where both exist.

    Cells are matched by data set, model, poisoning rate, attack, defense, and PAM's rho: that of
    Table 10, elsewhere the paper's by attack. Only what was made in the paper's very setting (its
    data, architecture and width, schedules, RA counts: `setting.setting_columns`) is set beside
    it. The paper's averages (attack "avg") stand beside those over the same attacks, or not at all.

    Args:
        rows: `results.cells` of one or several studies.
        other_scale: compare what was made at another scale, which a column `scale` tells.
    """
    measured = _measured(rows, other_scale=other_scale)
    theirs = numbers()
    pam = theirs["defense"] == "pam"
    long = pd.concat(
        [
            theirs[~pam].drop(columns="rho").merge(measured, on=[*MEANINGS, "figure"]),
            theirs[pam].merge(measured, on=[*MEANINGS, "rho", "figure"]),
        ]
    )
    same = ["table", *MEANINGS, "rho", "figure", "paper", "scale"]
    both = pd.concat([_over_seeds(long, same), _averaged(long, theirs)], ignore_index=True)
    both["difference"] = both["ours"] - both["paper"]
    both = both.sort_values("table", kind="stable", ignore_index=True)
    return both[[*ORDER, "scale"] if other_scale else ORDER]


def at_scale(rows: pd.DataFrame, *, other_scale: bool) -> pd.DataFrame:
    """Return the rows that have figures of the scale asked for: the paper's, or others."""
    done = with_scale(rows[rows["status"] == "done"])
    return done[(done["level"] == PAPER) != other_scale]


def _measured(rows: pd.DataFrame, *, other_scale: bool) -> pd.DataFrame:
    """Return our figures, one row a cell, seed and figure, of the scale asked for."""
    done = at_scale(rows, other_scale=other_scale)
    same = [*MEANINGS, "rho", "scale", "seed"]
    long = done.melt(same, FIGURES, "figure", "ours").dropna(subset="ours")
    return long.drop_duplicates([*same, "figure"]).astype({"ours": float, "rho": float})


def _over_seeds(long: pd.DataFrame, same: list[str]) -> pd.DataFrame:
    grouped = long.groupby(same, dropna=False, sort=False)["ours"]
    table = grouped.agg(["mean", "std", "count"]).reset_index()
    return table.rename(columns={"mean": "ours", "std": "spread", "count": "seeds"})


def _averaged(long: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's averages beside ours, of seeds that have all of their attacks."""
    keys = ["table", *SETTING, "defense", "figure"]
    wanted = theirs.groupby(keys)["attack"].agg(frozenset).rename("wanted").reset_index()
    means = long.groupby([*keys, "scale", "seed"]).agg(
        ours=("ours", "mean"), have=("attack", frozenset)
    )
    means = means.reset_index().merge(wanted, on=keys)
    means = means[means["have"] == means["wanted"]] if len(means) else means
    beside = averages().merge(means, on=keys)
    return _over_seeds(beside, ["table", *MEANINGS, "rho", "figure", "paper", "scale"])
