"""The only definitions of clean accuracy and attack success rate; both in percent."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import DataError, need
from ppr_core.runtime import Record, autocast

EVAL_BATCH = 500
EVAL_BATCH_CUDA = 2000  # smaller ones would be bound by kernel launches


def eval_batch(device: torch.device) -> int:
    """Return how many images one evaluated batch has on a device."""
    return EVAL_BATCH_CUDA if device.type == "cuda" else EVAL_BATCH


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put every module into eval mode, and put each back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, classes), float32, of uint8 images (N, C, H, W) in eval mode.

    Raises:
        ConfigError: NaN among them, whose largest would count as the first class.
    """
    parts = images.split(eval_batch(images.device))
    with evaluating(model), autocast(images.device):
        found = torch.cat([model(to_float(part)).float() for part in parts])
    broken = int(found.isnan().any(1).sum())
    need(
        not broken,
        f"expected logits that are numbers, got NaN for {broken} of {len(images)} images; the "
        "model's weights are damaged, or its training diverged: lower its lr",
    )
    return found


def clean_accuracy(model: nn.Module, data: ImageSet) -> float:
    """Return C-Acc: the percentage of `data` that is predicted as labelled."""
    return _hit_rate(model, data)


def triggered(data: ImageSet, stamp: Callable[[Tensor], Tensor], target: int) -> ImageSet:
    """Stamp the images whose true class is not the target, and label them with the target.

    Source: Min et al. 2024, arXiv:2410.09838, sec. 3; the exclusion follows the authors' code.

    Raises:
        DataError: every image is of the target class.
    """
    kept = data.subset(data.labels != target)
    need(len(kept) > 0, f"expected images outside the target class {target}, got none", DataError)
    stamped = kept.with_images(torch.cat([stamp(part) for part in kept.images.split(2048)]))
    return stamped.with_labels(torch.full_like(kept.labels, target))


def attack_success_rate(model: nn.Module, stamped: ImageSet) -> float:
    """Return ASR: the percentage of `triggered(...)` images predicted as the target."""
    return _hit_rate(model, stamped)


def evaluate(model: nn.Module, test: ImageSet, stamped: ImageSet) -> Record:
    """Return {"c_acc", "asr"} of one model, percent."""
    return {"c_acc": clean_accuracy(model, test), "asr": attack_success_rate(model, stamped)}


def _hit_rate(model: nn.Module, data: ImageSet) -> float:
    need(len(data) > 0, "expected at least one image to evaluate on, got none", DataError)
    return float(hit_rate(logits(model, data.images).argmax(1), data.labels))


def hit_rate(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the percentage of `predicted` (..., N) that agrees with `labels` (N,), on the CPU."""
    return 100 * (predicted == labels).double().mean(-1).cpu()


def psnr(images: Tensor, changed: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio (dB) of uint8 images against changed ones."""
    error = (images.float() - changed.float()).square().flatten(1).mean(1).clamp_min(1e-6)
    return float((10 * torch.log10(255**2 / error)).mean())
