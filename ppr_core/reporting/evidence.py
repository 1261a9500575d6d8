"""What the runs of several studies say: rows that count for a claim, and figures with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ppr_core.lab.graph import CLEAN, NO_DEFENSE
from ppr_core.reactivation.gates import Gates
from ppr_core.reporting.checks import MARK
from ppr_core.reporting.findings import among
from ppr_core.reporting.results import PURIFIED_BELOW
from ppr_core.reporting.rules import Limits, threshold
from ppr_core.reporting.setting import (
    PAPER,
    SMALLER,
    level_of,
    paper_rho,
    used,
    victim_scale,
    with_scale,
)

# The paper's baselines. It chooses ANP's threshold by test ASR, as `anp_oracle` does.
BASELINES = ["anp_oracle", "ibau", "ft_sam", "fst", "bti"]
HONEST = {"anp": "anp_oracle"}  # stands in where the paper's own was not measured, and says so
SETTING = ["dataset", "model", "poison_rate"]
CELL = [*SETTING, "attack", "defense"]
Place = tuple[str | float | None, ...]  # dataset, model, poison rate
FRAMES = ("queries", "transfers", "paths", "histories")
CONFIDENCE = threshold("confidence")
LOST = "it lost more than"


@dataclass(frozen=True)
class Evidence:
    """What the runs say, as the frames of `results`; empty where nothing was measured.

    `cells` are those of the study asked about, `further` those of other studies. The other frames
    may have the columns of `SETTING`, where they come from several studies.
    """

    cells: pd.DataFrame
    queries: pd.DataFrame = field(default_factory=pd.DataFrame)
    transfers: pd.DataFrame = field(default_factory=pd.DataFrame)
    paths: pd.DataFrame = field(default_factory=pd.DataFrame)
    histories: pd.DataFrame = field(default_factory=pd.DataFrame)
    further: pd.DataFrame = field(default_factory=pd.DataFrame)

    def done(self, *, any_accuracy: bool = False) -> pd.DataFrame:
        """Return what claims are judged by: the finished cells but those that are withheld.

        Args:
            any_accuracy: keep models that lost their accuracy, for a claim about just that.
        """
        rows = self.finished
        return rows[self.why[any_accuracy] == ""].reset_index(drop=True)

    def left_out(
        self, scope: "Scope", names: Sequence[str] = (), *, any_accuracy: bool = False
    ) -> list[str]:
        """Say which cells of a claim's settings and defenses it is not judged by, and why."""
        rows, why = self.finished, self.why[any_accuracy]
        rows = scope.choose(rows.assign(why=why)[why != ""]) if len(rows) else rows
        rows = rows[rows["defense"].isin([*names, *HONEST])] if names and len(rows) else rows
        said = []
        for text, part in rows.groupby("why") if len(rows) else ():
            cells = ", ".join(dict.fromkeys(part["defense"] + "/" + part["attack"]))
            said.append(f"{cells}: {text} ({len(part)} row{'s' * (len(part) != 1)})")
        return said

    @cached_property
    def why(self) -> dict[bool, pd.Series]:
        """Why cells are withheld, by whether models that lost their accuracy are not."""
        return {kept: withheld(self.finished, any_accuracy=kept) for kept in (False, True)}

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The finished cells of all studies, each once, with a level of their setting.

        `stands` says which of PAM's rho stands for it, before any row is withheld: one that is
        must not be replaced by another rho.
        """
        rows = pd.concat([self.cells.assign(own=True), self.further.assign(own=False)])
        if not len(rows):
            return rows
        rows = rows[(rows["status"] == "done") & (rows["attack"] != "none")]
        rows = with_scale(rows)
        same = [*CELL, "seed", "rho", "ra_poisons", "scale"]
        rows = rows.drop_duplicates([c for c in same if c in rows]).reset_index(drop=True)
        return rows.assign(stands=rows.index.isin(at_paper_rho(rows).index))

    def at(self, scope: "Scope", *, any_accuracy: bool = False) -> "Evidence":
        """Return what counts for a claim about some settings: see `Scope`."""
        rows = scope.choose(self.done(any_accuracy=any_accuracy))
        chosen = {"cells": rows.drop(columns="own", errors="ignore"), "further": pd.DataFrame()}
        for name in FRAMES:
            frame = getattr(self, name)
            shared = [c for c in SETTING if c in frame and len(rows)]
            if shared and len(frame):
                there = rows[shared].drop_duplicates()
                chosen[name] = frame.merge(there, on=shared)
            elif not rows.get("own", pd.Series(dtype=bool)).any():
                chosen[name] = pd.DataFrame()
        return replace(self, **chosen)

    def of(self, who: str | Iterable[str], *columns: str) -> pd.DataFrame:
        """Return the rows of some defenses that have figures in all of these columns.

        PAM's are those at the paper's rho (or at the study's own, where it lacks that one).
        """
        names = [who] if isinstance(who, str) else list(who)
        rows = self.cells
        if not len(rows) or not {*columns} <= {*rows.columns}:
            return rows.iloc[:0].assign(**dict.fromkeys(columns, pd.Series(dtype=float)))
        rows = rows[rows["defense"].isin(names)]
        if "pam" in names:
            rows = at_paper_rho(rows)
        rows = used(rows, columns).astype(dict.fromkeys(columns, float))
        return rows.dropna(subset=list(columns))

    def between(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """Return the transfers from one to another of these models, and what names their victim."""
        keys = [c for c in (*SETTING, "attack", "seed") if c in self.transfers]
        pairs = among(self.transfers, rows, ("source", "target"), keys)
        return pairs[pairs["source"] != pairs["target"]], keys

    def baselines(self, *columns: str) -> pd.DataFrame:
        """Return the rows of the paper's baselines; honest ANP stands in for the paper's."""
        rows = self.of([*BASELINES, *HONEST], *columns)
        places = [*SETTING, "attack"]
        paper = set(map(tuple, rows.loc[rows["defense"] == "anp_oracle", places].to_numpy()))
        twice = [
            name in HONEST and tuple(place) in paper
            for name, place in zip(rows["defense"], rows[places].to_numpy(), strict=True)
        ]
        return rows[~np.array(twice, dtype=bool)]

    def line(self, rows: pd.DataFrame, start: str = "backdoored") -> pd.DataFrame:
        """Return the paths of some cells, batch norm interpolated, one row a point."""
        if not len(self.paths) or not len(rows):
            return self.paths.iloc[:0]
        points = self.paths[self.paths["start"] == start]
        points = points[points["batch_norm"] == "interpolate"]
        shared = [c for c in (*CELL, "seed", "rho") if c in points]
        labels = dict.fromkeys([*shared, *(c for c in (*SETTING, "o_asr") if c in rows)])
        return points.merge(rows[list(labels)], on=shared, suffixes=("_path", ""))


@dataclass(frozen=True)
class Scope:
    """The settings that a claim is about.

    Attributes:
        settings: (dataset, model, poison rate) of the paper; at None any.
        must: column -> values without which a row says nothing of the claim.
        own: beginnings of what is the claim's own in `scale`, such as its number of RA samples.
    """

    settings: tuple[Place, ...] = ()
    must: Mapping[str, Any] = field(default_factory=dict)
    own: tuple[str, ...] = ()

    def choose(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that count: those in the paper's settings at the best level there is.

        Where no study has such a setting, those of the study asked about, as far as they have
        what the claim must have.
        """
        for column, values in self.must.items():
            if not len(rows) or column not in rows:
                return rows.iloc[:0]
            listed = isinstance(values, list)
            rows = rows[rows[column].isin(values) if listed else rows[column].map(values)]
        if not len(rows):
            return rows
        if self.own:
            rows = self._own(rows)
        here = rows[self.inside(rows)]
        for level in (PAPER, SMALLER):
            if (here["level"] == level).any():
                return here[here["level"] == level]
        own = rows if self.must else rows[rows["own"]]
        return own.assign(level=own["level"].replace({PAPER: SMALLER}))

    def _own(self, rows: pd.DataFrame) -> pd.DataFrame:
        parts = [
            [part for part in scale.split("; ") if part and not part.startswith(self.own)]
            for scale in rows["scale"]
        ]
        return rows.assign(scale=["; ".join(p) for p in parts], level=[level_of(p) for p in parts])

    def inside(self, rows: pd.DataFrame) -> np.ndarray:
        """Tell which rows are in one of the paper's settings."""
        found = [self._place(row) is not None for row in rows[SETTING].itertuples(index=False)]
        return np.array(found, dtype=bool)

    def missing(self, rows: pd.DataFrame) -> list[Place]:
        """Return the settings of the claim that these rows do not have."""
        there = {self._place(row) for row in rows[SETTING].itertuples(index=False)}
        return [setting for setting in self.settings if setting not in there]

    def _place(self, row: Sequence[Any]) -> Place | None:
        for setting in self.settings:
            if all(a is None or a == b for a, b in zip(setting, row, strict=True)):
                return setting
        return None


def at_paper_rho(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep of PAM's rows, cell by cell, those at the paper's rho, else those at the largest."""
    pam = rows["defense"] == "pam"
    if "stands" in rows:  # known since before rows were left out
        return rows[~pam | rows["stands"].astype(bool)]
    if not pam.any() or "rho" not in rows:
        return rows
    rho = rows["rho"].astype(float)
    paper = [paper_rho(d, a) for d, a in zip(rows["dataset"], rows["attack"], strict=True)]
    hits = rho == pd.Series(paper, rows.index, dtype=float)
    places = [rows[name] for name in (*SETTING, "attack", "scale") if name in rows]
    any_hit = hits.groupby(places).transform("any")
    largest = rho[pam].groupby([p[pam] for p in places]).transform("max")
    largest = rho == largest.reindex(rho.index)
    return rows[~pam | (hits & any_hit) | (largest & ~any_hit) | (rho.isna() & ~any_hit)]


def purified(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the cells whose model counts as purified."""
    return rows[rows["o_asr"].astype(float) <= PURIFIED_BELOW]


def withheld(rows: pd.DataFrame, *, any_accuracy: bool = False) -> pd.Series:
    """Say of each cell why no claim is judged by it; empty where one may be.

    A defense is not judged where it doubts its own work (an inversion, or that it changed
    nothing), nor on an attack that did not
    implant, nor where it has lost its accuracy. What is wrong with a control stays: it is what
    some claims are about.

    Args:
        rows: of all studies.
        any_accuracy: judge models that lost their accuracy, too.
    """
    why = pd.Series("", rows.index, dtype=object)
    if not len(rows):
        return why
    victims = _victims(rows)
    defended = ~rows["defense"].isin([NO_DEFENSE, CLEAN])
    if "o_c_acc" in rows and not any_accuracy:
        lost = victims["o_c_acc"] - rows["o_c_acc"].astype(float)
        most = threshold("lost")
        why[defended & (lost > most)] = f"{LOST} {most:g} points of C-Acc"
    check = Gates()
    if "warnings" in rows:
        told = rows["warnings"].fillna("").astype(str).str.split(MARK, regex=False)
        why[[bool(check.doubted(texts)) for texts in told]] = "it doubts its own work"
    why[defended & (victims["o_asr"] < threshold("implanted"))] = "the attack did not implant"
    return why


def _victims(rows: pd.DataFrame) -> pd.DataFrame:
    """Return beside each cell the O-ASR and C-Acc of its backdoored model, where it is there."""
    scale = rows["scale"] if "scale" in rows else pd.Series("", rows.index)
    bare = [victim_scale(one) for one in scale]
    places = [c for c in (*SETTING, "attack", "seed") if c in rows]
    figures = [c for c in ("o_asr", "o_c_acc") if c in rows]
    table = rows.assign(scale=bare)[[*places, "scale", "defense", *figures]]
    table = table.astype(dict.fromkeys(figures, float))
    found = table[table["defense"] == NO_DEFENSE].groupby([*places, "scale"])[figures].min()
    beside = table.drop(columns=figures).join(found, on=[*places, "scale"])
    return beside.reindex(columns=["o_asr", "o_c_acc"])


def by_seed(rows: pd.DataFrame, column: str, cells: Sequence[str] = (*CELL, "rho")) -> pd.Series:
    """Return a column's mean over cells of each seed, the unit of every interval.

    Of seeds that have all of the cells: others would be a mean of something else. Where no seed
    has, there is one mean, of all.
    """
    places = [name for name in cells if name in rows]
    cell = rows.groupby(places, dropna=False).ngroup() if places else pd.Series(0, rows.index)
    table = rows.assign(_cell=cell).pivot_table(index="seed", columns="_cell", values=column)
    whole = table.dropna()
    if len(whole) or not len(table):
        return whole.mean(axis=1)
    return pd.Series([table.mean().mean()])


@dataclass(frozen=True)
class Span:
    """A mean over seeds with its 95 % interval; one seed has none."""

    mean: float
    low: float = float("nan")
    high: float = float("nan")
    seeds: int = 1

    @classmethod
    def of(cls, seeds: Sequence[float] | pd.Series) -> "Span":
        """Return the span of one value a seed, by Student's t."""
        values = np.asarray(seeds, dtype=float)
        mean = float(values.mean())
        if len(values) < 2:
            return cls(mean)
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        reach *= values.std(ddof=1) / np.sqrt(len(values))
        return cls(mean, mean - float(reach), mean + float(reach), len(values))

    def against(self, limits: Limits) -> str:
        """Return "holds" inside the limits, "fails" outside, "open" across one of them."""
        least, most = (self.mean, self.mean) if self.seeds < 2 else (self.low, self.high)
        if limits.strict:
            inside = limits.low < least and most < limits.high
            outside = most <= limits.low or least >= limits.high
        else:
            inside = limits.low <= least and most <= limits.high
            outside = most < limits.low or least > limits.high
        return "holds" if inside else "fails" if outside else "open"

    def __str__(self) -> str:
        if self.seeds < 2:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"
