"""The image-to-image network that writes reversed triggers."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.runtime import seed_of, seeded
from ppr_core.weights import State, snapshot, under

LEVELS = 4  # halvings of the image
MULTIPLE = 2**LEVELS  # what height and width of an image must be divisible by


class _Norm(nn.InstanceNorm2d):
    """Instance norm that also takes the 1x1 maps which 16-pixel images end in."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape; a 1x1 map becomes the bias."""
        cudnn = torch.backends.cudnn.enabled
        scale = (self.weight, self.bias)
        return torch.instance_norm(maps, *scale, None, None, True, 0.0, self.eps, cudnn)


def _block(channels: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((channels, out), (out, out)):
        layers += [nn.Conv2d(before, after, 3, padding=1), _Norm(after, affine=True)]
        layers.append(nn.LeakyReLU(0.01, inplace=True))
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net from images to images of the same shape, linear at the end.

    It holds no running statistics: train and eval mode are the same.

    Differs from the authors' code: the layers that it builds and never uses are left out.

    Source: Xu et al. 2024, ICLR, OpenReview Tw9wemV6cb (BTI-DBF).

    Args:
        width: channels of the first level; each of four levels doubles them.
        channels: of the images.
    """

    def __init__(self, width: int = 32, channels: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS + 1)]
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise([channels, *widths]))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wide, wide, 3, stride=2, padding=1, output_padding=1)
            for wide in widths[:0:-1]
        )
        self.merge = nn.ModuleList(_block(b + a, a) for a, b in reversed([*pairwise(widths)]))
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W), H and W divisible by 16 -> the same shape, unbounded."""
        maps, skips = images, []
        for level, block in enumerate(self.down):
            maps = block(F.max_pool2d(maps, 2) if level else maps)
            skips.append(maps)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            maps = merge(torch.cat([F.leaky_relu(up(maps), 0.01), skip], 1))
        return self.out(maps)


class Residual(UNet):
    """A U-Net that adds its output to the image, scaled down where it is too large.

    Args:
        width: see `UNet`.
        channels: see `UNet`.
        bound: mean square that the output may have, image by image.
    """

    def __init__(self, width: int = 32, channels: int = 3, bound: float = 0.3) -> None:
        super().__init__(width, channels)
        self.bound = bound

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W), H and W divisible by 16 -> the same shape, at a bounded distance."""
        return images + within(super().forward(images).float(), self.bound)


def within(change: Tensor, bound: float) -> Tensor:
    """Scale each image's change (N, C, H, W) down to a mean square of at most `bound`."""
    size = change.square().mean((1, 2, 3), keepdim=True)
    return change * (bound / size.clamp_min(1e-8)).sqrt().clamp(max=1)


def fresh(
    width: int,
    channels: int,
    rng: torch.Generator,
    device: torch.device,
    bound: float | None = None,
) -> UNet:
    """Return a U-Net with torch's default weights; the global generators are left untouched.

    Args:
        width: see `UNet`.
        channels: see `UNet`.
        rng: its seed draws the weights.
        device: of the weights.
        bound: see `Residual`; none: a U-Net that writes the whole image.
    """
    with seeded(seed_of(rng)):
        net = UNet(width, channels) if bound is None else Residual(width, channels, bound)
    return net.to(device).to(memory_format=torch.channels_last)


def saved(net: UNet, optimizer: torch.optim.Optimizer) -> State:
    """Return copies of the weights and of the optimizer's slots, by name."""
    named = {f"generator.{name}": tensor for name, tensor in snapshot(net).items()}
    for index, slots in optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{index}.{slot}": tensor.clone() for slot, tensor in slots.items()}
    return named


def load(net: UNet, state: Mapping[str, Tensor]) -> UNet:
    """Put the weights that `saved` returned into a U-Net."""
    net.load_state_dict(under(state, "generator."))
    return net


def load_slots(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put the slots that `saved` returned into an optimizer of the same parameters."""
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        for slot, value in under(state, f"optimizer.{index}.").items():
            like = parameter if value.shape == parameter.shape else value.to(parameter.device)
            # In the parameter's own memory order, which fused optimizers ask for.
            optimizer.state[parameter][slot] = torch.empty_like(like).copy_(value)
