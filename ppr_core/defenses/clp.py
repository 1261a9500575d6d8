"""CLP: channel Lipschitzness based pruning, without data."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.data.images import ImageSet
from ppr_core.defenses.parts.outliers import OutlierPruning
from ppr_core.models.base import normalised_convolutions

SMALL = 1e-5  # added to the variance, which a dead channel lets go to zero


class Clp(OutlierPruning):
    """Prune the channels that can amplify their input most: weights decide, data are not used.

    Differs from the authors' code: 1e-5 is added to the running variance.
    """

    source: ClassVar[str] = "Zheng et al. 2022, arXiv:2208.03111"
    needs: ClassVar[tuple[str, ...]] = ("batch norm right behind convolutions",)

    def scores(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the bound of each channel's Lipschitz constant."""
        return {
            name: lipschitz(convolution, norm)
            for name, convolution, norm in normalised_convolutions(model)
        }


@torch.no_grad()
def lipschitz(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return, a channel, the kernel's largest singular value times its batch norm's scale.

    A channel's kernel is taken as a matrix of input channels by kernel positions.
    """
    kernels = convolution.weight.flatten(2)  # (out, in, height * width)
    scale = norm.weight / (norm.get_buffer("running_var") + SMALL).sqrt()
    return torch.linalg.matrix_norm(kernels, ord=2) * scale.abs()
