"""BTI-DBF (P): a network before the model that takes the trigger out of its input."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.parts.unlearning import Mix, Unlearning
from ppr_core.defenses.sources.base import Change, State
from ppr_core.defenses.sources.unet import fresh
from ppr_core.method import Outcome
from ppr_core.training.fit import Schedule


class BtiP(Unlearning):
    """BTI-DBF (P): train a purifier to undo the inverted trigger; the model's weights stay.

    The result is the model behind its purifier. `extend` puts one that does nothing before any
    other model, to load weights into or to draw a path from.

    Differs from the authors' code: their rate is not known to us; it is that of their generator.
    """

    source: ClassVar[str] = "Xu et al. 2024, ICLR, OpenReview Tw9wemV6cb (BTI-DBF)"
    needs: ClassVar[tuple[str, ...]] = ("features and head", "backbone")

    width: int = Field(32, ge=1, description="channels of the purifier's first level")
    noise: float = Field(0.03, ge=0, description="spread of the noise on what it is given")
    lam_bound: float = Field(0.05, ge=0, description="image MSE at which its weight drops")
    lam_far: float = Field(100.0, ge=0, description="weight of the image MSE above lam_bound")
    lam_near: float = Field(1.0, ge=0, description="weight of the image MSE below it")
    tuning: Schedule = Field(
        Schedule(epochs=30, optimizer="adam", lr=1e-3), description="of the purifier, each round"
    )

    def extend(self, model: Any) -> Any:
        """Put a purifier, switched off, before the backbone."""
        place = next(model.parameters()).device
        channels = model.normalise.mean.shape[1]
        net = fresh(self.width, channels, torch.Generator().manual_seed(0), place)
        model.backbone = Purified(model.backbone, net)
        return model

    def tune(
        self,
        model: nn.Module,
        data: ImageSet,
        state: State,
        *,
        rng: torch.Generator,
        validation: ImageSet | None,
        trigger: Change | None,
    ) -> Outcome:
        """Put a purifier before the model, switch it on, and train it alone, in rounds."""
        model.requires_grad_(False)
        self.extend(model).backbone.share.fill_(1)
        given: dict[str, Any] = {"rng": rng, "validation": validation, "trigger": trigger}
        return super().tune(model, data, state, **given)

    def hooks(self, model: Any, mix: Mix, rng: torch.Generator) -> dict[str, Any]:
        """Return the loss: the labels, features and images that there were before the trigger."""
        purified = model.backbone

        def loss(pixels: Tensor, labels: Tensor) -> Tensor:
            images = model.resized(model.normalise(pixels))
            given = model.resized(model.normalise(mix(pixels, labels)[0]))
            noise = torch.randn(given.shape, generator=rng).to(given)
            cleaned = purified.net(given + self.noise * noise).to(images)
            with torch.no_grad():
                before = purified.inner(images).to(images)
            after = purified.inner(cleaned).to(images)
            near = F.mse_loss(cleaned, images)
            weight = torch.where(near > self.lam_bound, self.lam_far, self.lam_near)
            value = F.cross_entropy(model.head(after), labels)
            return value + F.mse_loss(after, before) + weight * near

        return {"loss": loss, "train_mode": False, "capturable": False, "writes": [rng]}


class Purified(nn.Module):
    """A backbone behind a network from images to images; `share` 0 leaves that out, 1 is it."""

    share: Tensor

    def __init__(self, inner: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.inner, self.net = inner, net
        self.register_buffer("share", torch.zeros((), device=next(net.parameters()).device))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images -> the feature map of the purified ones."""
        return self.inner(torch.lerp(images, self.net(images).to(images), self.share))
