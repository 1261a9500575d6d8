"""Input-Aware: two networks give every image a trigger of its own."""

import copy
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.attacks.base import Poisoned, State
from ppr_core.attacks.cover import CoverAttack
from ppr_core.config import Field
from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import ConfigError, need
from ppr_core.method import Outcome, fork
from ppr_core.training import Schedule, fit, make_optimizer

AT_ONCE = 512  # images stamped together; bounds the memory of the networks' maps
OUTPUTS = {"mask": 1, "pattern": 3}  # channels of the two networks
CENTRE, SPREAD = 0.5, 0.25  # of pixels, as the networks and the distances take them


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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fork(rng, "networks").initial_seed())
            networks = {name: _Network(self.width, out) for name, out in OUTPUTS.items()}
        mask = networks["mask"].to(data.device)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            masks, others = _sharpen(mask(images)), images.roll(1, 0)
            excess = F.relu(masks - self.density).mean()
            alike = _likeness(images / SPREAD, others / SPREAD, masks, masks.roll(1, 0))
            return self.sparsity * excess + self.diversity * alike

        fit(mask, data, self.mask_training, rng=rng, loss=loss)
        return _tensors(mask, "mask") | _tensors(networks["pattern"].to(data.device), "pattern")

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
        mask = self._load("mask", state)
        both = _Both(model, copy.deepcopy(self._load("pattern", state)))

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            poisons, covers = self.split_batch(len(images), rng)
            stamped = poisons + covers
            givers = torch.cat((images[:poisons], images.roll(-1, 0)[poisons:stamped]))
            if not stamped:
                return F.cross_entropy(model(images), labels)
            with torch.no_grad():
                masks = _sharpen(mask(givers))
            patterns = both.pattern(givers)
            mixed = torch.lerp(images[:stamped], patterns, masks)
            labels = torch.cat((torch.full_like(labels[:poisons], self.target), labels[poisons:]))
            value = F.cross_entropy(model(torch.cat((mixed, images[stamped:]))), labels)
            pairs = min(poisons, covers)
            first, second = slice(pairs), slice(poisons, poisons + pairs)
            if pairs:
                alike = _likeness(givers[first], givers[second], patterns[first], patterns[second])
                value = value + self.diversity * alike
            return value

        rate = self.mask_training.replace(lr=self.pattern_lr)
        optimizer = _Pair(
            make_optimizer(model.parameters(), self.training),
            make_optimizer(both.pattern.parameters(), rate),
        )
        # The loop's own generator, and one module for both networks: training can be resumed.
        history = fit(
            both, data, self.training, rng=rng, loss=loss, optimizer=optimizer, name="train"
        )
        return Outcome(model, history, tensors=_tensors(both.pattern, "trigger.pattern"))

    @torch.no_grad()
    def _paste(self, images: Tensor, givers: Tensor, state: State) -> Tensor:
        mask, pattern = (self._load(name, state) for name in ("mask", "pattern"))
        out = []
        for part, giver in zip(images.split(AT_ONCE), givers.split(AT_ONCE), strict=True):
            pixels = to_float(giver)
            out.append(torch.lerp(part.float(), 255 * pattern(pixels), _sharpen(mask(pixels))))
        return torch.cat(out).clamp_(0, 255).to(torch.uint8) if out else images.clone()

    def _load(self, name: str, state: State) -> nn.Module:
        """Return a network, in eval mode, that shares the state's tensors."""
        prefix = f"{name}."
        tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        need(
            tensors,
            f"expected the {name} network in the attack's state, got {sorted(state)[:3]}; pass "
            "what `prepare` returned as state=...",
            ConfigError,
        )
        with torch.device("meta"):
            network = _Network(self.width, OUTPUTS[name])
        network.load_state_dict(tensors, assign=True)
        return network.eval()


class _Network(nn.Module):
    """Three halvings, a middle, three doublings: pixels -> (N, out, H, W) in [0, 1]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        stages = (3, width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Sequential(_block(a, b), _block(b, b)) for a, b in pairwise(stages)
        )
        self.middle = _block(stages[-1], stages[-1])
        self.up = nn.ModuleList(
            nn.Sequential(_block(a, a), _block(a, b)) for a, b in pairwise(stages[:0:-1])
        )
        self.up.append(nn.Sequential(_block(width, width), _block(width, out)[:2]))  # no ReLU

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, out, H, W) float32 in [0, 1]."""
        maps, sizes = (pixels - CENTRE) / SPREAD, []
        for stage in self.down:
            sizes.append(maps.shape[-2:])
            maps = F.max_pool2d(stage(maps), 2)
        maps = self.middle(maps)
        for stage in self.up:
            maps = stage(F.interpolate(maps, sizes.pop(), mode="bilinear"))
        return _squash(maps.float())


class _Both(nn.Module):
    """Classifier and pattern network as one module; as a function, it is the classifier."""

    def __init__(self, classifier: nn.Module, pattern: nn.Module) -> None:
        super().__init__()
        self.classifier, self.pattern = classifier, pattern

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


def _block(inputs: int, outputs: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs, momentum=0.05)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU())


def _tensors(network: nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor.detach() for key, tensor in network.state_dict().items()}


def _squash(values: Tensor) -> Tensor:
    """Map any values into (0, 1)."""
    return torch.tanh(values) / (2 + 1e-7) + 0.5


def _sharpen(mask: Tensor) -> Tensor:
    """Push mask values in (0, 1) to either end."""
    return _squash(20 * mask - 10)


def _likeness(first: Tensor, second: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return how far images differ over how far their triggers do: large for like triggers."""
    images, triggers = (
        ((a - b) ** 2).mean((1, 2, 3)).clamp_min(1e-12).sqrt()  # the root of 0 has no gradient
        for a, b in ((first, second), (one, other))
    )
    return (images / (triggers + 1e-7)).mean()
