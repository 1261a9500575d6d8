"""What the sliders ask a model: QRA at any budget, and the model at any point of the path."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ppr_core import connectivity
from ppr_core.data.images import ImageSet, to_float, to_uint8
from ppr_core.errors import need
from ppr_core.explorer.holdings import Held
from ppr_core.lab.graph import Cell
from ppr_core.lab.reader import Reader
from ppr_core.metrics import attack_success_rate, clean_accuracy, triggered
from ppr_core.reactivation.perturbation import within
from ppr_core.reactivation.query import generator_of
from ppr_core.runtime import autocast, session
from ppr_core.weights import snapshot

SHOWN = 6  # test images that are shown
MEASURED = 200  # test images, of each kind, behind a live figure
STRONGEST = 0.5  # pixel value that the amplified perturbation's budget is drawn at


@dataclass(frozen=True)
class Sample:
    """The shown images at one budget.

    Attributes:
        images: row of the picture -> (N, 3, H, W) uint8.
        answers: image (from 0), row, model, predicted class, confidence (percent), and whether it
            is the attacker's target.
        factor: what the perturbation is multiplied by to be seen.
    """

    images: dict[str, Tensor]
    answers: pd.DataFrame
    factor: float


class Samples:
    """Fixed test images under QRA's perturbation, answered by every stage's model.

    Args:
        held: what the store holds of the study.
        lab: reads weights.
        cell: a purified model whose QRA the store holds.
    """

    def __init__(self, held: Held, lab: Reader, cell: Cell) -> None:
        plan = held.plan
        stage = need(held.query(cell), f"expected QRA of {cell.label} in the store, got none")
        self.precision = plan.study.precision
        stages = {
            "backdoored": plan.backdoored(cell),
            "purified": plan.purified(cell),
            "retuned": plan.retuned(cell),
            "unseen clean": plan.unseen_clean(cell.seed),
        }
        known = {name: made for name, made in stages.items() if made is not None and made in held}
        self.models = {name: lab.model(made) for name, made in known.items()}
        self.generator = generator_of(lab.result(stage).tensors).to(plan.device)
        self.trigger = lab.trigger(stage)
        self.plain = one_a_class(plan.images.test, self.trigger.target)
        self.stamped = self.trigger(self.plain.images)
        with session(precision=self.precision):
            self.before = self._answers("triggered", to_float(self.stamped))

    @torch.no_grad()
    def at(self, eps: float) -> Sample:
        """Return the images and every model's answers at a budget, in [0, 1]."""
        with session(precision=self.precision):
            pixels = to_float(self.stamped)
            moved = within(pixels, self.generator(pixels), eps)
            answers = pd.concat([self.before, self._answers("perturbed", moved)])
        factor = STRONGEST / max(eps, 1 / 255)
        images = {
            "original": self.plain.images,
            "triggered": self.stamped,
            "perturbed": to_uint8(moved),
            "perturbation": to_uint8(0.5 + factor * (moved - pixels)),
        }
        return Sample({n: i.cpu() for n, i in images.items()}, answers, factor)

    @torch.no_grad()
    def _answers(self, row: str, pixels: Tensor) -> pd.DataFrame:
        names, frames = self.plain.classes, []
        for model, made in self.models.items():
            with autocast(pixels.device):
                answers = made(pixels).float()
            confidence, classes = answers.softmax(1).max(1)
            frames.append(
                pd.DataFrame(
                    {
                        "image": range(len(pixels)),
                        "row": row,
                        "model": model,
                        "predicted": [names[index] for index in classes.tolist()],
                        "confidence": (100 * confidence).tolist(),
                        "target": (classes == self.trigger.target).tolist(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)


def one_a_class(test: ImageSet, target: int) -> ImageSet:
    """Return the first image of each of the first classes, the target's left out."""
    others = [index for index in test.labels.unique().tolist() if index != target]
    firsts = [int((test.labels == index).nonzero()[0]) for index in others[:SHOWN]]
    return test.subset(torch.tensor(firsts))


class Walk:
    """The model at any point of the line from the backdoored to a purified one.

    Args:
        held: what the store holds of the study.
        lab: reads weights.
        cell: a purified model.
    """

    def __init__(self, held: Held, lab: Reader, cell: Cell) -> None:
        plan = held.plan
        self.precision = plan.study.precision
        stages = plan.backdoored(cell), plan.purified(cell)
        start, self.model = lab.ends(*stages)
        self.states = snapshot(start), snapshot(self.model)
        self.test: ImageSet = plan.images.test.spread(MEASURED)
        trigger = lab.trigger(stages[1])
        others = plan.images.test.labels != trigger.target
        some = plan.images.test.subset(others).spread(MEASURED)
        self.stamped = triggered(some, trigger, trigger.target)

    def at(self, t: float) -> dict[str, float]:
        """Return the model's clean_error and backdoor_error (percent) at t, from 0 to 1."""
        model = self.model
        model.load_state_dict(connectivity.point(model, *self.states, t))
        with session(precision=self.precision):
            return {
                "clean_error": 100 - clean_accuracy(model, self.test),
                "backdoor_error": 100 - attack_success_rate(model, self.stamped),
            }
