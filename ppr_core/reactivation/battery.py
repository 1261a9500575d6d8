"""RB-1: a battery of retuning attacks, calibrated against models that never held the backdoor."""

from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ppr_core.config import Budget, Field, Settings
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need
from ppr_core.reactivation.cells import Bench, Cell, Setting, weakened
from ppr_core.reactivation.gates import Gates
from ppr_core.reactivation.perturbation import along, sweep
from ppr_core.reactivation.query import Query, generator_of
from ppr_core.reactivation.retuning import Retuning
from ppr_core.reactivation.verdicts import Limits, QueryResult

AtLeastOne = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class Arms(Settings):
    """The tunings that every model goes through, and what each of them is."""

    version: ClassVar[int] = 1

    retuning: Retuning = Field(Retuning(), description="RA at the paper's strength")
    counts: list[AtLeastOne] = Field(
        [1, 2, 5, 10, 20, 50], min_length=1, description="poisons of the count arm"
    )
    draws: int = Field(3, ge=1, description="draws of each count")
    factors: list[Rate] = Field(
        [0.3, 1.0, 3.0], min_length=1, description="learning rates, times their own"
    )
    epochs: list[AtLeastOne] = Field(
        [1, 5, 20], min_length=1, description="epochs of the strength arm"
    )
    optimizers: list[Literal["sgd", "adam"]] = Field(
        ["sgd", "adam"], min_length=1, description="update rules"
    )
    adam_lr: float = Field(1e-3, gt=0, description="Adam's own rate; SGD's is that of retuning")
    relearn_factors: list[Rate] = Field([1.0, 3.0], description="rates without poisons")
    relearn_epochs: list[AtLeastOne] = Field([5, 20], description="epochs without poisons")
    weak: float = Field(0.5, ge=0, lt=1, description="strength of the trigger arm's poisons")
    images: int = Field(1000, ge=1, description="test images of each kind behind a cell")

    @property
    def paper(self) -> Setting:
        """The setting of RA as published: the first draw."""
        own = self.retuning
        return Setting(poisons=own.poisoned, epochs=own.schedule.epochs)

    def tuning(self, setting: Setting) -> Retuning:
        """Return the stand-alone RA of a setting."""
        rate = self.adam_lr if setting.optimizer == "adam" else self.retuning.schedule.lr
        schedule: dict[str, Any] = {"optimizer": setting.optimizer, "lr": rate * setting.factor}
        schedule |= {"epochs": setting.epochs, "decay": "constant", "steps": None}
        return self.retuning.replace(poisoned=setting.poisons, schedule=schedule)

    def bench(
        self,
        data: ImageSet,
        *,
        poisons: ImageSet,
        test: ImageSet,
        stamped: ImageSet,
        rng: torch.Generator,
        originals: Tensor | None = None,
    ) -> Bench:
        """Prepare what all models under one attack and seed share.

        Args:
            data: the clean training images that the attacker draws from.
            poisons: stamped training images, labelled with the target.
            test: clean test images.
            stamped: `metrics.triggered` test images.
            rng: its seed decides all draws: the same for every model.
            originals: the poisons' images without the trigger; None leaves that arm out.

        Raises:
            DataError: fewer poisons or samples than the largest count.
        """
        self.need_samples(len(data), len(poisons))
        return Bench(
            self.tuning,
            data=data,
            poisons=poisons,
            weak=None if originals is None else weakened(poisons, originals, self.weak),
            test=test.spread(self.images),
            stamped=stamped.spread(self.images),
            rng=rng,
        )

    def need_samples(self, images: int, poisons: int) -> None:
        """Raise DataError where the largest count is more than there is.

        Args:
            images: clean training images.
            poisons: stamped ones to draw from.
        """
        most = max([*self.counts, self.retuning.poisoned])
        have = min(round(self.retuning.share * images), poisons)
        need(
            most <= have,
            f"expected poisons and samples for a count of {most}, got {have}; lower counts",
            DataError,
        )

    def grid(
        self, bench: Bench, model: nn.Module, implants: Collection[Setting] = ()
    ) -> list[Cell]:
        """Run the arms that are the same for every model: relearn, count, strength.

        Args:
            bench: of the model's attack and seed.
            model: left untouched.
            implants: settings that wake a clean model: they never count, and those of the strength
                arm are left without numbers where no other setting needs the same run.
        """
        cells, paper = [bench.start(model)], self.paper
        for factor in self.relearn_factors:
            alone = Setting(poisons=0, factor=factor)
            cells += bench.run(model, "relearn", alone, self.relearn_epochs)
        for optimizer in self.optimizers:
            for factor in self.factors:
                strong = paper.replace(optimizer=optimizer, factor=factor)
                cells += self._strong(bench, model, strong, implants)
        known = {cell.setting: cell for cell in cells if cell.arm == "strength"}
        for count in sorted({*self.counts, paper.poisons}):
            for draw in range(self.draws):
                some = paper.replace(poisons=count, draw=draw)
                if some in known:  # the strength arm has it
                    cells.append(known[some].replace(arm="count"))
                else:
                    cells += bench.run(model, "count", some, [paper.epochs])
        return cells

    def _strong(
        self, bench: Bench, model: nn.Module, strong: Setting, implants: Collection[Setting]
    ) -> list[Cell]:
        """Run one rate and optimizer as far as a setting of it may count.

        The paper's own goes to the end: recovery speed and the count arm read it.
        """
        every = [strong.replace(epochs=epochs) for epochs in sorted(self.epochs)]
        whole = strong.replace(epochs=self.paper.epochs) == self.paper
        last = max((s.epochs for s in every if whole or s not in implants), default=0)
        run = [setting.epochs for setting in every if setting.epochs <= last]
        cells = bench.run(model, "strength", strong, run) if run else []
        return cells + [Cell(arm="strength", setting=s) for s in every if s.epochs > last]

    def complete(self, bench: Bench, model: nn.Module, cells: Sequence[Cell]) -> list[Cell]:
        """Return a model's cells with those run that `grid` left out, since they implant.

        Args:
            bench: of the model's attack and seed.
            model: left untouched.
            cells: that are known of it.
        """
        left = [c.setting for c in cells if c.arm == "strength" and c.p_asr is None]
        known: dict[Setting, Cell] = {}
        for rate in dict.fromkeys(setting.replace(epochs=0) for setting in left):
            same = bench.run(model, "strength", rate, sorted(self.epochs))
            known |= {cell.setting: cell for cell in same if cell.setting in left}
        return [known.get(c.setting, c) if c.arm == "strength" else c for c in cells]


