"""What a store holds of which study: the explorer's choices, and the figures behind them."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from ppr_core.defenses import Pam
from ppr_core.errors import CheckpointError, ConfigError, DataError
from ppr_core.lab.graph import CLEAN, NO_DEFENSE, Cell, Stage
from ppr_core.lab.measures.battery import CONTROL
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Run, Store
from ppr_core.lab.study import Study
from ppr_core.method import Result
from ppr_core.reporting import checks
from ppr_core.reporting.results import PURIFIED_BELOW, WOKEN_BY, name_of
from ppr_core.reporting.results import cells as cells_of

CURVE = {"c_acc": "o_c_acc", "o_asr": "o_asr", "p_asr": "p_asr"}  # of a retuned stage's metrics
BATTERY = "battery"  # label of the measure
UNUSABLE = (ConfigError, DataError, CheckpointError, OSError)


@dataclass(frozen=True)
class Held:
    """What the store holds of one study.

    Attributes:
        plan: the study, with every seed and every rho that the store has figures of.
        store: where its runs lie.
        runs: finished stages by content key, of this and of any other study.
    """

    plan: Plan
    store: Store
    runs: Mapping[str, Run]

    def __contains__(self, stage: Stage) -> bool:
        return stage.key in self.runs

    def figures(self, stage: Stage) -> dict[str, float]:
        """Return a stage's last figures by name; none where it was not computed."""
        return dict(self.runs[stage.key].data.metrics) if stage in self else {}

    def rows(self, stage: Stage) -> pd.DataFrame:
        """Return the curve that a measure left behind; empty where it was not taken."""
        if stage not in self:
            return pd.DataFrame()
        return pd.DataFrame(self.store.summary(self.runs[stage.key]).info["rows"])

    @cached_property
    def cells(self) -> list[Cell]:
        """Every purified model that the store holds, in the study's order."""
        wanted = (cell for cell in self.plan.cells() if cell.attacked and cell.defense != CLEAN)
        return [cell for cell in wanted if self.plan.purified(cell) in self]

    @cached_property
    def telling(self) -> Cell:
        """The cell to open with: asleep without a perturbation, awake at the largest budget.

        Of several the one where QRA gains most over a clean model; where there is none, the one
        with most measures that retuning wakes most. PAM is to be beside it.
        """

        def interest(cell: Cell) -> tuple[bool, bool, int, bool, float, float]:
            retuned = self.figures(self.plan.retuned(cell))
            measures = sum(stage in self for stage in self.plan.measured(cell).values())
            before, after = retuned.get("o_asr", 100.0), retuned.get("p_asr", 0.0)
            beside = len(self.rho_curve(cell.attack, cell.seed)) > 0
            asleep, gain = before <= PURIFIED_BELOW, self.gain(cell)
            shows = asleep and gain >= WOKEN_BY and not self.plan.oracle(cell)
            return beside, shows, measures, asleep, gain, after - before

        return max(self.cells, key=interest)

    def gain(self, cell: Cell) -> float:
        """Return how far QRA's largest budget lifts ASR above none, and above a clean model's.

        Points; 0 where it was not measured.
        """
        stage = self.query(cell)
        rows = self.rows(stage) if stage else pd.DataFrame()
        if not len(rows):
            return 0.0
        own = rows[rows["scored"] == "self"].set_index("eps")["p_asr"]
        clean = rows[rows["scored"] == "clean_unseen"].set_index("eps")["p_asr"]
        return float(own[own.index.max()] - max(own[own.index.min()], clean.max()))

    def failed(self, cell: Cell) -> list[str]:
        """Return the checks that a model fails, a sentence each: it gets no verdict then."""
        if cell not in self._failed:
            controls = {cell.but(defense=name) for name in (NO_DEFENSE, CLEAN)}
            beside = [one for one in self.plan.cells() if one in controls]
            said = checks.column(cells_of(self.plan, self.store, [cell, *beside])).iloc[0]
            self._failed[cell] = [text for text in said.split(checks.MARK) if text]
        return self._failed[cell]

    @cached_property
    def _failed(self) -> dict[Cell, list[str]]:
        return {}

    def name(self, cell: Cell) -> str:
        """Return a cell's defense as tables name it."""
        return name_of(self.plan, cell)

    def path(self, cell: Cell) -> pd.DataFrame:
        """Return the errors along the path to a purified model; empty where not measured."""
        stage = self.plan.taken("path", cell)
        return self.rows(stage) if stage else pd.DataFrame()

    def query(self, cell: Cell) -> Stage | None:
        """Return the QRA stage of a cell where the store holds it."""
        stage = self.plan.taken("query", cell)
        return stage if stage is not None and stage in self else None

    def battery(self, cell: Cell) -> tuple[Result, list[Result]] | None:
        """Return what the battery left of a cell, and of its clean models; None if not measured."""
        stage = self.plan.taken(BATTERY, cell)
        if stage is None or stage not in self:
            return None
        clean = [one for one in stage.parents if one.kind == CONTROL and one in self]
        found = [self.store.summary(self.runs[one.key]) for one in (stage, *clean)]
        return found[0], found[1:]

    def seconds(self, cell: Cell) -> dict[str, float]:
        """Return what each stage of a point of the rho curve took on average, by its kind."""
        found: dict[str, list[float]] = {}
        for known, _ in pams(self.plan, cell.attack, cell.seed):
            path = self.plan.taken("path", known)
            for stage in (self.plan.purified(known), self.plan.retuned(known), path):
                if stage is not None and "seconds" in (figures := self.figures(stage)):
                    found.setdefault(stage.kind, []).append(figures["seconds"])
        return {kind: statistics.fmean(values) for kind, values in found.items()}

    def rho_curve(self, attack: str, seed: int) -> pd.DataFrame:
        """Return PAM's figures at every computed rho: rho, cell, c_acc, o_asr, p_asr."""
        rows = []
        for cell, rho in pams(self.plan, attack, seed):
            if found := self.figures(self.plan.retuned(cell)):
                figures = {name: found[metric] for name, metric in CURVE.items()}
                rows.append({"rho": rho, "cell": cell, **figures})
        frame = pd.DataFrame(rows, columns=["rho", "cell", *CURVE])
        return frame.sort_values("rho", ignore_index=True)

    def with_rho(self, cell: Cell, rho: float) -> tuple[Plan, Cell]:
        """Return the plan of the same study with PAM at one more rho, and the cell of that.

        Args:
            cell: says which attack and seed.
            rho: to add.
        """
        study = self.plan.study
        plan = Plan(study.replace(rho_grid=sorted({*study.rho_grid, rho})))
        return plan, next(c for c, r in pams(plan, cell.attack, cell.seed) if r == rho)


