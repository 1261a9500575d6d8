"""What a classifier is, and what every method may ask of one."""

import copy
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Settings, derive
from ppr_core.errors import CheckpointError, need
from ppr_core.runtime import seed_of, seeded

CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Normalise(nn.Module):
    """Map pixels in [0, 1] to zero mean and unit spread, channel by channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Not persistent: constants of the architecture, not weights to interpolate or to save.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape, normalised."""
        return (pixels - self.mean) / self.std

    def inverse(self, normalised: Tensor) -> Tensor:
        """Undo `forward`, without clamping."""
        return normalised * self.std + self.mean


class Classifier(nn.Module):
    """A network cut in two: `features` (a map) and `head` (pooling and the linear layer).

    Attributes:
        normalise: the first layer.
        backbone: normalised pixels -> feature map (N, D, h, w).
        linear: the last layer, D -> classes.
        size: side of the images it takes, pixels; others are resized; None takes any.
    """

    def __init__(
        self,
        backbone: nn.Module,
        linear: nn.Linear,
        *,
        stats: tuple[tuple[float, ...], tuple[float, ...]] = CIFAR_STATS,
        relu_head: bool = False,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(*stats)
        self.backbone = backbone
        self.linear = linear
        self.relu_head = relu_head
        self.size = size

    def features(self, pixels: Tensor) -> Tensor:
        """Return the feature map (N, D, h, w) of pixels in [0, 1]."""
        return self.features_of(self.normalise(pixels))

    def features_of(self, normalised: Tensor) -> Tensor:
        """Return the feature map of images that are normalised already."""
        if self.size and normalised.shape[-1] != self.size:
            normalised = F.interpolate(normalised, self.size, mode="bilinear", antialias=True)
        return self.backbone(normalised)

    def head(self, features: Tensor) -> Tensor:
        """Return the logits (N, classes) of a feature map."""
        return self.linear(self.pooled(features))

    def pooled(self, features: Tensor) -> Tensor:
        """Return what the linear layer sees: (N, D)."""
        # Out of place: the map is used again by feature losses.
        features = F.relu(features) if self.relu_head else features
        return F.adaptive_avg_pool2d(features, 1).flatten(1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) pixels in [0, 1] -> logits (N, classes)."""
        return self.head(self.features(pixels))


class Architecture(Settings):
    """A way to build a classifier; `build` draws its initial weights from a seed."""

    def make(self, num_classes: int) -> Classifier:
        """Build with torch's default initialisation from the global generator."""
        raise NotImplementedError(f"{type(self).__name__}.make")

    def build(self, num_classes: int, *, seed: int) -> Classifier:
        """Return a freshly initialised classifier; the global generators are left untouched."""
        with seeded(seed_of(derive(seed, "init"))):
            model = self.make(num_classes)
        return model.to(memory_format=torch.channels_last)


def batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    """Yield the batch-norm layers by name, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield name, module


def convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield the convolutions by name, in module order; those of shortcuts are left out."""
    for name, module in model.named_modules():
        shortcut = {"downsample", "shortcut"} & set(name.split("."))
        if isinstance(module, nn.Conv2d) and not shortcut:
            yield name, module


def clone(model: nn.Module) -> nn.Module:
    """Return an independent copy with every parameter trainable."""
    return copy.deepcopy(model).requires_grad_(True)


def check_same_shapes(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, naming the first difference, unless names and shapes agree."""
    odd = sorted(set(got) ^ set(expected))
    need(not odd, f"expected the same tensors, got a difference in {odd[:3]}", CheckpointError)
    for name, tensor in expected.items():
        need(
            got[name].shape == tensor.shape,
            f"expected {name} of shape {tuple(tensor.shape)}, got {tuple(got[name].shape)}",
            CheckpointError,
        )


def need_layers(found: Iterable[object], use: str, kind: str) -> None:
    """Raise ConfigError unless a model has the layers that a defense is about.

    Args:
        found: those layers of the model.
        use: what the defense does to them, as a sentence.
        kind: what a model has that has them.
    """
    need(
        any(True for _ in found),
        f"{use}: expected a model with {kind}, got one without; choose another defense for it",
    )


def need_parts(model: nn.Module, *names: str) -> None:
    """Raise ConfigError, naming what is missing, unless the model is cut into these parts."""
    missing = [name for name in names if not hasattr(model, name)]
    need(
        not missing,
        f"expected a model with {', '.join(names)}, got a {type(model).__name__} without "
        f"{', '.join(missing)}; make it a models.Classifier",
    )
