"""How well an inverted trigger predicts at which number of poisons the real one wakes a model."""

import math
from typing import Any

import pandas as pd

from ppr_core.config import Field, Settings, derive
from ppr_core.lab.graph import Stage
from ppr_core.lab.plan import Plan
from ppr_core.lab.reader import Reader
from ppr_core.reactivation.cells import Bench, Setting
from ppr_core.reactivation.figures import wake_count
from ppr_core.reactivation.scan import Scan


class Correlation(Settings):
    """How two wake counts go together over purified models."""

    search: str = Field(description="BTI-DBF or Neural Cleanse")
    models: int = Field(ge=0, description="purified models that both counts are known of")
    rho: float | None = Field(None, description="Spearman's; none: too few, or all counts alike")
    study: str = Field("", description="over whose models it was taken")

    def __str__(self) -> str:
        if self.rho is None:
            return f"{self.search}: no correlation over {self.models} models: too few, or all alike"
        kind = "predicts" if self.rho >= 0.5 else "does not predict"
        return (
            f"{self.search}: the stand-in's wake count {kind} the real trigger's over "
            f"{self.models} purified models (Spearman {self.rho:.2f}, study {self.study})"
        )


MEASURED: tuple[Correlation, ...] = ()  # over the scaled study: not yet measured


def told() -> list[str]:
    """Say how far a stand-in may be believed; printed with every scan."""
    if MEASURED:
        return [str(found) for found in MEASURED]
    return [
        "How well a stand-in predicts the wake count of the real trigger has not been measured: "
        "take neither count for it."
    ]


def wake_counts(plan: Plan, lab: Reader, scan: Scan) -> pd.DataFrame:
    """Return both wake counts of every purified model that a store holds.

    The scan sees what a defender holds; the real trigger is retuned as the battery does.

    Args:
        plan: the study whose purified models are taken, those of oracles left out.
        lab: reads them.
        scan: its searches, counts and thresholds.

    Returns:
        One row a model and search: attack, defense, seed, search, label, found (whether the label
        is the target), stand_in, real.
    """
    rows: list[dict[str, Any]] = []
    cells = [
        cell for seed in plan.study.seeds for a in plan.attacks for cell in plan.rivals(a, seed)
    ]
    for cell in cells:
        stage = plan.purified(cell)
        if not lab.cached(stage):
            continue
        about = {"attack": cell.attack, "defense": cell.defense, "seed": cell.seed}
        target = lab.trigger(stage).target
        real = _real(lab, stage, scan)
        model, held = lab.model(stage), plan.setting.held(cell.seed).tune
        rng = derive(cell.seed, "scan")
        tune, judged = scan.split(held, rng)
        for guess in scan.guesses(model, tune, rng=rng)[0]:
            own = scan.stand_in(model, guess, tune, judged, rng=rng)
            found = {"label": guess.label, "found": guess.label == target}
            counts = {"stand_in": own.wake_count, "real": real}
            rows.append({**about, "search": guess.name, **found, **counts})
    return pd.DataFrame(rows)


def correlations(rows: pd.DataFrame, study: str = "") -> list[Correlation]:
    """Return Spearman's correlation of both counts, search by search; inf ranks highest."""
    found = []
    for search, group in rows.groupby("search", sort=False) if len(rows) else ():
        ranks = group[["stand_in", "real"]].rank()
        rho = float(ranks["stand_in"].corr(ranks["real"])) if len(ranks) > 2 else math.nan
        known = {} if math.isnan(rho) else {"rho": rho}
        found.append(Correlation(search=str(search), models=len(group), study=study, **known))
    return found


def _real(lab: Reader, stage: Stage, scan: Scan) -> float:
    """Return the wake count of the real trigger, with RA of the study's own share of images."""
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
    return wake_count(cells, battery.limits.woken)
