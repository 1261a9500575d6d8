"""NAD: neural attention distillation."""

from contextlib import AbstractContextManager
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.models.base import clone
from ppr_core.models.hooks import watching
from ppr_core.runtime import part
from ppr_core.training.fit import Schedule, fit

TUNING = Schedule(epochs=10, lr=0.01, weight_decay=5e-4, batch_size=256)


class Nad(Defense):
    """Fine-tune a teacher, then the model itself towards the teacher's attention in each block.

    Differs from the authors' code: one forward pass gives all blocks, where BackdoorBench runs a
    network cut short for each. Its cuts count the final pooling, whose attention is 1 everywhere,
    as the last block: the weights 500 and 1000 fall to the two before it, and for ResNet-18, with
    the last weight alone, none is left. Here the weights are those of the last three blocks.
    """

    source: ClassVar[str] = "Li et al. 2021, arXiv:2101.05930, sec. 3"
    needs: ClassVar[tuple[str, ...]] = ("backbone",)
    asks: ClassVar[str] = "a block in it for each of betas"

    betas: list[Annotated[float, Field(ge=0)]] = Field(
        [500.0, 1000.0, 1000.0],
        min_length=1,
        description="weights of the attention's MSE in the last blocks, from early to late",
    )
    teacher: Schedule = Field(TUNING, description="tuning of the teacher, all weights")
    schedule: Schedule = Field(TUNING, description="tuning of the model towards the teacher")

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise ConfigError for a model of fewer blocks than there are weights."""
        super().check(model, data)
        count = len(blocks(model))
        need(
            count >= len(self.betas),
            f"expected a backbone of at least {len(self.betas)} blocks, got {count}; "
            f"give at most {count} betas",
        )

    def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Tune the teacher, a copy; then the model."""
        teacher = clone(model)
        with part("teacher"):
            fit(teacher, data, self.teacher, rng=fork(rng, "teacher"), resume="tune")
        teacher.requires_grad_(False)
        ours: dict[str, Tensor] = {}
        theirs: dict[str, Tensor] = {}

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            logits = model(images)
            with torch.no_grad():
                teacher(images)
            apart = [F.mse_loss(attention(ours[k]), attention(theirs[k])) for k in ours]
            terms = zip(self.betas, apart, strict=True)
            return F.cross_entropy(logits, labels) + sum(beta * mse for beta, mse in terms)

        with self._noting(model, ours), self._noting(teacher, theirs):
            history = fit(
                model, data, self.schedule, rng=fork(rng, "tune"), loss=loss, resume="tune"
            )
        return Outcome(model, history)

    def _noting(self, model: nn.Module, outputs: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Keep the outputs of the last blocks, in their order, whenever the model runs."""
        last = dict(blocks(model)[-len(self.betas) :])
        return watching(last, lambda name, _, output: outputs.__setitem__(name, output))


def attention(maps: Tensor) -> Tensor:
    """Return attention maps (N, h, w): squares summed over channels, scaled to norm 1 in space."""
    need(maps.ndim == 4, f"expected maps (N, C, h, w) from each block, got {tuple(maps.shape)}")
    squares = maps.float().square().sum(1)
    return squares / (torch.linalg.vector_norm(squares, dim=(1, 2), keepdim=True) + 1e-6)


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of the backbone that are made of parts themselves, by name, in order."""
    children = model.get_submodule("backbone").named_children()
    return [(name, part) for name, part in children if next(part.children(), None) is not None]
