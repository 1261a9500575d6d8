"""LIRA: a network gives every image a faint trigger; it learns against a classifier."""

import copy
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.attacks.base import Poisoned, State
from ppr_core.attacks.parts.joint import losses
from ppr_core.attacks.parts.surrogate import SurrogateAttack
from ppr_core.attacks.parts.trigger_networks import CENTRE, SPREAD
from ppr_core.config import Budget, Field
from ppr_core.data.images import ImageSet, to_float, to_uint8
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.runtime import autocast, seed_of, seeded
from ppr_core.training.capture import Loss
from ppr_core.training.fit import Schedule, fit, make_optimizer
from ppr_core.weights import under

AT_ONCE = 512  # images stamped together; bounds the memory of the network's maps
PREFIX = "generator."


class Lira(SurrogateAttack):
    """Learn a generator of triggers beside a classifier; then train the victim on both.

    Stage 1 is prepared: in every batch the generator steps towards the target, and a surrogate
    steps on clean images and on those of the last epoch's generator. Stage 2 is the victim's own
    training: the generator is fixed, and every batch is seen clean and triggered. `poison_rate`
    tells which triggered training images the attacker keeps for RA and QRA; 0 trains a clean model.

    Differs from the authors' code: BackdoorBench returns stage 1's classifier; here it is stage
    2's, which starts anew. The trigger's size is that of pixels in [0, 1], not of normalised ones,
    where it would be half a grey level, and the generator learns through the truncation to whole
    levels. Clean and triggered images share a pass (`losses` says why) and are clipped to [0, 1];
    the victim's schedule is that of every victim.
    """

    source: ClassVar[str] = "Doan et al. 2021, ICCV, sec. 3"
    trains_stamp: ClassVar[bool] = True

    eps: Budget = Field(0.01, description="largest change of a pixel")
    width: int = Field(16, ge=1, description="channels of the generator's first stage")
    generator_lr: float = Field(1e-4, ge=0, description="Adam's learning rate, generator")
    weight: float = Field(0.5, ge=0, le=1, description="of the triggered images' loss")
    surrogate_schedule: Schedule = Field(
        Schedule(epochs=50, lr=0.01), description="of the surrogate and the generator, stage 1"
    )

    def preparation(self) -> dict[str, Any]:
        """Return what shapes the generator."""
        return self.shaping("eps", "width", "generator_lr", "weight")

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Train generator and surrogate by turns, batch by batch."""
        with seeded(seed_of(rng, "generator")):
            learning = Generator(self.width).to(data.device)
        last, model = copy.deepcopy(learning).eval(), self.new_surrogate(data, rng)
        rate = Schedule(optimizer="adam", lr=self.generator_lr)
        optimizer = make_optimizer(learning.parameters(), rate)
        per_epoch, steps = self.surrogate_schedule.epoch_steps(len(data)), 0

        def step_generator(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            optimizer.zero_grad()
            with autocast(images.device):
                logits = model(self.triggered(learning, images))
                loss = F.cross_entropy(logits, torch.full_like(labels, self.target))
            loss.backward()  # the classifier's gradients are cleared before its own step
            optimizer.step()
            return images, labels

        def renew() -> None:
            nonlocal steps
            steps += 1
            if steps % per_epoch == 0:
                last.load_state_dict(learning.state_dict())

        how: dict[str, Any] = {"on_batch": step_generator, "after_step": renew}
        loss = self.loss(model, last)
        fit(model, data, self.surrogate_schedule, rng=fork(rng, "stage 1"), loss=loss, **how)
        return {f"{PREFIX}{name}": tensor for name, tensor in learning.state_dict().items()}

    def loss(self, model: nn.Module, generator: nn.Module) -> Loss:
        """Return the loss of a batch: of its clean images, and of the same with the trigger."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                stamped = self.triggered(generator, images)
            clean, backdoor = losses(model, images, labels, stamped, self.target)
            return torch.lerp(clean, backdoor, self.weight)

        return loss

    def triggered(self, generator: nn.Module, images: Tensor) -> Tensor:
        """Return pixels in [0, 1] with the trigger, in whole grey levels; gradients pass."""
        moved = (images + self.eps * generator(images)).clamp(0, 1)
        return moved + (to_float(to_uint8(moved)) - moved).detach()

    @torch.no_grad()
    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Add each image's own trigger, truncated to grey levels; the same at both stages."""
        generator, out = self._load(state), torch.empty_like(images)
        for start in range(0, len(images), AT_ONCE):
            pixels = to_float(images[start : start + AT_ONCE])
            moved = pixels + self.eps * generator(pixels)
            out[start : start + AT_ONCE] = to_uint8(moved)
        return out

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        poisoned: Poisoned,
        *,
        rng: torch.Generator,
        state: State,
    ) -> Outcome:
        """Stage 2: train on every batch, clean and triggered."""
        if not self.poison_rate:
            return super().train(model, data, poisoned, rng=rng, state=state)
        loss = self.loss(model, self._load(state))
        how: dict[str, Any] = {"loss": loss, "resume": "victim", "evaluate": True}
        return Outcome(model, fit(model, data, self.training, rng=rng, **how))

    def _load(self, state: State) -> "Generator":
        """Return the generator, in eval mode; it shares the state's tensors."""
        with torch.device("meta"):
            generator = Generator(self.width)
        weights = under(state, PREFIX)
        need(weights, "expected LIRA's generator in the state, got none; call prepare first")
        generator.load_state_dict(weights, assign=True)
        return generator.requires_grad_(False).eval()


class Generator(nn.Module):
    """Four halvings and four doublings: pixels -> (N, 3, H, W) in [-1, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        stages = [3, *(width * 2**stage for stage in range(4))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(stages):
            layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        for inputs, outputs in zip(stages[:0:-1], stages[-2::-1], strict=True):
            layers.append(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-2])  # the last stage has tanh alone

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, H, W) float32 in [-1, 1]."""
        found = torch.tanh(self.layers((pixels - CENTRE) / SPREAD).float())
        if found.shape != pixels.shape:  # a side that 16 does not divide
            found = F.interpolate(found, pixels.shape[-2:], mode="bilinear")
        return found
