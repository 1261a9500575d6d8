"""Networks that draw a trigger for each image: where to paste, and what."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.models.activations import soft_mask

CENTRE, SPREAD = 0.5, 0.25  # of pixels, as the networks take them


class TriggerNetworks(nn.Module):
    """A pattern network, and a mask network that is trained before it.

    Source: Nguyen and Tran 2020, arXiv:2010.08138, with the layers of the authors' release.

    Differs from the authors' code: BackdoorBench's copy of them applies tanh twice, which holds
    masks and patterns between 0.12 and 0.88; here, as in the release, it is applied once.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask, self.pattern = _Network(width, 1), _Network(width, 3)

    def train(self, mode: bool = True) -> "TriggerNetworks":
        """Set the mode of the pattern network."""
        super().train(mode)
        self.mask.eval()
        return self

    def forward(self, images: Tensor, givers: Tensor) -> tuple[Tensor, Tensor]:
        """Return images with the triggers of as many givers, and the patterns in them."""
        with torch.no_grad():
            masks = sharpen(self.mask(givers))
        patterns = self.pattern(givers)
        return torch.lerp(images, patterns, masks), patterns


class _Network(nn.Module):
    """Three halvings, a middle, three doublings: pixels -> (N, out, H, W) in [0, 1]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        stages = (3, width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Sequential(_block(a, b), _block(b, b)) for a, b in pairwise(stages)
        )
        self.middle = _block(stages[-1], stages[-1])
        self.up = nn.ModuleList(
            nn.Sequential(_block(a, a), _block(a, b)) for a, b in pairwise(stages[:0:-1])
        )
        self.up.append(nn.Sequential(_block(width, width), _block(width, out)[:2]))  # no ReLU

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, out, H, W) float32 in [0, 1]."""
        maps, sizes = (pixels - CENTRE) / SPREAD, []
        for stage in self.down:
            sizes.append(maps.shape[-2:])
            maps = F.max_pool2d(stage(maps), 2)
        maps = self.middle(maps)
        for stage in self.up:
            maps = stage(F.interpolate(maps, sizes.pop(), mode="bilinear"))
        return soft_mask(maps.float())


def _block(inputs: int, outputs: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs, momentum=0.05)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU())


def sharpen(mask: Tensor) -> Tensor:
    """Push mask values in (0, 1) to either end."""
    return soft_mask(20 * mask - 10)
