"""Input-Aware: two networks give every image a trigger of its own."""

import copy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.attacks.base import Poisoned, State
from ppr_core.attacks.parts.cover import CoverAttack
from ppr_core.attacks.parts.trigger_networks import SPREAD, TriggerNetworks, sharpen
from ppr_core.config import Field
from ppr_core.data.images import ImageSet, to_float, to_uint8
from ppr_core.errors import need
from ppr_core.method import Outcome
from ppr_core.runtime import seed_of, seeded
from ppr_core.training.fit import Schedule, fit, make_optimizer

AT_ONCE = 512  # images stamped together; bounds the memory of the networks' maps


class InputAware(CoverAttack):
    """Paste what a pattern network draws where a mask network points.

    The mask network is prepared; the pattern network learns beside the classifier, so the trigger
    is known only after training. Covers show the trigger of another image.

    Differs from the authors' code: batches are cropped and flipped before they are stamped, as
    the training loop has them, not after, and not rotated; images are centred alike for every
    data set; the mask's learning rate decays by a cosine and the pattern's is constant; the
    classifier's schedule is that of every victim.
    """

    source: ClassVar[str] = "Nguyen and Tran 2020, arXiv:2010.08138"
    learns_trigger: ClassVar[bool] = True

    width: int = Field(32, ge=1, description="channels of the networks' first stage")
    density: float = Field(0.032, ge=0, le=1, description="mask values above it are penalised")
    sparsity: float = Field(100.0, ge=0, description="weight of that penalty")
    diversity: float = Field(1.0, ge=0, description="weight of the difference between triggers")
    mask_training: Schedule = Field(
        Schedule(epochs=25, lr=0.01, optimizer="adam", decay="cosine"),
        description="of the mask network",
    )
    pattern_lr: float = Field(0.01, ge=0, description="Adam's learning rate, pattern network")

    def preparation(self) -> dict[str, Any]:
        """Return the settings of the mask network."""
        names = {"width", "density", "sparsity", "diversity", "mask_training"}
        return self.model_dump(mode="json", include=names)

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Train the mask network, for sparse and diverse masks; draw the pattern network."""
        with seeded(seed_of(rng, "networks")):
            trigger = TriggerNetworks(self.width).to(data.device)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            masks, others = sharpen(trigger.mask(images)), images.roll(1, 0)
            excess = F.relu(masks - self.density).mean()
            alike = _distance_ratio(images / SPREAD, others / SPREAD, masks, masks.roll(1, 0))
            return self.sparsity * excess + self.diversity * alike

        fit(trigger.mask, data, self.mask_training, rng=rng, loss=loss)
        return dict(trigger.state_dict())

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Give each image its own trigger, truncated to grey levels; the same at both stages."""
        return self._paste(images, images, state)

    def stamp_cover(
        self, data: ImageSet, indices: Tensor, *, rng: np.random.Generator, state: State
    ) -> Tensor:
        """Give each image the trigger of a random other one."""
        others = data.images[torch.from_numpy(rng.integers(len(data), size=len(indices)))]
        return self._paste(data.images[indices], others, state)

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        poisoned: Poisoned,
        *,
        rng: torch.Generator,
        state: State,
    ) -> Outcome:
        """Stamp the first images of every batch; the pattern network learns from the same loss."""
        both = _Both(model, copy.deepcopy(self._load(state)))
        pattern = both.trigger.pattern

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            poisons, covers = self.split_batch(len(images), rng)
            end, pairs = poisons + covers, min(poisons, covers)
            if not end:
                return F.cross_entropy(model(images), labels)
            givers = torch.cat((images[:poisons], images.roll(-1, 0)[poisons:end]))
            stamped, patterns = both.trigger(images[:end], givers)
            labels = torch.cat((torch.full_like(labels[:poisons], self.target), labels[poisons:]))
            value = F.cross_entropy(model(torch.cat((stamped, images[end:]))), labels)
            if pairs:
                one, other = slice(pairs), slice(poisons, poisons + pairs)
                alike = _distance_ratio(givers[one], givers[other], patterns[one], patterns[other])
                value = value + self.diversity * alike
            return value

        rate = Schedule(optimizer="adam", lr=self.pattern_lr)
        optimizer = _Pair(
            make_optimizer(model.parameters(), self.training),
            make_optimizer(pattern.parameters(), rate),
        )
        # The loop's own generator, one module and one optimizer for all: it can be resumed.
        how: dict[str, Any] = {"loss": loss, "optimizer": optimizer, "evaluate": True}
        history = fit(both, data, self.training, rng=rng, resume="victim", **how)
        return Outcome(model, history, tensors=pattern.state_dict(prefix="trigger.pattern."))

    @torch.no_grad()
    def _paste(self, images: Tensor, givers: Tensor, state: State) -> Tensor:
        trigger, out = self._load(state), torch.empty_like(images)
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            out[part] = to_uint8(trigger(to_float(images[part]), to_float(givers[part]))[0])
        return out

    def _load(self, state: State) -> TriggerNetworks:
        """Return the two networks, in eval mode; they share the state's tensors."""
        with torch.device("meta"):
            trigger = TriggerNetworks(self.width)
        names = set(trigger.state_dict())
        need(
            names <= set(state),
            f"expected InputAware's networks in the state, got {sorted(state)[:3]}; pass what "
            "`prepare` returned as state",
        )
        trigger.load_state_dict({name: state[name] for name in names}, assign=True)
        return trigger.eval()


class _Both(nn.Module):
    """Classifier and trigger as one module; as a function, it is the classifier."""

    def __init__(self, classifier: nn.Module, trigger: TriggerNetworks) -> None:
        super().__init__()
        self.classifier, self.trigger = classifier, trigger

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> logits."""
        return self.classifier(pixels)


class _Pair:
    """Two optimizers stepped as one; a schedule moves the first one's learning rate only."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.both, self.param_groups = (first, second), first.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.both:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        for optimizer in self.both:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.both)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, optimizer in enumerate(self.both):
            optimizer.load_state_dict(state[str(i)])
        self.param_groups = self.both[0].param_groups


def _distance_ratio(first: Tensor, second: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return the distance of images over that of their triggers: large where triggers are alike."""
    images, triggers = (
        ((a - b) ** 2).mean((1, 2, 3)).clamp_min(1e-12).sqrt()  # the root of 0 has no gradient
        for a, b in ((first, second), (one, other))
    )
    return (images / (triggers + 1e-7)).mean()
