"""A model alone, with clean images: which trigger may it know, and does that one wake it?"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ppr_core.config import Field, Settings
from ppr_core.data.images import ImageSet, to_float, to_uint8
from ppr_core.defenses.sources.base import Change, TriggerSource
from ppr_core.defenses.sources.cleanse import Cleanse, anomaly
from ppr_core.defenses.sources.inversion import Inversion
from ppr_core.errors import ConfigError, DataError, need
from ppr_core.method import fork
from ppr_core.metrics import EVAL_BATCH, triggered
from ppr_core.models.needs import need_all
from ppr_core.reactivation.battery import Battery
from ppr_core.reactivation.cells import Bench, Cell, Setting
from ppr_core.reactivation.figures import by_count, started, wake_count
from ppr_core.reactivation.retuning import Retuning

Search = Literal["BTI-DBF", "Neural Cleanse"]


@dataclass(frozen=True)
class Guess:
    """A trigger that an inversion found.

    Attributes:
        name: of the inversion.
        label: that the trigger leads to.
        scores: one a class: votes (BTI-DBF), or how far a patch's norm is below the median, in
            median absolute deviations (Neural Cleanse).
        info: what else it found; doubts under "warnings".
        change: puts the trigger on pixels in [0, 1].
        state: tensors of the inversion.
    """

    name: str
    label: int
    scores: list[float]
    info: dict[str, Any]
    change: Change
    state: dict[str, Tensor]

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        """Put the trigger on uint8 images (N, C, H, W)."""
        parts = images.split(EVAL_BATCH)
        return torch.cat([to_uint8(self.change(to_float(part))) for part in parts])


@dataclass(frozen=True)
class StandIn:
    """What RA does with an inverted trigger in the place of the real one.

    Attributes:
        asr: of the inverted trigger before RA, percent.
        wake_count: n50: poisons at which half of the images follow; 0: clean images alone do it;
            inf: no count that was tried.
        counts: (poisons, ASR after RA).
        cells: every tuning.
    """

    asr: float
    wake_count: float
    counts: list[tuple[int, float]]
    cells: list[Cell]


class Scan(Settings):
    """Invert the trigger of a model in up to two ways, and retune it on what was found.

    Neither tells a backdoor from a class that is easily reached: on a clean model, too, some class
    has the most votes and the smallest patch.
    """

    source: ClassVar[str] = (
        "this project; inversions of Xu et al. 2024 (BTI-DBF) and Wang et al. 2019 (Neural Cleanse)"
    )

    searches: list[Search] = Field(
        ["BTI-DBF", "Neural Cleanse"], min_length=1, description="ways to invert a trigger"
    )
    inversion: Inversion = Field(Inversion(), description="BTI-DBF's search")
    cleanse: Cleanse = Field(Cleanse(fallback=True), description="Neural Cleanse's search")
    battery: Battery = Field(
        Battery(retuning=Retuning(share=1.0), draws=1),
        description="its counts, tuning and thresholds count here",
    )
    held: float = Field(0.25, gt=0, lt=1, description="share of the images that ASR is taken on")

    def split(self, data: ImageSet, rng: torch.Generator) -> tuple[ImageSet, ImageSet]:
        """Return the images to search and tune on, and those to judge on."""
        count = round(self.held * len(data))
        need(
            0 < count < len(data) - 1,
            f"expected images to tune and to judge on, got {len(data)} in all",
            DataError,
        )
        tune = len(data) - count
        need(
            min(self.battery.counts, default=0) <= self._most(tune),
            f"expected battery.counts with one of at most {self._most(tune)} poisons, half of "
            f"what is tuned on, got {self.battery.counts}; give more images, or smaller counts",
            DataError,
        )
        order = torch.randperm(len(data), generator=fork(rng, "held"))
        return data.subset(order[count:]), data.subset(order[:count])

    def _most(self, images: int) -> int:
        """Return how many of the samples may be poisons."""
        return round(self.battery.retuning.share * images) // 2

    def guesses(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator
    ) -> tuple[list[Guess], dict[str, str]]:
        """Search in each way.

        Returns:
            What was found, and why a search could not be made, by its name.
        """
        found, left_out = [], dict[str, str]()
        sources: dict[Search, TriggerSource] = {
            "BTI-DBF": self.inversion,
            "Neural Cleanse": self.cleanse,
        }
        for name in self.searches:
            source = sources[name]
            try:
                need_all(model, source.needs, name)
                source.check(model, data)
            except ConfigError as error:
                left_out[name] = str(error)
                continue
            state = source.invert(model, data, rng=fork(rng, name), state={})
            if "stop" in state:
                left_out[name] = "no class stands out"
                continue
            found.append(_guess(name, source, model, state))
        return found, left_out

    def stand_in(
        self,
        model: nn.Module,
        guess: Guess,
        tune: ImageSet,
        held: ImageSet,
        *,
        rng: torch.Generator,
    ) -> StandIn:
        """Retune a model on images that carry an inverted trigger, with growing numbers of them.

        Args:
            model: left as it is.
            guess: the trigger.
            tune: clean images, which poisons are made of as well.
            held: clean images to judge on.
            rng: its seed decides all draws.
        """
        poisons = triggered(tune, guess.stamp, guess.label)
        bench = Bench(
            self.battery.tuning,
            data=tune,
            poisons=poisons,
            weak=None,
            test=held,
            stamped=triggered(held, guess.stamp, guess.label),
            rng=rng,
        )
        epochs, cells = self.battery.paper.epochs, [bench.start(model)]
        most = min(len(poisons), self._most(len(tune)))
        cells += bench.run(model, "relearn", Setting(poisons=0), [epochs])
        for count in sorted(number for number in self.battery.counts if number <= most):
            for draw in range(self.battery.draws):
                some = Setting(poisons=count, draw=draw)
                cells += bench.run(model, "count", some, [epochs])
        return StandIn(
            started(cells).p_asr or 0.0,
            wake_count(cells, self.battery.limits.woken),
            by_count(cells),
            cells,
        )


def _guess(name: str, source: TriggerSource, model: nn.Module, state: dict[str, Tensor]) -> Guess:
    """Take the one trigger that a search thinks most likely."""
    info = source.findings(state)
    if "votes" in state:
        scores = state["votes"].tolist()
    else:
        scores = anomaly(state["norms"].cpu()).tolist()
        info["norms"] = state["norms"].tolist()
        single = {key: state[key][:1] for key in ("masks", "patterns", "flagged")}
        state = {**state, **single}
    change = source.trigger(model, state, None)
    return Guess(name, int(info["label"]), scores, info, change, state)
