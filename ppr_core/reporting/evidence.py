"""What a study's runs say, and the questions that the paper's claims put to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ppr_core.reporting.results import PURIFIED_BELOW, explained

# Tolerances, fixed before any run was looked at. Percent, or percentage points.
LOW = 10.0  # ASR up to which a model counts as one without a backdoor (chance of ten classes)
HIGH = 50.0  # ASR from which a backdoor counts as back
NEAR = 5.0  # difference up to which two methods count as comparable
FAR = 20.0  # difference from which they count as apart
LITTLE = 2.0  # clean accuracy or error that counts as unchanged
AWAY = 80.0  # backdoor error that counts as high
IMPLANTED = 90.0  # ASR from which an attack counts as implanted

BASELINES = ["anp", "ibau", "ft_sam", "fst", "bti"]
SETTING = ["dataset", "model", "poison_rate"]


@dataclass(frozen=True)
class Evidence:
    """What a study's runs say, as the frames of `results`; empty where nothing was measured.

    `further` has the cells of other studies, for the claims that span several (`at`, `settings`).
    """

    cells: pd.DataFrame
    queries: pd.DataFrame = field(default_factory=pd.DataFrame)
    transfers: pd.DataFrame = field(default_factory=pd.DataFrame)
    paths: pd.DataFrame = field(default_factory=pd.DataFrame)
    histories: pd.DataFrame = field(default_factory=pd.DataFrame)
    further: pd.DataFrame = field(default_factory=pd.DataFrame)

    def at(self, **values: object) -> "Evidence":
        """Return the cells, of all studies, that have these values (or one of a list of them)."""
        rows = pd.concat([self.cells, self.further], ignore_index=True)
        for column, value in values.items():
            rows = rows[rows[column].isin(value if isinstance(value, list) else [value])]
        return Evidence(rows)

    def settings(self) -> dict[tuple[str, str, float], "Evidence"]:
        """Return the cells of all studies by data set, model and poisoning rate."""
        rows = self.at().cells
        grouped = rows[rows["attack"] != "none"].groupby(SETTING, sort=False)
        return {setting: Evidence(part) for setting, part in grouped}

    def mean(self, column: str, who: str | Sequence[str], *, purified: bool = False) -> float:
        """Return a column's mean over attacks and seeds; nan where nothing was measured.

        Args:
            column: of `results.cells`.
            who: defense, or several.
            purified: of the models with an O-ASR of at most `results.PURIFIED_BELOW`.
        """
        names = [who] if isinstance(who, str) else list(who)
        if column not in self.cells:
            return float("nan")
        rows = self.cells[self.cells["status"] == "done"]
        rows = rows[rows["defense"].isin(names) & (rows["attack"] != "none")]
        if purified:
            rows = rows[rows["o_asr"].astype(float) <= PURIFIED_BELOW]
        if names == ["pam"]:  # a setting's PAM is the one with its largest rho
            rho = rows["rho"].astype(float)
            rows = rows[rho == rho.groupby([rows[name] for name in SETTING]).transform("max")]
        return float(rows[column].astype(float).mean())

    def each(self, column: str, *, purified: bool = False) -> dict[str, float]:
        """Return a column's mean for every baseline that the study measured."""
        found = {name: self.mean(column, name, purified=purified) for name in BASELINES}
        return {name: value for name, value in found.items() if value == value}

    def along_rho(self, column: str) -> pd.Series:
        """Return a column's mean over attacks and seeds at every rho of PAM, in order."""
        if column not in self.cells:
            return pd.Series(dtype=float)
        rows = self.cells[(self.cells["status"] == "done") & (self.cells["defense"] == "pam")]
        return rows.assign(y=rows[column].astype(float)).groupby("rho")["y"].mean().dropna()

    def line(self, who: Sequence[str], start: str = "backdoored") -> pd.Series:
        """Return the mean backdoor error by t, batch norm interpolated."""
        if not len(self.paths):
            return pd.Series(dtype=float)
        rows = self.paths[self.paths["defense"].isin(who) & (self.paths["start"] == start)]
        rows = rows[rows["batch_norm"] == "interpolate"]
        if "rho" in rows and list(who) == ["pam"]:  # as in `mean`
            rows = rows[rows["rho"] == rows["rho"].max()]
        return rows.groupby("t")["backdoor_error"].mean()

    def woken(self, perturbation: str, who: Sequence[str], column: str = "p_asr") -> float:
        """Return the mean rate of a perturbation at its largest budget; nan if not measured."""
        if not len(self.queries):
            return float("nan")
        rows = self.queries[self.queries["perturbation"] == perturbation]
        if "scored" in rows:
            rows = rows[rows["scored"] == "self"]
        rows = rows[rows["defense"].isin(who)]
        return float(rows[rows["eps"] == rows["eps"].max()][column].mean())


Answer = tuple[bool, str] | None  # does it hold, and by which figures; None: not measured


def at_most(value: float, limit: float, what: str) -> Answer:
    """Answer whether a figure stays within a limit."""
    return None if np.isnan(value) else (value <= limit, f"{what} {value:.2f} (at most {limit:g})")


def at_least(value: float, limit: float, what: str) -> Answer:
    """Answer whether a figure reaches a limit."""
    return None if np.isnan(value) else (value >= limit, f"{what} {value:.2f} (at least {limit:g})")


def every(found: dict[str, float], test: Callable[[float], bool], what: str) -> Answer:
    """Answer whether every method passes; needs at least two of them."""
    if len(found) < 2:
        return None
    text = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
    return all(test(value) for value in found.values()), f"{what}: {text}"


def all_of(*answers: Answer) -> Answer:
    """Answer whether all parts hold; not measured if one is not."""
    if any(answer is None for answer in answers):
        return None
    return all(answer[0] for answer in answers), "; ".join(answer[1] for answer in answers)


def falls(values: pd.Series, by: float, what: str) -> Answer:
    """Answer whether a figure falls by so much from the smallest to the largest rho."""
    return _along(values, -1, by, what)


def rises(values: pd.Series, by: float, what: str) -> Answer:
    """Answer whether a figure rises by so much from the smallest to the largest rho."""
    return _along(values, 1, by, what)


def _along(values: pd.Series, sign: int, by: float, what: str) -> Answer:
    if len(values) < 2:
        return None
    text = ", ".join(f"{rho:g}: {value:.1f}" for rho, value in values.items())
    return bool(sign * (values.iloc[-1] - values.iloc[0]) >= by), f"{what} by rho {text}"


def explains(evidence: Evidence) -> Answer:
    """Answer whether P-ASR falls with the distance along the path, interval and all."""
    if "path_distance" not in evidence.cells:
        return None
    table = explained(evidence.cells)
    table = table[table["predictors"] == "path_distance"] if len(table) else table
    if not len(table):
        return None
    fit = table.iloc[0]
    text = f"slope {fit['value']:.1f} [{fit['low']:.1f}, {fit['high']:.1f}], R2 {fit['r2']:.2f}"
    return bool(fit["high"] < 0), text
