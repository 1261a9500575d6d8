"""Adversarial examples, and models trained to resist them."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.data.images import ImageSet, to_float, to_uint8
from ppr_core.metrics import EVAL_BATCH, evaluating
from ppr_core.runtime import Record, autocast
from ppr_core.training.fit import Schedule, fit

Adversary = Literal["fgsm", "pgd", "none"]

# (step as a share of eps, iterations). Sources: Wong et al. 2020, arXiv:2001.03994, sec. 4 (10/255
# of 8/255); Madry et al. 2018, arXiv:1706.06083, sec. 4 (2/255 of 8/255).
ADVERSARIES = {"fgsm": (1.25, 1), "pgd": (0.25, 7)}


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    step: float | Tensor,
    iterations: int,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Raise the cross-entropy of the labels by signed gradient steps, the model in eval mode.

    Source: Madry et al. 2018, arXiv:1706.06083, sec. 2.1.

    Args:
        model: pixels in [0, 1] to logits; its modes come back as they were.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) int64: the true ones, or, with a negative step, those to reach.
        eps: largest change of a pixel (L-infinity); a tensor is broadcast over the images.
        step: change of a pixel in one iteration; a negative one lowers the cross-entropy.
        iterations: gradient steps.
        rng: CPU generator of a uniform random start; none: start from the images themselves.

    Returns:
        (N, C, H, W) in [0, 1], within eps of the images.
    """
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    adversarial = images.detach()
    if rng is not None:
        noise = torch.rand(images.shape, generator=rng).to(images.device)
        adversarial = torch.lerp(images - eps, images + eps, noise).clamp(0, 1)
    with evaluating(model):
        for _ in range(iterations):
            adversarial.requires_grad_()
            with torch.enable_grad(), autocast(images.device):
                loss = F.cross_entropy(model(adversarial), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adversarial)
            moved = adversarial.detach() + step * gradient.sign()
            adversarial = torch.clamp(moved, low, high)
    return adversarial


def craft(
    model: nn.Module, data: ImageSet, *, eps: float, step: float, iterations: int
) -> ImageSet:
    """Return the adversarial version of every image, truncated to whole grey levels."""
    crafted = [
        to_uint8(pgd(model, to_float(images), labels, eps=eps, step=step, iterations=iterations))
        for images, labels in zip(
            data.images.split(EVAL_BATCH), data.labels.split(EVAL_BATCH), strict=True
        )
    ]
    return data.with_images(torch.cat(crafted).contiguous())


def fit_robust(
    model: nn.Module,
    data: ImageSet,
    schedule: Schedule,
    *,
    adversary: Adversary,
    eps: float,
    rng: torch.Generator,
) -> list[Record]:
    """Train in place on adversarial versions of the batches; "none" trains on them as they are.

    Source: Madry et al. 2018, arXiv:1706.06083, sec. 2.1 ("pgd"); Wong et al. 2020,
    arXiv:2001.03994, algorithm 3 ("fgsm", from a random start).

    Args:
        model: what is trained; left in eval mode.
        data: clean images, on the model's device.
        schedule: budget, optimizer, batches and augmentation.
        adversary: how the batches are attacked.
        eps: largest change of a pixel, in [0, 1].
        rng: CPU generator of shuffles, crops and random starts.
    """

    def attacked(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        share, iterations = ADVERSARIES[adversary]
        budget: dict[str, Any] = {"eps": eps, "step": share * eps, "iterations": iterations}
        # The loop's own stream, so that a resumed training draws what it would have drawn.
        return pgd(model, images, labels, **budget, rng=rng), labels

    hook = None if adversary == "none" else attacked
    return fit(model, data, schedule, rng=rng, on_batch=hook, resume="surrogate")


def universal_pgd(
    model: nn.Module,
    data: ImageSet,
    target: int,
    *,
    eps: float,
    step: float,
    iterations: int,
    size: int,
    rng: torch.Generator,
) -> Tensor:
    """Return one perturbation that moves all images to a class, by signed steps on batches.

    Args:
        model: pixels in [0, 1] to logits; its modes come back as they were.
        data: images of any class.
        target: the class.
        eps: largest change of a pixel (L-infinity).
        step: change of a pixel in one iteration.
        iterations: gradient steps, from no change at all.
        size: images behind each of them, drawn anew.
        rng: CPU generator of the draws.

    Returns:
        (C, H, W) in [-eps, eps].
    """
    delta = torch.zeros(data.images.shape[1:], device=data.device)
    wanted = torch.full((size,), target, device=data.device)
    with evaluating(model):
        for _ in range(iterations):
            drawn = torch.randint(len(data), (size,), generator=rng).to(data.device)
            images = to_float(data.images[drawn])
            delta.requires_grad_()
            with torch.enable_grad(), autocast(data.device):
                loss = F.cross_entropy(model((images + delta).clamp(0, 1)), wanted)
            (gradient,) = torch.autograd.grad(loss, delta)
            delta = (delta.detach() - step * gradient.sign()).clamp(-eps, eps)
    return delta
