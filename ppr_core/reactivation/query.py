"""QRA: train a generator of perturbations that reactivate the backdoor of a purified model."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Budget, Field
from ppr_core.data.images import ImageSet
from ppr_core.data.splits import draw
from ppr_core.errors import CheckpointError, DataError, need
from ppr_core.method import Method, Outcome, fork
from ppr_core.metrics import logits
from ppr_core.models.base import normalise_of
from ppr_core.reactivation.perturbation import EPS, frozen, within
from ppr_core.runtime import seed_of, seeded
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import under

# Weight of the balanced term, by attack. Source: Min et al. 2024, sec. B.2. An attack that is not
# listed takes the field's default.
PAPER_ALPHAS = {"lc": 0.1}

PREFIX = "generator."


class Generator(nn.Module):
    """A perceptron from an image's normalised pixels to its direction, in [-1, 1].

    Differs from the authors' code: it sees images at their own size, before a model resizes them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, pixels: int, width: int, depth: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Linear(width if index else pixels, width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, pixels), nn.Tanh())
        # Saved with the weights: a generator is used without the model that it was made for.
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) pixels in [0, 1] -> directions of the same shape, in [-1, 1]."""
        normalised = (images - self.mean) / self.std
        return self.layers(normalised.flatten(1)).view(images.shape)


def generator_of(tensors: Mapping[str, Tensor]) -> Generator:
    """Rebuild the generator from an Outcome's tensors, with which it shares memory.

    Raises:
        CheckpointError: no generator among them.
    """
    state = under(tensors, PREFIX)
    need(
        "layers.0.weight" in state,
        f"expected tensors of a generator ({PREFIX}*), got {sorted(tensors)[:3]}",
        CheckpointError,
    )
    width, pixels = state["layers.0.weight"].shape
    depth = sum(tensor.ndim == 2 for tensor in state.values()) - 1
    with torch.device("meta"):
        generator = Generator(pixels, width, depth, state["mean"], state["std"])
    generator.load_state_dict(state, assign=True)
    return generator.requires_grad_(False).eval()


class Query(Method):
    """Train a generator of perturbations under which a purified model predicts as if retuned.

    The loss is the divergence of the purified model's predictions on perturbed images from those of
    its retuned version on the original images, plus the cross-entropy of a surrogate model on the
    perturbed images: the surrogate must stay right, so that the perturbation reactivates a backdoor
    instead of fooling any model. Of the three models, outputs are used, and of the purified model
    and the surrogate gradients with respect to the image.

    Differs from the paper: its generator has "three layers"; this one has three hidden layers, as
    in the authors' code. Its surrogate is the EP model, the authors' code's the clean one: here it
    is the caller's choice.
    """

    source: ClassVar[str] = "Min et al. 2024, arXiv:2410.09838, sec. 3.3, eq. 2, B.2"
    privileges: ClassVar[str] = (
        "attacker: purified model and its gradients, retuned model, surrogate, triggered images"
    )

    clean: int = Field(500, ge=0, description="clean images to train on")
    poisoned: int = Field(500, ge=0, description="triggered images to train on")
    eps: Budget = Field(EPS, description="largest change of a pixel, in [0, 1]")
    form: Literal["code", "paper"] = Field(
        "code",
        description="what alpha weights: the divergence (authors' code), or the surrogate's "
        "cross-entropy (the paper's eq. 2; with alpha 0 its eq. 1)",
    )
    alpha: float = Field(0.2, ge=0, description="weight of the one term against the other")
    surrogate: Literal["clean", "ep"] = Field(
        "clean",
        description="model whose predictions must stay correct: the never-poisoned one (authors' "
        "code), or EP's (paper); the other one where it is itself attacked",
    )
    width: int = Field(1024, ge=1, description="units of a hidden layer of the generator")
    depth: int = Field(3, ge=1, description="hidden layers of the generator")
    schedule: Schedule = Field(
        Schedule(epochs=50, lr=0.1, crop=0, flip=False),
        description="of the generator; images are never augmented",
    )

    def run(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        rng: torch.Generator,
        retuned: nn.Module,
        surrogate: nn.Module,
        triggered: ImageSet,
    ) -> Outcome:
        """Train the generator; the model returned is the purified one, unchanged.

        Args:
            model: purified (or clean, or EP).
            data: clean training images that the attacker draws from.
            rng: of the draws, the generator's first weights and the shuffles.
            retuned: `model` after the retuning attack.
            surrogate: a model without the backdoor: clean or EP.
            triggered: stamped training images outside the target class, with their true labels.

        Returns:
            An Outcome whose tensors are the generator's, under "generator." (`generator_of`).

        Raises:
            DataError: fewer clean or triggered images than asked for.
        """
        self.need_images(len(data), len(triggered))
        pool = draw(data, self.clean, fork(rng, "clean"))
        pool = pool + draw(triggered, self.poisoned, fork(rng, "triggered"))
        with seeded(seed_of(rng, "generator")):
            pixels, stats = pool.images[:1].numel(), normalise_of(model)
            generator = Generator(pixels, self.width, self.depth, stats.mean, stats.std)
        generator.to(pool.device)
        with frozen(model, surrogate):
            history = self._train(generator, model, surrogate, retuned, pool, fork(rng, "train"))
        tensors = {PREFIX + name: tensor for name, tensor in generator.state_dict().items()}
        return Outcome(model, history, {"samples": len(pool)}, tensors)

    def need_images(self, clean: int, triggered: int) -> None:
        """Raise DataError where fewer clean or triggered images are there than asked for."""
        for name, there, count in (
            ("clean", clean, self.clean),
            ("poisoned", triggered, self.poisoned),
        ):
            need(
                count <= there,
                f"expected at most {there} {name} images, as many as there are, got {count}",
                DataError,
            )

    def _train(
        self,
        generator: Generator,
        model: nn.Module,
        surrogate: nn.Module,
        retuned: nn.Module,
        pool: ImageSet,
        rng: torch.Generator,
    ) -> list[dict[str, float]]:
        # The teacher sees plain images that are never augmented, so it answers once for all.
        answers = logits(retuned, pool.images)

        def loss(images: Tensor, numbers: Tensor) -> Tensor:
            moved = within(images, generator(images), self.eps)
            teacher, labels = answers[numbers], pool.labels[numbers]
            return self.objective(model(moved), teacher, surrogate(moved), labels)

        # In place of labels the loop hands back each image's number.
        numbered = pool.with_labels(torch.arange(len(pool), device=pool.device))
        plain = self.schedule.replace(crop=0, flip=False)
        return fit(generator, numbered, plain, rng=rng, loss=loss, capturable=True, resume="query")

    def objective(
        self, student: Tensor, teacher: Tensor, surrogate: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the loss of a batch: imitate the teacher, and keep the surrogate correct.

        Args:
            student: the purified model's logits of perturbed images, (N, classes).
            teacher: the retuned model's logits of plain images.
            surrogate: the surrogate's logits of perturbed images.
            labels: (N,) int64, the true ones.
        """
        imitated = F.kl_div(
            student.float().log_softmax(1),
            teacher.log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        right = F.cross_entropy(surrogate.float(), labels)
        if self.form == "code":
            return self.alpha * imitated + right
        return imitated + self.alpha * right
