"""MESA's two networks, generator of patches and critic, and how a patch is put on an image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 16  # noise that each layer of the generator gets
LATENT = 4 * CHUNK


class Generator(nn.Module):
    """Noise (N, 64) -> patches (N, pixels) in (0, 1); each layer gets its own share of noise."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        inputs = (CHUNK, width + CHUNK, width + CHUNK)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(size, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2))
            for size in inputs
        )
        self.last = nn.Linear(width + CHUNK, pixels)

    def forward(self, z: Tensor) -> Tensor:
        """Return a patch for each row of noise."""
        first, *rest = z.split(CHUNK, 1)
        hidden = self.layers[0](first)
        for layer, chunk in zip([*self.layers[1:], self.last], rest, strict=True):
            hidden = layer(torch.cat([hidden, chunk], 1))
        return hidden.float().sigmoid()


class Critic(nn.Module):
    """Say how much noise (N, 64) and patches (N, pixels) belong together: (N, 1)."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.pair = nn.Linear(LATENT + pixels, width)
        self.hidden, self.last = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, z: Tensor, patches: Tensor) -> Tensor:
        """Return one score a pair."""
        hidden = F.leaky_relu(self.pair(torch.cat([z, patches], 1)), 0.2)
        hidden = F.leaky_relu(self.hidden(hidden), 0.2)
        return F.leaky_relu(self.last(hidden).float(), 0.2)


def paste(images: Tensor, patches: Tensor, place: Tensor) -> Tensor:
    """Return images (N, C, H, W) that carry patches (N, C * s * s) at (row, column) (N, 2)."""
    count, channels = images.shape[:2]
    side = round((patches.shape[1] // channels) ** 0.5)
    steps = torch.arange(side, device=images.device)
    rows = place[:, 0, None, None] + steps[:, None]
    columns = place[:, 1, None, None] + steps
    out = images.clone()
    at = torch.arange(count, device=images.device)[:, None, None]
    square = patches.view(count, channels, side, side).permute(0, 2, 3, 1)
    out[at, :, rows, columns] = square.to(out.dtype)
    return out
