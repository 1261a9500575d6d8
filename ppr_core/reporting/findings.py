"""What a study's figures show, in sentences; and which models a mean may be taken of."""

from collections.abc import Sequence

import pandas as pd

from ppr_core.lab.graph import CLEAN, NO_DEFENSE
from ppr_core.reporting import checks
from ppr_core.reporting.results import PURIFIED_BELOW, WOKEN_BY, label, summary

# Of QRA: the form's columns -> its name, its control's columns, and the model that they are of.
FORMS = {
    "q": ("QRA, the authors' form,", "q_unseen", "a clean model that no generator has seen"),
    "qe": ("QRA, the paper's form (eq. 2),", "qe_clean", "the clean model, not its surrogate"),
}


def of_robustness(rows: pd.DataFrame) -> list[str]:
    """Say in sentences what the figures show: implanted, purified, woken, and the controls.

    Rows that fail a check are not judged.
    """
    table = summary(rows).dropna(subset="o_asr")
    lines = checks.listed(rows)
    table = table[table["checks"] == ""]
    for attack, group in table.groupby("attack", sort=False):
        controls, purified = _apart(group), sleeping(group)
        woken = purified[purified["change"] >= WOKEN_BY]
        if not sum(~controls):
            continue
        implanted = group.loc[group["defense"] == NO_DEFENSE, "o_asr"].mean()
        lines.append(
            f"{attack}: the backdoored model has ASR {implanted:.1f} %. {len(purified)} of "
            f"{sum(~controls)} defenses bring it to {PURIFIED_BELOW:.0f} % or less; retuning wakes "
            f"{len(woken)} of these by {WOKEN_BY:.0f} points or more"
            + (f" ({', '.join(_rise(row) for _, row in woken.iterrows())})" if len(woken) else "")
            + "."
        )
        kept = group[controls & group["p_asr"].notna()]
        if len(kept):
            rises = ", ".join(_rise(row) for _, row in kept.iterrows())
            lines.append(f"{attack}, controls and oracles: {rises}.")
    return lines


def _apart(rows: pd.DataFrame) -> pd.Series:
    """Say which rows are no defense's: controls, and what an oracle purified."""
    return rows["defense"].isin([NO_DEFENSE, CLEAN]) | rows["oracle"].astype(bool)


def sleeping(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the models that a defense purified without an oracle; none that fails a check."""
    passed = checks.column(rows) == ""
    return rows[~_apart(rows) & (rows["o_asr"].astype(float) <= PURIFIED_BELOW) & passed]


def among(
    points: pd.DataFrame,
    rows: pd.DataFrame,
    ends: Sequence[str] = ("defense",),
    keys: Sequence[str] = ("attack", "seed"),
) -> pd.DataFrame:
    """Keep the points whose models are among the rows.

    Args:
        points: one row a point of a curve, or a pair of models.
        rows: of `cells`.
        ends: columns of the points that name a defense.
        keys: columns of both that tell victims apart.
    """
    for end in ends:
        known = rows[[*keys, "defense"]].drop_duplicates().rename(columns={"defense": end})
        points = points.merge(known, on=[*keys, end])
    return points


def of_queries(rows: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Say in sentences what QRA reaches: on purified models, on clean ones, and by transfer.

    A mean is over models that a defense purified, an oracle's left out: one whose backdoor never
    slept has nothing to wake. The control is what the generators learnt on these do to a clean
    model: in the authors' form to one that none of them has seen, for there the clean model is the
    surrogate; in the paper's (eq. 2), where EP is, to the clean model.

    Args:
        rows: `cells` of a study that measures "query".
        pairs: its `transfers`; may be empty.
    """
    lines = []
    rows = rows[rows["q_p_asr"].notna()]
    for attack, tried in rows[~_apart(rows)].groupby("attack", sort=False):
        group = sleeping(tried)
        if not len(group):
            lines.append(f"{attack}: none of {len(tried)} models is purified.")
            continue
        for form, (named, control, model) in FORMS.items():
            known = [name for name in map(str, group) if name.startswith(f"{form}_")]
            mean = group[["o_asr", *known]].astype(float).mean()
            if pd.isna(mean.get(f"{form}_p_asr")):
                continue
            lines.append(
                f"{attack}, {len(group)} of {len(tried)} models purified: {named} moves their mean "
                f"ASR from {mean['o_asr']:.1f} to {mean[f'{form}_p_asr']:.1f}; "
                f"{mean[f'{form}_c_asr']:.1f} % of clean images follow."
            )
            p_asr, c_asr = (mean.get(f"{control}_{n}", float("nan")) for n in ("p_asr", "c_asr"))
            lines.append(
                f"{attack}, control: on {model}, the same images reach {p_asr:.1f}; {c_asr:.1f} % "
                "of clean images follow."
                if p_asr == p_asr
                else f"{attack}, control: not scored on {model}."
            )
    if len(pairs):
        pairs = among(pairs, sleeping(rows), ends=("source", "target"))
    for attack, group in pairs.groupby("attack", sort=False) if len(pairs) else ():
        reached = group["p_asr"].mean()
        lines.append(f"{attack}: learnt on another purified model, it reaches {reached:.1f}.")
    return lines


def _rise(row: pd.Series) -> str:
    return f"{label(row)} {row['o_asr']:.1f} to {row['p_asr']:.1f}"
