"""The parts of BTI-DBF: the mask of benign features, a pass through both networks, the votes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.data.images import ImageSet, to_float
from ppr_core.metrics import EVAL_BATCH, evaluating
from ppr_core.models.activations import soft_mask
from ppr_core.models.base import Cut, features_of, normalise_of
from ppr_core.runtime import autocast
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import State, snapshot

EXTREME = 0.05  # a mask whose mean is this near to 0 or 1 no longer tells features apart
SURE = 0.5  # share of the votes below which a label is uncertain
MOST = 0.5  # share of the search's steps above which too many went into the image error
Reverse = Callable[[Tensor], Tensor]


class Pass(NamedTuple):
    """A batch of normalised images, and what generator and classifier make of it.

    Attributes:
        images: (N, C, H, W).
        reversed: the generator's output, same shape.
        features: the classifier's map (N, D, h, w) of the images.
        reversed_features: its map of the generator's output.
    """

    images: Tensor
    reversed: Tensor
    features: Tensor
    reversed_features: Tensor


def passed(reverse: Reverse, frozen: nn.Module, pixels: Tensor) -> Pass:
    """Send pixels through generator and classifier; gradients reach the generator only."""
    images = normalise_of(frozen)(pixels)
    found = reverse(images).float()
    with torch.no_grad():
        features = features_of(frozen, images)
    return Pass(images, found, features.float(), features_of(frozen, found).float())


def decoupled(frozen: Cut, data: ImageSet, schedule: Schedule, *, rng: torch.Generator) -> Tensor:
    """Learn which features are benign; return the logits (1, D, h, w) of their mask.

    Only the batch-norm statistics of `frozen` change: they drift, and the generator is then
    trained against the drifted ones, as in the authors' code.
    """

    def features(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return features_of(frozen, normalise_of(frozen)(pixels))

    shape = features(to_float(data.images[:1])).shape
    logits = torch.randn(shape, generator=rng).to(data.device).requires_grad_()

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        maps, benign = features(pixels), soft_mask(logits)
        kept = F.cross_entropy(frozen.head(benign * maps), labels)
        return kept - F.cross_entropy(frozen.head((1 - benign) * maps), labels)

    hooks: dict[str, Any] = {"loss": loss, "parameters": [logits], "capturable": True}
    fit(frozen, data, schedule, rng=rng, resume="decouple", **hooks)
    return logits.detach()


def label_loss(before: Tensor, after: Tensor, *, double: bool) -> Tensor:
    """Return how far the labels of reversed images are from those of the images.

    Args:
        before: logits (N, classes) of the images.
        after: logits of the reversed images.
        double: cross-entropy as in the authors' code, which takes softmax twice and swaps its
            arguments; otherwise the divergence that was meant.
    """
    if double:
        return F.cross_entropy(before.softmax(1), after.softmax(1))
    before, after = before.log_softmax(1), after.log_softmax(1)
    return F.kl_div(after, before, reduction="batchmean", log_target=True)


@torch.no_grad()
def image_error(reverse: Reverse, model: nn.Module, data: ImageSet) -> Tensor:
    """Return the MSE, normalised units, between all images and what a generator makes of them."""
    total = torch.zeros((), device=data.device)
    with autocast(data.device):
        for part in data.images.split(EVAL_BATCH):
            images = normalise_of(model)(to_float(part))
            total += F.mse_loss(reverse(images).float(), images) * len(part)
    return total / len(data)


@torch.no_grad()
def votes(
    reverse: Reverse, model: Any, data: ImageSet, *, noise: float, rng: torch.Generator
) -> Tensor:
    """Count the predictions (classes,) on reversed images, to which noise was added before.

    Args:
        reverse: the generator, of normalised images.
        model: predicts, in eval mode.
        data: all of it votes.
        noise: standard deviation, normalised units.
        rng: of the noise.
    """
    counts = torch.zeros(data.num_classes, dtype=torch.int64, device=data.device)
    with evaluating(model), autocast(data.device):
        for part in data.images.split(EVAL_BATCH):
            images = normalise_of(model)(to_float(part))
            images = images + noise * torch.randn(part.shape, generator=rng).to(images)
            predicted = model.head(features_of(model, reverse(images))).argmax(1)
            counts += predicted.bincount(minlength=len(counts))
    return counts


class BestEpoch:
    """The weights as they were after the epoch with the largest sum of a quantity."""

    def __init__(self, net: nn.Module, epoch_steps: int) -> None:
        self.net, self.epoch_steps = net, epoch_steps
        self.steps, self.most = 0, 0.0
        self.total = torch.zeros((), device=next(net.parameters()).device)
        self.weights: State = {}

    def add(self, quantity: Tensor) -> None:
        """Count this step's quantity."""
        self.total += quantity.detach()  # in place, so that a recorded step can do it

    def after_step(self) -> None:
        """Compare at the end of each epoch."""
        self.steps += 1
        if self.steps % self.epoch_steps == 0:
            if float(self.total) > self.most:
                self.most, self.weights = float(self.total), snapshot(self.net)
            self.total.zero_()


def doubts(share: float, mean: float, error: float, spent: float, bound: float) -> list[str]:
    """Return why the first round of an inversion may be wrong, a sentence each.

    Args:
        share: of the votes that the label has.
        mean: of the mask of benign features.
        error: image MSE of the generator before its search.
        spent: share of the search's steps that only lowered the image MSE.
        bound: image MSE that a trigger may cost.
    """
    told = {
        f"uncertain label: it has only {share:.0%} of the votes": share < SURE,
        f"saturated mask: its mean is {mean:.2f}; use fewer decouple.steps": not (
            EXTREME < mean < 1 - EXTREME
        ),
        f"unready generator: before the search its image MSE is {error:.2f}, above the "
        f"norm_bound of {bound:g}; use more pretrain.steps": error > bound,
        f"short search: {spent:.0%} of its steps only lowered the image MSE; use more "
        "pretrain.steps or generate.steps": spent > MOST,
    }
    return [text for text, so in told.items() if so]
