"""TSC: leave the basin of the backdoored model by a permutation, and come back along curves."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.alignment import assigned, correlations, permuted, streams
from ppr_core.config import Field
from ppr_core.curves import CURVE, bezier, fit_curve, recalibrated
from ppr_core.data.images import ImageSet, to_float
from ppr_core.defenses.base import Defense
from ppr_core.method import Outcome, fork
from ppr_core.models.base import clone
from ppr_core.runtime import Record
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import State, snapshot


class Tsc(Defense):
    """Take a point of a low curve to a permuted copy, and of one from the model brought near to it.

    Each round puts a copy's channels into the order that correlates least with the model's own,
    trains a quadratic curve between the two, takes a point of it, brings the model's channels into
    the order that correlates most with that point's, and takes a point of a second curve. The
    copy computes what the model does, so what survives is what the clean images keep low all along.

    Its result may lie in another basin than the backdoored model: a straight path between the two
    tells of a backdoor only after permutation alignment (the measure `aligned_path`).

    Differs from the authors' code: the rate of a curve falls to zero over its whole training, where
    theirs falls over the first half and rises again (`curve: {half_wave: STEPS}`); correlations
    are those of all images together, where theirs are means over batches; statistics are taken
    anew on images as they are, where theirs are augmented.
    """

    source: ClassVar[str] = "Peng et al. 2025, arXiv:2506.07467, and its released code"

    asks: ClassVar[str] = "layers whose channels can be permuted"

    rounds: int = Field(3, ge=1, description="rounds of leaving and coming back")
    position: float = Field(0.4, ge=0, le=1, description="where on a curve the next model lies")
    decay: float = Field(1e-4, ge=0, description="weight decay at the points of a curve, halved")
    curve: Schedule = Field(CURVE, description="of the middle of each curve")
    tuning: Schedule = Field(
        Schedule(epochs=10, lr=1e-4, weight_decay=5e-4, batch_size=256, decay="cosine"),
        description="of all weights, between two rounds",
    )

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise ConfigError for a model whose channels it cannot permute."""
        super().check(model, data)
        streams(model, _pixels(model, data))

    def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Leave and come back, round after round."""
        history: list[Record] = []
        for number in range(1, self.rounds + 1):
            far = self.ordered(model, model, data, largest=False)
            point = self.between(model, snapshot(model), far, data, fork(rng, "leave", number))
            other = clone(model)
            other.load_state_dict(point[0])
            near = self.ordered(other, model, data, largest=True)
            back = self.between(model, near, point[0], data, fork(rng, "return", number))
            model.load_state_dict(back[0])
            history += point[1] + back[1]
            if number < self.rounds:
                history += fit(model, data, self.tuning, rng=fork(rng, "tune", number))
        records = [{**record, "epoch": done} for done, record in enumerate(history, 1)]
        return Outcome(model, records)

    def ordered(
        self, fixed: nn.Module, moving: nn.Module, data: ImageSet, *, largest: bool
    ) -> State:
        """Return a model's weights in the order that correlates most (or least) with another's."""
        found = streams(moving, _pixels(moving, data))
        scores = correlations(found, fixed, moving, data)
        orders = [assigned(score, largest=largest) for score in scores]
        return permuted(snapshot(moving), found, orders)

    def between(
        self, model: nn.Module, start: State, end: State, data: ImageSet, rng: torch.Generator
    ) -> tuple[State, list[Record]]:
        """Return a point of a trained curve, and the records of its training."""
        middle = clone(model)
        history = fit_curve(middle, start, end, data, self.curve, rng=rng, decay=self.decay)
        point = bezier(start, snapshot(middle), end, self.position)
        return recalibrated(model, point, data), history


def _pixels(model: nn.Module, data: ImageSet) -> Tensor:
    """Return two images where the model lies, which may be the meta device."""
    return to_float(data.images[:2]).to(next(model.parameters()).device)
