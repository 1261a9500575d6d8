"""CLP: channel Lipschitzness based pruning, without data."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.data.images import ImageSet
from ppr_core.defenses.parts.outliers import OutlierPruning
from ppr_core.models.base import lipschitz, normalised_convolutions


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
