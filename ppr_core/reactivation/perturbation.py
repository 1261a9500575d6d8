"""Perturbations of images within a budget, and how often they reach the attacker's target."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import DataError, need
from ppr_core.metrics import EVAL_BATCH, evaluating, hit_rate, triggered
from ppr_core.runtime import autocast

EPS = 16 / 255  # Source: Min et al. 2024, arXiv:2410.09838, sec. 3.3

# Pixels (N, C, H, W) in [0, 1] -> directions in [-1, 1], (N, C, H, W) or one (1, C, H, W) for all.
Direction = Callable[[Tensor], Tensor]
# Pixels (N, C, H, W) and budgets (E,) -> perturbed pixels (E, N, C, H, W) in [0, 1].
Perturb = Callable[[Tensor, Tensor], Tensor]


def within(images: Tensor, direction: Tensor, eps: float | Tensor) -> Tensor:
    """Move pixels in [0, 1] by `eps` along a direction in [-1, 1]; they stay in [0, 1]."""
    # In full precision: rounded to bf16, a step of eps would leave its budget.
    return (images + eps * direction.float()).clamp(0, 1)


def along(direction: Direction) -> Perturb:
    """Return the perturbation that scales one direction to every budget."""

    def perturb(images: Tensor, budgets: Tensor) -> Tensor:
        return within(images, direction(images), budgets.view(-1, 1, 1, 1, 1))

    return perturb


def aimed(data: ImageSet, target: int) -> ImageSet:
    """Label images with the target, those of its own class left out.

    Args:
        data: images with their true labels.
        target: the label that a perturbation has to reach.

    Raises:
        DataError: every image is of the target class.
    """
    return triggered(data, lambda images: images, target)


@contextlib.contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Hold models in eval mode without gradients of their weights; then put all back."""
    flags = [(weight, weight.requires_grad) for model in models for weight in model.parameters()]
    with contextlib.ExitStack() as stack:
        try:
            for model in models:
                stack.enter_context(evaluating(model))
                model.requires_grad_(False)
            yield
        finally:
            for weight, flag in flags:
                weight.requires_grad_(flag)


@torch.no_grad()
def success_rates(
    models: Mapping[str, nn.Module],
    images: ImageSet,
    perturb: Perturb,
    budgets: Sequence[float],
) -> dict[str, list[float]]:
    """Return, by model, the attack success rate (percent) at each budget.

    All budgets and models are evaluated in one pass over the images.

    Args:
        models: by name; left as they are.
        images: labelled with the target (`aimed`, `metrics.triggered`), on the models' device.
        perturb: the perturbation.
        budgets: largest changes of a pixel, in [0, 1]; 0 is no perturbation.

    Raises:
        DataError: no images.
        ConfigError: no budgets, or a negative one.
    """
    need(len(images) > 0, "expected at least one image to perturb, got none", DataError)
    need(
        len(budgets) > 0 and min(budgets) >= 0,
        f"expected one or more budgets of 0 or above, got {list(budgets)}",
    )
    eps = torch.tensor(budgets, dtype=torch.float32, device=images.device)
    predicted: dict[str, list[Tensor]] = {name: [] for name in models}
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        for part in images.images.split(max(1, EVAL_BATCH // len(budgets))):
            with autocast(images.device):
                moved = perturb(to_float(part), eps).flatten(0, 1)
                for name, model in models.items():
                    classes = model(moved).float().argmax(1)
                    predicted[name].append(classes.view(len(budgets), -1))
    return {
        name: hit_rate(torch.cat(parts, 1), images.labels).tolist()
        for name, parts in predicted.items()
    }


def sweep(
    models: Mapping[str, nn.Module],
    test: ImageSet,
    stamped: ImageSet,
    perturb: Perturb,
    budgets: Sequence[float],
) -> list[dict[str, Any]]:
    """Return one row a model and budget: model, eps, c_asr and p_asr (percent).

    C-ASR is of perturbed clean images, P-ASR of perturbed triggered ones; the row of budget 0 holds
    the rates without a perturbation.

    Source: Min et al. 2024, arXiv:2410.09838, sec. 3.3.
    Differs from the authors' code: theirs counts images of the target class in C-ASR, where an
    unharmed model then has the share of that class.

    Args:
        models: by name: purified, clean, EP, ...
        test: clean test images.
        stamped: `metrics.triggered` test images.
        perturb: the perturbation.
        budgets: largest changes of a pixel, in [0, 1].
    """
    clean = aimed(test, int(stamped.labels[0]))
    c_asr = success_rates(models, clean, perturb, budgets)
    p_asr = success_rates(models, stamped, perturb, budgets)
    return [
        {"model": name, "eps": eps, "c_asr": c_asr[name][index], "p_asr": p_asr[name][index]}
        for name in models
        for index, eps in enumerate(budgets)
    ]


def transfer(
    models: Mapping[str, nn.Module],
    perturbations: Mapping[str, Perturb],
    stamped: ImageSet,
    eps: float = EPS,
) -> dict[str, dict[str, float]]:
    """Return the P-ASR (percent) on every other model of the perturbation made for each source.

    Source: Min et al. 2024, arXiv:2410.09838, fig. 3, whose bars are the means over the others.

    Args:
        models: purified models by defense.
        perturbations: by the defense that they were made against.
        stamped: `metrics.triggered` test images.
        eps: largest change of a pixel, in [0, 1].
    """
    rates = {}
    for source, perturb in perturbations.items():
        others = {name: model for name, model in models.items() if name != source}
        found = success_rates(others, stamped, perturb, [eps])
        rates[source] = {name: values[0] for name, values in found.items()}
    return rates