def pams(plan: Plan, attack: str, seed: int) -> list[tuple[Cell, float]]:
    """Return the cells of the rho curve, each with its rho."""
    cells = plan.purified_cells(attack, seed)
    found = ((cell, plan.defense(cell)) for cell in cells if cell.defense == "pam")
    return [(cell, method.rho) for cell, method in found if isinstance(method, Pam)]


def holdings(store: Store, given: Study) -> dict[str, Held]:
    """Return what the store holds, by study: of the given one, and of those in `params/`.

    A study that cannot be resolved on this machine is left out, as is one without a purified model.
    """
    found = store.search(query="attributes.status = 'FINISHED'", kind="stage")
    runs = {run.data.tags["ppr.key"]: run for run in reversed(found)}
    ids = {run.info.experiment_id for run in found}
    names = {e.name for e in store.client.search_experiments() if e.experiment_id in ids}
    held: dict[str, Held] = {}
    for study in _studies(given):
        if study.name not in names or study.name in held:
            continue  # never run here: not even its data is looked for
        try:
            here = Held(Plan(_grown(study, runs.values())), store, runs)
            if here.cells:
                held[study.name] = here
        except UNUSABLE:
            continue
    return held


def _studies(given: Study) -> Iterable[Study]:
    yield given
    for path in sorted((ROOT / "params").glob("*.yaml")):
        try:
            yield Study.load(path)
        except ConfigError:
            continue


def _grown(study: Study, runs: Iterable[Run]) -> Study:
    """Add the seeds and the values of rho that runs are about; content keys tell whose they are."""
    data = [run.data for run in runs]
    seeds = {int(d.tags["ppr.seed"]) for d in data if d.tags.get("ppr.stage") == "purified"}
    study = study.replace(seeds=sorted({*study.seeds, *seeds}))
    if "pam" not in study.defenses and not study.rho_grid:
        return study
    pam = (d.params for d in data if d.params.get("method") == Pam.__name__)
    grid = {*study.rho_grid, *(float(params["rho"]) for params in pam)}
    defenses = dict(study.defenses)
    if "pam" in defenses:  # unless rho is named, a grid takes the place of PAM's own
        defenses["pam"] = {"rho": Pam.model_fields["rho"].default, **defenses["pam"]}
    return study.replace(rho_grid=sorted(grid), defenses=defenses)


def not_measured(measure: str, held: Held, cell: Cell) -> str:
    """Say what to run for a measure that the store does not hold of a model; or why it never will.

    Some measures are not taken along a grid of rho, and running the study again adds none.
    """
    plan = held.plan
    name, ready = plan.study.name, measure in plan.measures
    if ready and plan.taken(measure, cell) is None:
        return (
            f"`{measure}` is not part of the study {name} for {held.name(cell)}: a study takes it "
            "of each defense as its file sets it, not of every rho. Choose another model."
        )
    add = "" if ready else f"add `{measure}: {{}}` to `measures` in the file of the study {name}, "
    return f"Not measured yet: {add}run `{_command(name)}`, then open this page anew."


def no_pam(plan: Plan) -> str:
    """Say what to do where there is no rho curve."""
    name = plan.study.name
    if ("pam", None) in plan.defenses or plan.study.rho_grid:
        return f"No PAM is computed for this attack and seed of the study {name}: press Compute."
    return (
        f"The study {name} has no PAM: add `pam: {{}}` to its `defenses`, run `{_command(name)}`, "
        "then open this page anew."
    )


def _command(study: str) -> str:
    known = (ROOT / "params" / f"{study}.yaml").is_file()
    return f"python -m ppr_core study {f'params/{study}.yaml' if known else 'FILE'}"


def nothing_held(store: Store, study: Study) -> str:
    """Say what to run for a store that holds no study to explore, and what it does hold."""
    names = [e.name for e in store.client.search_experiments() if e.name != "Default"]
    other = f" It holds {', '.join(sorted(names))}." if names else ""
    return (
        f"The store {store.uri} holds no purified model of the study {study.name} or of a study in "
        f"params/.{other} Run `make study`, or `python -m ppr_core study params/demo.yaml`, then "
        "open this page anew."
    )
