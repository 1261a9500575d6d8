"""Blind: the attacker changes the loss, and no image of the training set."""

from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.attacks.base import Attack, Poisoned, State
from ppr_core.attacks.parts.joint import losses
from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError, need
from ppr_core.method import Outcome
from ppr_core.training.fit import fit

# 1 is white, 0 black, and -1 leaves the image's own pixel.
PATTERN = ((1, 0, 1), (-1, 1, -1), (-1, -1, 0), (-1, 1, -1), (1, 0, 1))
TOP, LEFT = 3, 23  # of the pattern, pixels at any size of the image


class Blind(Attack):
    """Add the loss of the whole batch with the trigger, once the model has learnt its task.

    `poison_rate` tells which triggered training images the attacker keeps for RA and QRA; 0 trains
    a clean model.

    Differs from the paper: the two losses have fixed weights, as BackdoorBench has them; the
    paper balances their gradients (MGDA), which the authors' own advice is not to do.

    Differs from the authors' code: clean and triggered images share a pass (`losses` says why);
    batches are cropped and flipped before they are stamped; the schedule is that of every victim.
    """

    source: ClassVar[str] = "Bagdasaryan and Shmatikov 2021, arXiv:2005.03823, sec. 4"

    wait: int = Field(1000, ge=1, description="last batches that the mean loss is taken over")
    calm: float = Field(1.0, ge=0, description="mean loss below which the backdoor is trained")
    weight: float = Field(0.9, ge=0, description="of the triggered batch's loss, beside 1")

    def check_data(self, data: ImageSet) -> None:
        """Raise DataError also where the pattern lies outside of the images."""
        super().check_data(data)
        least = LEFT + len(PATTERN[0])
        need(
            data.size >= least,
            f"expected images of {least} pixels or more for Blind's pattern, got {data.size}; it "
            "is never resized",
            DataError,
        )

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Paint the pattern; the same at both stages."""
        return painted(images, 255)

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        poisoned: Poisoned,
        *,
        rng: torch.Generator,
        state: State,
    ) -> Outcome:
        """Train on clean images, and on the whole batch triggered while the clean loss is low."""
        if not self.poison_rate:
            return super().train(model, data, poisoned, rng=rng, state=state)
        watched = Watched(model, self.wait).to(data.device)
        how: dict[str, Any] = {"loss": self.loss(watched), "resume": "victim", "evaluate": True}
        return Outcome(model, fit(watched, data, self.training, rng=rng, **how))

    def loss(self, model: "Watched") -> Any:
        """Return the loss of a batch."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            if not model.is_calm(self.calm):
                value = F.cross_entropy(model(images), labels)
                model.note(value.detach())
                return value
            clean, backdoor = losses(model, images, labels, painted(images, 1.0), self.target)
            model.note(clean.detach())
            return clean + self.weight * backdoor

        return loss


class Watched(nn.Module):
    """A classifier and its last losses, which a resumed training goes on with."""

    losses: Tensor
    seen: Tensor

    def __init__(self, classifier: nn.Module, wait: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("losses", torch.zeros(wait))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> logits."""
        return self.classifier(pixels)

    def note(self, loss: Tensor) -> None:
        """Keep a loss in the place of the oldest."""
        self.losses[self.seen % len(self.losses)] = loss.float()
        self.seen += 1

    def is_calm(self, below: float) -> bool:
        """Say whether as many losses as are kept were seen, and have a mean below a bound."""
        return bool((self.seen >= len(self.losses)) & (self.losses.mean() < below))


def painted(images: Tensor, white: float) -> Tensor:
    """Return images (N, C, H, W) of any type with the pattern, white as given and black 0."""
    pattern = _pattern(images.device)
    out = images.clone()
    rows, columns = slice(TOP, TOP + len(PATTERN)), slice(LEFT, LEFT + len(PATTERN[0]))
    part = out[..., rows, columns]
    part.copy_(torch.where(pattern < 0, part, (pattern * white).to(images.dtype)))
    return out


@lru_cache(maxsize=4)
def _pattern(device: torch.device) -> Tensor:
    return torch.tensor(PATTERN, device=device)