class Battery(Arms):
    """Retune a model in every way that leaves a clean model asleep, and keep the worst.

    `examination.examine` runs it. Its arms: relearning without poisons, the number of poisons, the
    strength of the tuning, then batch norm and a weakened trigger at the worst setting so far, and
    QRA. The worst setting is tuned anew with draws that had no part in choosing it. A setting is
    admissible or not as a whole, by the mean of each clean model over its draws.

    What it cannot see: a backdoor that wakes for another trigger than the one stamped; one that
    wakes only in settings which teach a clean model the trigger as well (a defense trained against
    RA as published may move it there): these never count, and all that they do is keep a model
    that wakes far beyond clean ones from holding, so that it stays open (as does one that breaks
    where clean ones do not, or wakes where no fresh draws could confirm it); whether a model that
    sleeps through every arm has forgotten, or hides better than these arms seek; more samples,
    longer tunings or other optimizers than its fields name; a defense that hinders the tuning of
    fewer than a quarter of its layers; changes to the architecture (one that cuts off gradients is
    noticed and gated, not undone); an attack made for one defense in particular. "Holds" is a
    statement about these arms, not a proof.
    """

    source: ClassVar[str] = (
        "this project; axes after Qi et al. 2024, arXiv:2412.07097; tuning of Min et al. 2024, "
        "arXiv:2410.09838, sec. 3.2"
    )
    version: ClassVar[int] = 3

    fresh: int = Field(3, ge=1, description="further draws of the worst setting")
    query: Query = Field(Query(surrogate="ep", form="paper"), description="QRA")
    budgets: list[Budget] = Field(
        [4 / 255, 8 / 255, 16 / 255],
        min_length=1,
        description="largest changes of a pixel by QRA, in [0, 1]",
    )
    limits: Limits = Field(Limits(), description="thresholds of the verdict")
    gates: Gates = Field(Gates(), description="thresholds of the checks before any verdict")

    def queries(
        self,
        bench: Bench,
        model: nn.Module,
        *,
        surrogate: nn.Module,
        unseen: nn.Module,
        triggered: ImageSet,
        rng: torch.Generator,
    ) -> list[QueryResult]:
        """Run QRA on a model, from its retuning at the paper's strength.

        Args:
            bench: of the model's attack and seed.
            model: left untouched.
            surrogate: EP's model or a clean one, which the perturbation must not fool.
            unseen: another clean model, on which it is scored beside the model.
            triggered: stamped training images outside the target class, with their true labels.
            rng: of the draws and the generator.
        """
        retuning = self.tuning(self.paper)
        pool, stream = bench.pools["exact"], bench.stream(0)
        relearned = retuning(model, bench.data, rng=stream, poisons=pool).model
        outcome = self.query(
            model,
            bench.data,
            rng=rng,
            retuned=relearned,
            surrogate=surrogate,
            triggered=triggered,
        )
        perturb, models = along(generator_of(outcome.tensors)), {"own": model, "clean": unseen}
        rows = sweep(models, bench.test, bench.stamped, perturb, sorted(self.budgets))
        reached = {(row["model"], row["eps"]): row["p_asr"] for row in rows}
        return [
            QueryResult(eps=eps, p_asr=reached["own", eps], clean=reached["clean", eps])
            for eps in sorted(self.budgets)
        ]
