"""How well an inverted trigger predicts at which number of poisons the real one wakes a model."""

from typing import Any

import pandas as pd
from scipy import stats

from ppr_core.config import Field, Settings, derive
from ppr_core.lab.graph import Stage
from ppr_core.lab.plan import Plan
from ppr_core.lab.reader import Reader
from ppr_core.reactivation.cells import Bench, Setting
from ppr_core.reactivation.figures import started, wake_count
from ppr_core.reactivation.scan import Scan
from ppr_core.reactivation.verdicts import Limits

LEVEL = 0.05  # of the test that a correlation is none
FEWEST = 3  # models that have a correlation


class Correlation(Settings):
    """How two wake counts go together over purified models."""

    search: str = Field(description="BTI-DBF or Neural Cleanse")
    models: int = Field(ge=0, description="purified models that both counts are known of")
    found: int = Field(ge=0, description="of them, those whose target the search names")
    rho: float | None = Field(None, description="Spearman's; none: too few, or all counts alike")
    p: float | None = Field(None, description="of as high a correlation, or a higher, by chance")
    study: str = Field("", description="over whose models it was taken")

    def __str__(self) -> str:
        over = f"over {self.models} purified models (study {self.study})"
        if self.models < FEWEST:
            return f"{self.search}: {self.models} purified models are too few for a correlation"
        if self.rho is None or self.p is None:
            said = f"the stand-in predicts nothing: {over} one of both counts is always the same"
        else:
            kind = "goes with" if self.p < LEVEL else "is not shown to go with"
            said = (
                f"the stand-in's wake count {kind} the real trigger's {over}: Spearman "
                f"{self.rho:.2f}, one-sided p {self.p:.2f}"
            )
        return f"{self.search}: {said}; the search names the target of {self.found} of them"


MEASURED: tuple[Correlation, ...] = (  # notebooks/results/stand_in_*.csv
    Correlation(search="BTI-DBF", models=15, found=0, rho=-0.547, p=0.983, study="cifar10_scaled"),
    Correlation(search="Neural Cleanse", models=11, found=2, rho=0.500, p=0.059, study="demo"),
)


def told() -> list[str]:
    """Say how far a stand-in may be believed; printed with every scan."""
    return [str(found) for found in MEASURED]


def models(plan: Plan, lab: Reader, limits: Limits | None = None) -> list[Stage]:
    """Return the models of a study that are purified and in a store, oracles' left out."""
    most = (limits or Limits()).purified
    return [
        stage
        for stage in plan.stages()
        if stage.kind == "purified"
        and stage.cell.attacked
        and not stage.method.oracle
        and lab.cached(stage)
        and lab.result(stage).metrics["asr"] <= most
    ]


def wake_counts(stage: Stage, lab: Reader, scan: Scan) -> pd.DataFrame:
    """Return both wake counts of a purified model.

    The scan sees what a defender holds; the real trigger is retuned as the battery does.

    Args:
        stage: the model's.
        lab: reads it.
        scan: its searches, counts and thresholds.

    Returns:
        One row a search: model, seed, o_asr (the real trigger's before any retuning), search,
        label, found (whether the label is the target), stand_in, real.
    """
    cell, rows = stage.cell, []
    rng = derive(cell.seed, "scan")
    model, target = lab.model(stage), lab.trigger(stage).target
    tune, judged = scan.split(stage.setting.held(cell.seed).tune, rng)
    o_asr, real = _real(lab, stage, scan)
    for guess in scan.guesses(model, tune, rng=rng)[0]:
        own = scan.stand_in(model, guess, tune, judged, rng=rng)
        rows.append(
            {
                "model": cell.label,
                "seed": cell.seed,
                "o_asr": o_asr,
                "search": guess.name,
                "label": guess.label,
                "found": guess.label == target,
                "stand_in": own.wake_count,
                "real": real,
            }
        )
    return pd.DataFrame(rows)


def correlations(
    rows: pd.DataFrame, study: str = "", limits: Limits | None = None
) -> list[Correlation]:
    """Return Spearman's correlation of both counts, search by search; inf ranks highest.

    Models that the defense has not purified are left out: nothing sleeps there, so both counts
    are 0 whatever a search is worth.
    """
    found = []
    slept = rows[rows["o_asr"] <= (limits or Limits()).purified] if len(rows) else rows
    for search, group in slept.groupby("search", sort=False) if len(slept) else ():
        counts, right = group[["stand_in", "real"]], int(group["found"].sum())
        said: dict[str, Any] = {"search": str(search), "models": len(group), "found": right}
        if len(group) >= FEWEST and counts.nunique().min() > 1:
            test = stats.spearmanr(counts, alternative="greater")
            said |= {"rho": float(test.statistic), "p": float(test.pvalue)}
        found.append(Correlation(study=study, **said))
    return found


def _real(lab: Reader, stage: Stage, scan: Scan) -> tuple[float, float]:
    """Return O-ASR and wake count of the real trigger, with RA of the study's share of images."""
    images, battery = stage.setting.images, scan.battery
    retuning = battery.retuning.replace(share=stage.setting.study.retuning.get("share", 0.02))
    battery = battery.replace(retuning=retuning)
    poisons, model = lab.poisons(stage), lab.model(stage)
    bench = Bench(
        battery.tuning,
        data=images.train,
        poisons=poisons,
        weak=None,
        test=images.test.spread(battery.images),
        stamped=lab.stamped_test(stage).spread(battery.images),
        rng=derive(stage.cell.seed, "scan", "real"),
    )
    epochs = [battery.paper.epochs]
    most = min(len(poisons), round(retuning.share * len(images.train)) // 2)
    cells = [bench.start(model), *bench.run(model, "relearn", Setting(poisons=0), epochs)]
    for count in battery.counts:
        for draw in range(battery.draws) if count <= most else ():
            cells += bench.run(model, "count", Setting(poisons=count, draw=draw), epochs)
    return started(cells).p_asr or 0.0, wake_count(cells, battery.limits.woken)
