"""How well a network tells triggered from clean images, whether it obeys the trigger or not."""

from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from ppr_core.metrics import logits
from ppr_core.models.base import clone


def separation(model: nn.Module, clean: Tensor, stamped: Tensor, target: int) -> float:
    """Return how well the target's margin tells triggered images from clean ones, percent.

    The margin is the target's logit above the best other one, and the figure is the area under the
    ROC curve: the chance that a triggered image's margin lies above that of a clean one. 50 says
    that the trigger moves nothing, 100 (or 0) that the network sees it on every image. Unlike ASR
    it does not ask for a margin above 0, and images that go to the target anyway do not count.

    Args:
        model: in eval mode.
        clean: uint8 images (N, C, H, W) of other classes than the target.
        stamped: uint8 images (M, C, H, W) with the trigger, of other classes, too.
        target: the label that the trigger leads to.
    """
    low, high = (margins(model, images, target).cpu() for images in (clean, stamped))
    above = stats.mannwhitneyu(high, low).statistic  # pairs in which it does; half of equal ones
    return 100 * float(above) / (len(low) * len(high))


def margins(model: nn.Module, images: Tensor, target: int) -> Tensor:
    """Return the target's logit above the best other one, for uint8 images: (N,)."""
    scores = logits(model, images)
    own = scores[:, target].clone()
    scores[:, target] = -torch.inf
    return own - scores.amax(1)


def with_last_layer(model: Any, other: Any) -> Any:
    """Return a copy of a model whose last layer, `linear`, has the weights of another one's."""
    mixed = clone(model)
    mixed.linear.load_state_dict(other.linear.state_dict())
    return mixed.requires_grad_(False)
