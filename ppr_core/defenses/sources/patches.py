"""MESA's model of the distribution of patches that turn images into one class."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet, to_float
from ppr_core.defenses.sources.base import Change, State, TriggerSource
from ppr_core.defenses.sources.patch_networks import LATENT, Critic, Generator, paste
from ppr_core.errors import DataError, need
from ppr_core.method import fork
from ppr_core.metrics import EVAL_BATCH
from ppr_core.models.base import clone
from ppr_core.runtime import autocast, seed_of, seeded
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import under

TRAINING = Schedule(
    steps=625, optimizer="adam", lr=2e-4, batch_size=128, crop=0, flip=False, drop_last=True
)


class PatchDistribution(TriggerSource):
    """Train a generator of patches for each threshold of a class's probability, varied as can be.

    Classes are scanned at the middle threshold; the one that patches reach best is taken.

    Differs from the paper: images are the clean reserve (theirs: 8,000 test images), for as many
    steps as theirs takes; the other thresholds are trained for the class found only; generator
    and critic step at once.
    """

    source: ClassVar[str] = "Qiao et al. 2019, arXiv:1910.04749 (MESA)"

    size: int = Field(3, ge=1, description="side of a patch, pixels")
    corner: int | None = Field(
        None, ge=0, description="pixels from the lower right corner to the patch; none: anywhere"
    )
    thresholds: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.5, 0.8, 0.9], min_length=1, description="probability of the class that is enough"
    )
    alpha: float = Field(0.1, ge=0, description="weight of the mutual information")
    noise: float = Field(0.1, ge=0, description="spread of the noise on a patch, pixels in [0, 1]")
    average: float = Field(1e-3, gt=0, le=1, description="rate of the critic's moving average")
    width: int = Field(512, ge=1, description="hidden units of generator and critic")
    limit: float = Field(
        0.5, ge=0, le=1, description="share of images turned below which no class is taken"
    )
    schedule: Schedule = Field(TRAINING, description="of a generator and its critic")

    @property
    def told(self) -> str:
        """The patch's size, and its place where a corner is set."""
        place = "" if self.corner is None else f" and its place, {self.corner} from the corner"
        return f"the patch's size ({self.size}){place}"

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise where the patch does not fit, or where there is no batch to normalise by."""
        side = self.size + (self.corner or 0)
        need(side <= data.size, f"expected a patch within {data.size} pixels, got {side}")
        need(len(data) > 1, f"expected at least 2 images, got {len(data)}", DataError)

    def invert(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, state: State
    ) -> dict[str, Tensor]:
        """Scan the classes, then train for the best one; in later rounds train for it again."""
        frozen = clone(model).eval().requires_grad_(False)
        middle = sorted(self.thresholds)[len(self.thresholds) // 2]
        found = dict(state)
        scanned: dict[float, Generator] = {}
        if not state:
            nets, rates = [], []
            for label in range(data.num_classes):
                nets.append(self.train(frozen, data, label, middle, fork(rng, "scan", label)))
                change = self._change([nets[-1]], fork(rng, "try", label))
                rates.append(share_turned(frozen, data, change, label))
            found["success"] = torch.tensor(rates)
            found["label"] = found["success"].argmax()
            scanned = {middle: nets[int(found["label"])]}
            if float(found["success"].max()) < self.limit:
                return found | {"stop": torch.ones(1)}
        for number, threshold in enumerate(self.thresholds):
            net = scanned.get(threshold) or self.train(
                frozen, data, int(found["label"]), threshold, fork(rng, "train", number)
            )
            found |= {f"generator.{number}.{k}": v for k, v in net.state_dict().items()}
        found["seed"] = torch.randint(2**62, (), generator=fork(rng, "seed"))
        return found

    def trigger(self, model: nn.Module, state: State, stamp: Change | None) -> Change:
        """Return a change that puts a patch of its own on each image.

        Differs from the authors' code: each patch is of a generator drawn at random; theirs takes
        one generator an epoch in turn.
        """
        device, nets = next(model.parameters()).device, []
        for number in range(len(self.thresholds)):
            own = under(state, f"generator.{number}.")
            pixels = len(own["last.bias"])
            nets.append(Generator(pixels, self.width).to(device).eval())
            nets[-1].load_state_dict(own)
        return self._change(nets, torch.Generator().manual_seed(int(state["seed"])))

    def findings(self, state: State) -> dict[str, Any]:
        """Return the class and the share of images that patches turn into it."""
        best = float(state["success"].max())
        found: dict[str, Any] = {"label": int(state["label"]), "label_success": best}
        if "stop" in state:
            doubt = f"patches turn only {best:.0%} of the images: the model is left as it is"
            found["warnings"] = [doubt]
        return found

    def train(
        self,
        frozen: nn.Module,
        data: ImageSet,
        label: int,
        threshold: float,
        rng: torch.Generator,
    ) -> Generator:
        """Return a generator of patches that turn images into a class."""
        pixels, device = data.images.shape[1] * self.size**2, data.device
        with seeded(seed_of(rng)):
            net, critic = Generator(pixels, self.width), Critic(pixels, self.width)
        net, critic = net.to(device), critic.to(device)
        draws, mean = fork(rng, "draws"), torch.ones((), device=device)
        own, other = list(net.parameters()), list(critic.parameters())
        parted: list[Tensor] = []

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            z, z2 = (torch.rand(len(images), LATENT, generator=draws).to(device) for _ in "12")
            patches = net(z)
            joint, apart = critic(z, patches).mean(), critic(z2, patches).exp().mean()
            mean.lerp_(apart.detach(), self.average)
            parted[:] = [apart / mean - joint]
            noisy = patches + self.noise * torch.randn(patches.shape, generator=draws).to(device)
            place = self.places(1, data.size, draws).to(device).expand(len(images), 2)
            shown = frozen(paste(images, noisy, place)).float().softmax(1)[:, label]
            return -shown.clamp(max=threshold).mean() - self.alpha * (joint - apart.log())

        def gradient(loss: Callable[[], Tensor]) -> Tensor:
            value = loss()
            slopes = torch.autograd.grad(value, own, retain_graph=True)
            slopes += torch.autograd.grad(parted.pop(), other)
            for parameter, slope in zip(own + other, slopes, strict=True):
                parameter.grad = slope
            return value.detach()

        optimizer = torch.optim.Adam(own + other, self.schedule.lr, betas=(0.5, 0.999))
        hooks: dict[str, Any] = {"loss": loss, "gradient": gradient, "optimizer": optimizer}
        fit(net, data, self.schedule, rng=fork(rng, "batches"), parameters=own + other, **hooks)
        return net.requires_grad_(False)

    def places(self, count: int, side: int, rng: torch.Generator) -> Tensor:
        """Draw the upper left corner (row, column) of patches on images of a size."""
        last = side - self.size
        if self.corner is not None:
            return torch.full((count, 2), last - self.corner)
        return torch.randint(0, last + 1, (count, 2), generator=rng)

    def _change(self, nets: list[Generator], rng: torch.Generator) -> Change:
        def patched(pixels: Tensor) -> Tensor:
            count, device = len(pixels), pixels.device
            z = torch.rand(count, LATENT, generator=rng).to(device)
            which = torch.randint(len(nets), (count,), generator=rng).to(device)
            made = torch.stack([net(z) for net in nets])[which, torch.arange(count, device=device)]
            place = self.places(count, pixels.shape[-1], rng).to(device)
            return paste(pixels, made.float(), place)

        return patched


@torch.no_grad()
def share_turned(frozen: nn.Module, data: ImageSet, change: Change, label: int) -> float:
    """Return the share of the images outside a class that a change turns into it."""
    others = data.subset(data.labels != label)
    with autocast(data.device):
        turned = [
            (frozen(change(to_float(part))).argmax(1) == label).sum()
            for part in others.images.split(EVAL_BATCH)
        ]
    return float(sum(turned)) / max(1, len(others))
