"""Networks that hide a bit string in an image, and the figures that judge them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SPREAD = 16  # side of the map that the message is first turned into


@dataclass(frozen=True)
class Plan:
    """One variant: its networks and the course of its training.

    Attributes:
        bits: length of the message.
        encoder: channels at each scale; every scale but the first halves the side.
        decoder: (channels, stride) of each convolution.
        hidden: width of the decoder's hidden linear layer.
        reach: largest change of a pixel; None: the network draws the whole image anew.
        deep: the published nets: no batch norm, convolutions after upsampling, one layer more.
        group: images of a batch that share a message.
        weight: of the distortion in the loss.
        wait: steps between the first 90 % of bits and the penalties' ramp.
        ramp: steps of that ramp.
    """

    bits: int
    encoder: tuple[int, ...]
    decoder: tuple[tuple[int, int], ...]
    hidden: int
    reach: float | None
    deep: bool
    group: int
    weight: float
    wait: int
    ramp: int


PLANS = {
    "fast": Plan(
        bits=20,
        encoder=(16, 32, 64),
        decoder=((16, 2), (32, 1), (32, 2), (64, 2)),
        hidden=256,
        reach=16 / 255,
        deep=False,
        group=4,
        weight=50.0,
        wait=0,
        ramp=100,
    ),
    "stegastamp": Plan(
        bits=100,
        encoder=(32, 32, 64, 128, 256),
        decoder=((32, 2), (32, 1), (64, 2), (64, 1), (64, 2), (128, 2), (128, 2)),
        hidden=512,
        reach=None,
        deep=True,
        group=1,
        weight=10.0,
        wait=1000,
        ramp=3000,
    ),
}


def _convolution(inputs: int, outputs: int, stride: int, norm: bool) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not norm)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU())


class Encoder(nn.Module):
    """A U-Net that sees the image beside a map of the message."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        widths, norm = plan.encoder, not plan.deep
        self.reach = plan.reach
        self.spread = nn.Linear(plan.bits, 3 * SPREAD**2)
        steps = zip((6, *widths), widths, strict=False)
        self.down = nn.ModuleList(
            _convolution(low, high, 2 if index else 1, norm)
            for index, (low, high) in enumerate(steps)
        )
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for index in reversed(range(len(widths) - 1)):
            high, low = widths[index + 1], widths[index]
            kept = low if plan.deep else high
            pad = nn.ZeroPad2d((0, 1, 0, 1))
            widen = nn.Sequential(pad, nn.Conv2d(high, low, 2), nn.ReLU())
            self.up.append(widen if plan.deep else nn.Identity())
            # The last merge sees the network's own input as well.
            self.merge.append(_convolution(kept + low + (0 if index else 6), low, 1, norm))
        last = [_convolution(widths[0], widths[0], 1, norm)] if plan.deep else []
        self.last = nn.Sequential(*last, nn.Conv2d(widths[0], 3, 1))

    def forward(self, images: Tensor, messages: Tensor) -> Tensor:
        """(N, 3, H, W) pixels in [0, 1] and (N, bits) of 0 and 1 -> images that carry them."""
        spread = F.relu(self.spread(messages)).view(-1, 3, SPREAD, SPREAD)
        flow = torch.cat([F.interpolate(spread, images.shape[-2:]), images], 1)
        skips = [flow]
        for layer in self.down:
            flow = layer(flow)
            skips.append(flow)
        skips = [torch.cat([skips[1], skips[0]], 1), *skips[2:-1]]
        for up, merge in zip(self.up, self.merge, strict=True):
            skip = skips.pop()
            flow = up(F.interpolate(flow, skip.shape[-2:]))
            flow = merge(torch.cat([flow, skip], 1))
        drawn = self.last(flow).float()
        if self.reach is None:
            return drawn.sigmoid()
        return (images + self.reach * drawn.tanh()).clamp(0, 1)


class Decoder(nn.Module):
    """Convolutions and two linear layers: an image in, one logit a bit out."""

    def __init__(self, plan: Plan, size: int) -> None:
        super().__init__()
        layers, channels = [], 3
        for outputs, stride in plan.decoder:
            # On one pixel a stride of 2 changes nothing, but there oneDNN (torch 2.14) leaves part
            # of the weights' bf16 gradient unwritten: whatever the memory held, at times nan.
            stride = stride if size > 1 else 1
            layers.append(_convolution(channels, outputs, stride, not plan.deep))
            channels, size = outputs, -(-size // stride)
        self.convolutions = nn.Sequential(*layers)
        hidden = nn.Linear(channels * size**2, plan.hidden)
        self.linear = nn.Sequential(hidden, nn.ReLU(), nn.Linear(plan.hidden, plan.bits))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) pixels in [0, 1] -> logits (N, bits)."""
        return self.linear(self.convolutions(images).flatten(1)).float()


def bit_accuracy(logits: Tensor, messages: Tensor) -> Tensor:
    """Return the share of bits read correctly: a scalar."""
    return ((logits > 0) == (messages > 0.5)).float().mean()


def common_share(residuals: Tensor) -> Tensor:
    """Return the share of the residuals' energy that all images have in common.

    An unbiased estimate: 1 for one universal pattern, 0 for independent residuals.

    Args:
        residuals: (..., n, C, H, W), n >= 2 images that carry the same message.

    Returns:
        One share a group: shape (...).
    """
    count = residuals.shape[-4]
    energy = residuals.square().sum((-3, -2, -1)).mean(-1)
    shared = residuals.mean(-4).square().sum((-3, -2, -1))
    return (count * shared - energy) / ((count - 1) * energy + 1e-12)
