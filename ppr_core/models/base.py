"""What a classifier is, and what every method may ask of one."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Settings, derive
from ppr_core.errors import CheckpointError, need
from ppr_core.runtime import seed_of, seeded

CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL = 1e-5  # added to the variance, which a dead channel lets go to zero
PIXELS = ((0.0,), (1.0,))  # the identity: for what takes pixels as they are

Module = TypeVar("Module", bound=nn.Module)
Stats = tuple[Sequence[float], Sequence[float]]  # mean and spread, channel by channel


class Normalise(nn.Module):
    """Map pixels in [0, 1] to zero mean and unit spread, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
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


class Network(nn.Module):
    """Pixels in [0, 1] in, logits out; what the methods of this package may ask of any model.

    Attributes:
        normalise: the first layer.
        size: side of the images it takes, pixels; others are resized; None takes any.
        published: names that the weights have elsewhere, or how they begin -> the names here.
    """

    def __init__(self, stats: Stats, size: int | None) -> None:
        super().__init__()
        self.normalise = Normalise(*stats)
        self.size = size
        self.published: dict[str, str] = {}

    def logits_of(self, normalised: Tensor) -> Tensor:
        """Return the logits (N, classes) of images that are normalised already."""
        raise NotImplementedError(f"{type(self).__name__}.logits_of")

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) pixels in [0, 1] -> logits (N, classes)."""
        return self.logits_of(self.normalise(pixels))

    def resized(self, images: Tensor) -> Tensor:
        """Return images at the side that the network takes."""
        if self.size and images.shape[-1] != self.size:
            return F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return images


class Cut(Network):
    """A network cut in two: `features` (a map) and `head` (all that follows). Subclasses: `head`.

    Attributes:
        backbone: normalised pixels -> feature map (N, D, h, w), or vectors (N, D).
    """

    def __init__(self, backbone: nn.Module, stats: Stats, size: int | None) -> None:
        super().__init__(stats, size)
        self.backbone = backbone

    def features(self, pixels: Tensor) -> Tensor:
        """Return the feature map (N, D, h, w) of pixels in [0, 1]."""
        return self.features_of(self.normalise(pixels))

    def features_of(self, normalised: Tensor) -> Tensor:
        """Return the feature map of images that are normalised already."""
        return self.backbone(self.resized(normalised))

    def head(self, features: Tensor) -> Tensor:
        """Return the logits (N, classes) of a feature map."""
        raise NotImplementedError(f"{type(self).__name__}.head")

    def logits_of(self, normalised: Tensor) -> Tensor:
        """Return the logits (N, classes) of images that are normalised already."""
        return self.head(self.features_of(normalised))


class Classifier(Cut):
    """A network whose head is pooling and one linear layer.

    Attributes:
        linear: the last layer, D -> classes.
        relu_head: whether the head begins with a ReLU.
    """

    def __init__(
        self,
        backbone: nn.Module,
        linear: nn.Linear,
        *,
        stats: Stats = CIFAR_STATS,
        relu_head: bool = False,
        size: int | None = None,
    ) -> None:
        super().__init__(backbone, stats, size)
        self.linear = linear
        self.relu_head = relu_head

    def head(self, features: Tensor) -> Tensor:
        """Return the logits (N, classes) of a feature map."""
        return self.linear(self.pooled(features))

    def pooled(self, features: Tensor) -> Tensor:
        """Return what the linear layer sees: (N, D)."""
        # Out of place: the map is used again by feature losses.
        features = F.relu(features) if self.relu_head else features
        if features.ndim == 2:  # such as a transformer's class token
            return features
        return F.adaptive_avg_pool2d(features, 1).flatten(1)


class Capped(Cut):
    """A network whose head is any module; the last linear layer in it is the one to retrain.

    Attributes:
        top: feature map -> logits.
    """

    def __init__(
        self,
        backbone: nn.Module,
        top: nn.Module,
        *,
        last: str,
        stats: Stats = CIFAR_STATS,
        size: int | None = None,
    ) -> None:
        super().__init__(backbone, stats, size)
        self.top = top
        self._last = last

    @property
    def linear(self) -> nn.Linear:
        """The last layer, a part of `top`."""
        last: Any = self.top.get_submodule(self._last)
        return last

    def head(self, features: Tensor) -> Tensor:
        """Return the logits (N, classes) of a feature map."""
        return self.top(features)


class Architecture(Settings):
    """A way to build a classifier; `build` draws its initial weights from a seed."""

    def make(self, num_classes: int) -> Network:
        """Build with torch's default initialisation from the global generator."""
        raise NotImplementedError(f"{type(self).__name__}.make")

    def build(self, num_classes: int, *, seed: int) -> Network:
        """Return a freshly initialised classifier; the global generators are left untouched."""
        with seeded(seed_of(derive(seed, "init"))):
            model = self.make(num_classes)
        return model.to(memory_format=torch.channels_last)

    def skeleton(self, num_classes: int) -> Network:
        """Return the classifier without memory for its weights: to look at names and shapes."""
        plain = self.replace(pretrained=False) if "pretrained" in type(self).model_fields else self
        with torch.device("meta"), seeded(0):
            return plain.make(num_classes)

    @classmethod
    def adopt(cls, path: str, found: Any, values: Mapping[str, Any]) -> Self:
        """Take any callable that returns an nn.Module as an architecture."""
        from ppr_core.models.own import Own  # late: it is an architecture itself

        if not callable(found):
            return super().adopt(path, found, values)
        own: Any = Own(path=path, **values)
        return own


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


def clone(model: Module) -> Module:
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


def comparable(model: nn.Module) -> list[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    """Return the batch-norm layers by name whose statistics and weights can be read."""
    return [
        (name, layer)
        for name, layer in batch_norms(model)
        if layer.affine and layer.track_running_stats
    ]


def normalised_convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """Yield each batch norm that stands right behind a convolution: (its name, both layers).

    Modules stand in the order of their making. Where batch norm comes first, as in DenseNet, only
    those pairs are found whose channels agree.
    """
    before: nn.Module | None = None
    for name, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue
        if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            tracked = module.affine and module.track_running_stats
            if tracked and module.num_features == before.out_channels:
                yield name, before, module
        before = module


@torch.no_grad()
def lipschitz(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return, a channel, the kernel's largest singular value times its batch norm's scale.

    A channel's kernel is taken as a matrix of input channels by kernel positions.
    """
    kernels = convolution.weight.flatten(2)  # (out, in, height * width)
    scale = norm.weight / (norm.get_buffer("running_var") + SMALL).sqrt()
    return torch.linalg.matrix_norm(kernels, ord=2) * scale.abs()


def normalise_of(model: Any) -> Normalise:
    """Return a model's first layer; where it tells of none, it takes pixels: the identity."""
    if any(hasattr(model, name) for name in ("features_of", "logits_of")):
        return model.normalise
    return Normalise(*PIXELS).to(next(model.parameters()).device)


def logits_of(model: Any, normalised: Tensor) -> Tensor:
    """Return the logits of what `normalise_of(model)` gave."""
    if hasattr(model, "logits_of"):
        return model.logits_of(normalised)
    if hasattr(model, "features_of"):
        return model.head(model.features_of(normalised))
    return model(normalised)


def features_of(model: Any, normalised: Tensor) -> Tensor:
    """Return the features of what `normalise_of(model)` gave."""
    own = hasattr(model, "features_of")
    return model.features_of(normalised) if own else model.features(normalised)
