"""D3: distance-driven detoxification, which leaves the initial weights as far as it can."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Defense
from ppr_core.defenses.finetune import BENCH, keep_norm
from ppr_core.errors import need
from ppr_core.method import Outcome, fork
from ppr_core.models.base import Classifier
from ppr_core.training.fit import Loss, Schedule, fit
from ppr_core.weights import norm

Start = Literal["random", "noise", "far", "zero", "near"]


class D3(Defense):
    """Maximise the distance from the initial weights while the clean loss stays below a bound.

    The loss bound is a penalty on what each image's loss exceeds it by. Layers keep the norm that
    they had. The distance is that of the last layer, as in the authors' code, or of all
    convolutions and linear layers: then it tells "far" from PAM's "far along the path".
    """

    source: ClassVar[str] = "Wei et al. 2024, arXiv:2411.09585"
    needs: ClassVar[tuple[str, ...]] = ("linear",)

    where: Literal["linear", "all"] = Field(
        "linear", description="layers driven away: the last one, or every convolution and linear"
    )
    start: Start = Field(
        "random",
        description="their weights at first: uniform noise of the old norm; the old with noise as "
        "large; their negative; zero; or the old ones",
    )
    bound: float = Field(0.1, ge=0, description="clean cross-entropy of an image that is allowed")
    penalty: float = Field(0.5, ge=0, description="weight of the loss above it")
    train_mode: bool = Field(True, description="off: batch-norm statistics stay")
    schedule: Schedule = Field(BENCH.replace(weight_decay=0.0), description="tuning, all weights")

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise ConfigError for a model without a last layer by name, or a pointless start."""
        super().check(model, data)
        need(
            self.where == "linear" or self.start in ("near", "noise"),
            f"expected start near or noise with where: all, got {self.start}: the whole network "
            "would be lost",
        )

    def run(self, model: Classifier, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Put the layers where they start from, then drive them away."""
        weights = self.weights(model)
        old = [weight.detach().clone() for weight in weights]
        projections = [keep_norm(weight) for weight in weights]
        draws = fork(rng, "start")
        with torch.no_grad():
            for weight in weights:
                weight.copy_(started(weight, self.start, draws))
        history = fit(
            model,
            data,
            self.schedule,
            rng=fork(rng, "tune"),
            loss=self.loss(model, weights, old),
            after_step=lambda: _all(projections),
            train_mode=self.train_mode,
            resume="tune",
        )
        far = float(norm([new.detach() - was for new, was in zip(weights, old, strict=True)]))
        return Outcome(
            model, history, {"distance": far, "distance_relative": far / float(norm(old))}
        )

    def weights(self, model: Classifier) -> list[Tensor]:
        """Return the weights that are driven away; biases and batch norm are not."""
        if self.where == "linear":
            return [model.linear.weight]
        kinds = nn.Conv2d | nn.Linear
        return [module.weight for module in model.modules() if isinstance(module, kinds)]

    def loss(self, model: nn.Module, weights: list[Tensor], old: list[Tensor]) -> Loss:
        """Return the penalty less the sum of the layers' distances, both scaled down together.

        Source: the authors' code, which divides by penalty + 1 where penalty is above 1.
        """
        scale = 1 / (self.penalty + 1) if self.penalty > 1 else 1.0

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            each = F.cross_entropy(model(images).float(), labels, reduction="none")
            away = [torch.linalg.vector_norm(n - o) for n, o in zip(weights, old, strict=True)]
            return scale * (self.penalty * F.relu(each - self.bound).mean() - sum(away))

        return loss


def started(weight: Tensor, start: Start, rng: torch.Generator) -> Tensor:
    """Return the weight that a layer starts from; drawn on the CPU, so alike on every device."""
    if start == "random":
        drawn = (torch.rand(weight.shape, generator=rng) - 0.5).to(weight)
        return drawn * (torch.linalg.vector_norm(weight) / torch.linalg.vector_norm(drawn))
    if start == "noise":
        return weight + weight.std() * torch.randn(weight.shape, generator=rng).to(weight)
    return {"far": -weight, "zero": torch.zeros_like(weight), "near": weight}[start]


def _all(projections: list[Callable[[], None]]) -> None:
    for project in projections:
        project()
