"""Optimised triggers: one small perturbation added to every triggered image at inference."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Budget, Field, Settings
from ppr_core.data.images import ImageSet, to_float
from ppr_core.data.splits import draw
from ppr_core.errors import CheckpointError, DataError, need
from ppr_core.method import Method, Outcome, fork
from ppr_core.metrics import EVAL_BATCH
from ppr_core.reactivation.perturbation import Perturb, along, frozen, within
from ppr_core.runtime import Record, autocast
from ppr_core.training.fit import Schedule, fit

# Shares of the iterations after which the square's area is halved. Source: Andriushchenko et al.
# 2020, arXiv:1912.00049, sec. 4 (of 10,000 iterations).
HALVINGS = (0.001, 0.005, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8)
RECORDS = 10  # of a search's history


class OptimisedTrigger(Method):
    """Search one universal perturbation; the Outcome's tensors hold its direction as "direction".

    The data are labelled with the target: triggered training images (RA's poisons) reactivate a
    backdoor; `perturbation.aimed` clean images make the control, a universal adversarial attack.
    """

    eps: Budget = Field(0.05, description="largest change of a pixel, in [0, 1]")
    images: int = Field(500, ge=1, description="images that the search sees")

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise DataError where images are too few, or are not labelled with one target."""
        need(
            self.images <= len(data),
            f"expected at most {len(data)} images, as many as there are, got {self.images}",
            DataError,
        )
        need(
            bool((data.labels == data.labels[0]).all()),
            "expected images labelled with one target, got several labels; "
            "see perturbation.aimed and metrics.triggered",
            DataError,
        )

    def pool(self, data: ImageSet, rng: torch.Generator) -> ImageSet:
        """Draw the images that the search sees."""
        return draw(data, self.images, fork(rng, "images"))


class Universal(OptimisedTrigger):
    """Optimise the perturbation by gradients, of the model (white-box) or of surrogates (transfer).

    Differs from the authors' code: every step takes a fresh batch; theirs takes five steps on each
    of fifty.
    """

    source: ClassVar[str] = "Zhu, Liang, Wu 2024, arXiv:2405.16134"
    version: ClassVar[int] = 2  # 1 resumed a transferred trigger from the white-box one's end
    privileges: ClassVar[str] = "attacker: gradients of model or surrogates, training poisons"

    schedule: Schedule = Field(
        Schedule(steps=250, lr=0.1, momentum=0.0, crop=0, flip=False),
        description="of the perturbation; lr: change of a pixel in a step, share of eps",
    )

    def run(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        rng: torch.Generator,
        surrogates: Sequence[nn.Module] = (),
    ) -> Outcome:
        """Lower the target's cross-entropy by signed gradient steps.

        Args:
            model: the model attacked; left unchanged.
            data: images labelled with the target.
            rng: of the draw and the shuffles.
            surrogates: optimise on these (their mean loss), and never touch the model: what is
                found is then to be transferred to it.
        """
        pool, sources = self.pool(data, rng), tuple(surrogates) or (model,)
        shift = _Shift(to_float(pool.images[:1]))

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            moved = within(images, shift.direction, self.eps)
            losses = [F.cross_entropy(source(moved).float(), labels) for source in sources]
            return torch.stack(losses).mean()

        def gradient(closure: Callable[[], Tensor]) -> Tensor:
            value = closure()
            (slope,) = torch.autograd.grad(value, shift.direction)
            shift.direction.grad = slope.sign()
            return value.detach()

        with frozen(*sources):
            history = fit(
                shift,
                pool,
                self.schedule.replace(crop=0, flip=False),
                rng=fork(rng, "train"),
                loss=loss,
                gradient=gradient,
                after_step=shift.project,
                resume="transfer" if surrogates else "white_box",
            )
        info = {"transferred": bool(surrogates), "samples": len(pool)}
        return Outcome(model, history, info, {"direction": shift.direction.detach()})


class _Shift(nn.Module):
    """The direction as a module, so that the training loop steps, saves and resumes it."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.zeros_like(like))

    @torch.no_grad()
    def project(self) -> None:
        """Put the direction back into [-1, 1]."""
        self.direction.clamp_(-1, 1)


class Square(OptimisedTrigger):
    """Search the perturbation by queries alone; keep a random square that lowers the target's loss.

    Every pixel is at the edge of the budget. Each query returns the probabilities of one image.
    """

    source: ClassVar[str] = (
        "Zhu, Liang, Wu 2024, arXiv:2405.16134; "
        "Andriushchenko et al. 2020, arXiv:1912.00049, alg. 2"
    )
    privileges: ClassVar[str] = "attacker: the model's answers, training poisons"

    images: int = Field(100, ge=1, description="images that the search sees")
    iterations: int = Field(1000, ge=0, description="squares tried, one query an image each")
    area: float = Field(0.8, gt=0, le=1, description="of the first squares, share of the image")

    @torch.no_grad()
    def run(self, model: nn.Module, data: ImageSet, *, rng: torch.Generator) -> Outcome:
        """Try squares of shrinking size.

        Args:
            model: the model attacked; only its outputs are used.
            data: images labelled with the target.
            rng: of the draw and the squares.
        """
        pool, rng, model = self.pool(data, rng), fork(rng, "squares"), model.eval()
        pixels = to_float(pool.images)
        # Vertical stripes are a good start for convolutions, says the source.
        best = _signs((1, *pixels.shape[1:2], 1, pixels.shape[-1]), rng, pixels.device)
        best = best.expand_as(pixels[:1]).clone()
        lowest = self._loss(model, pixels, pool.labels, best)
        history: list[Record] = []
        for index in range(self.iterations):
            tried = self._with_square(best, index / self.iterations, rng)
            loss = self._loss(model, pixels, pool.labels, tried)
            if loss < lowest:
                best, lowest = tried, loss
            if (index + 1) * RECORDS // self.iterations > len(history):
                queries = (index + 2) * len(pool)
                history.append({"epoch": len(history) + 1, "loss": lowest, "queries": queries})
        info = {"queries": (self.iterations + 1) * len(pool), "samples": len(pool)}
        return Outcome(model, history, info, {"direction": best})

    def _with_square(self, direction: Tensor, done: float, rng: torch.Generator) -> Tensor:
        """Return a copy with one square set to the edge of the budget, channel by channel."""
        _, channels, height, width = direction.shape
        area = self.area / 2 ** sum(done >= share for share in HALVINGS)
        side = max(1, min(height, width, round(math.sqrt(area * height * width))))
        top = int(torch.randint(0, height - side + 1, (), generator=rng))
        left = int(torch.randint(0, width - side + 1, (), generator=rng))
        changed = direction.clone()
        signs = _signs((1, channels, 1, 1), rng, direction.device)
        changed[..., top : top + side, left : left + side] = signs
        return changed

    def _loss(self, model: nn.Module, pixels: Tensor, labels: Tensor, direction: Tensor) -> float:
        total = 0.0
        for part, aim in zip(pixels.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True):
            with autocast(pixels.device):
                answers = model(within(part, direction, self.eps)).float()
            total += F.cross_entropy(answers, aim, reduction="sum").item()
        return total / len(pixels)


class Triggers(Settings):
    """Optimised triggers with growing knowledge: other defended models, queries, the weights."""

    source: ClassVar[str] = "Zhu, Liang, Wu 2024, arXiv:2405.16134"
    version: ClassVar[int] = Universal.version

    white_box: Universal = Field(Universal(), description="by the model's gradients")
    queries: Square = Field(Square(), description="by the model's answers alone")
    transfer: Universal = Field(Universal(), description="by the other purified models' gradients")


def _signs(shape: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Tensor:
    return (2.0 * torch.randint(0, 2, shape, generator=rng) - 1).to(device)


def universal(tensors: dict[str, Tensor]) -> Perturb:
    """Return the perturbation that an Outcome's tensors hold, scaled to any budget.

    Raises:
        CheckpointError: no direction among them.
    """
    need("direction" in tensors, "expected a tensor 'direction', got none", CheckpointError)
    return along(lambda images: tensors["direction"].to(images.device))
