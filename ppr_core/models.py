"""Classifiers: pixels in [0, 1] in, logits out; normalisation is the first layer."""

import copy
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field, Settings, derive, from_registry
from ppr_core.errors import CheckpointError, ConfigError, need
from ppr_core.runtime import seeded

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
        with seeded(derive(seed, "init")):
            model = self.make(num_classes)
        return model.to(memory_format=torch.channels_last)


class _ResNet(Architecture):
    width: int = Field(64, ge=1, description="channels of the first stage")
    block: ClassVar[str]

    def _backbone(self, blocks: tuple[int, ...]) -> tuple[nn.Sequential, int]:
        from torchvision.models import resnet  # late: it takes a second, and few commands build

        block = getattr(resnet, self.block)
        channels = self.width
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        for stage, count in enumerate(blocks):
            planes = self.width * 2**stage
            stage_layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                out = planes * block.expansion
                down = None
                if stride != 1 or channels != out:
                    conv = nn.Conv2d(channels, out, 1, stride, bias=False)
                    down = nn.Sequential(conv, nn.BatchNorm2d(out))
                stage_layers.append(block(channels, planes, stride, down))
                channels = out
            layers.append(nn.Sequential(*stage_layers))
        return nn.Sequential(*layers), channels


class ResNet18(_ResNet):
    """ResNet-18 with a 3x3 stem and no max-pooling, for 32-pixel images."""

    source: ClassVar[str] = "He et al. 2016, arXiv:1512.03385, sec. 4.2"
    block: ClassVar[str] = "BasicBlock"
    blocks: int = Field(2, ge=1, le=2, description="blocks a stage; 1 for small studies")

    def make(self, num_classes: int) -> Classifier:
        """Build with torch's default initialisation."""
        backbone, channels = self._backbone((self.blocks,) * 4)
        return Classifier(backbone, nn.Linear(channels, num_classes))


class ResNet50(_ResNet):
    """ResNet-50 with a 3x3 stem and no max-pooling, for 32-pixel images."""

    source: ClassVar[str] = "He et al. 2016, arXiv:1512.03385, sec. 4.2"
    block: ClassVar[str] = "Bottleneck"

    def make(self, num_classes: int) -> Classifier:
        """Build with torch's default initialisation."""
        backbone, channels = self._backbone((3, 4, 6, 3))
        return Classifier(backbone, nn.Linear(channels, num_classes))


class DenseNet161(Architecture):
    """torchvision's DenseNet-161, its stride-2 ImageNet stem included.

    Features are the backbone's output before the last ReLU; the head applies it.
    """

    source: ClassVar[str] = "Huang et al. 2017, arXiv:1608.06993"
    width: int = Field(48, ge=2, multiple_of=2, description="growth rate; the stem has twice that")

    def make(self, num_classes: int) -> Classifier:
        """Build with torchvision's initialisation."""
        from torchvision.models import DenseNet

        blocks = (6, 12, 36, 24)
        net = DenseNet(self.width, blocks, 2 * self.width, num_classes=num_classes)
        return Classifier(net.features, net.classifier, relu_head=True)


class ResNet18ImageNet(Architecture):
    """torchvision's ResNet-18 at 224 pixels, from ImageNet weights, with a new linear layer."""

    source: ClassVar[str] = "He et al. 2016, arXiv:1512.03385; weights: torchvision IMAGENET1K_V1"
    pretrained: bool = Field(True, description="start from ImageNet weights")
    size: int = Field(224, ge=32, description="side that images are resized to, pixels")
    width: int = Field(64, ge=1, description="channels of the first stage (64 where pretrained)")

    def make(self, num_classes: int) -> Classifier:
        """Build; the ImageNet weights come through torchvision's own loader."""
        from torchvision.models import resnet18

        need(
            self.width == 64 or not self.pretrained,
            f"expected width 64 with pretrained weights, got {self.width}; set pretrained: false",
        )
        net = resnet18(weights=self._weights())
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        layers = nn.Sequential(stem, net.layer1, net.layer2, net.layer3, net.layer4)
        channels = 512
        if self.width != 64:
            narrow, channels = _Narrow(width=self.width)._backbone((2, 2, 2, 2))
            first = nn.Conv2d(3, self.width, 7, 2, 3, bias=False)
            stem = nn.Sequential(first, narrow[1], narrow[2], nn.MaxPool2d(3, 2, 1))
            layers = nn.Sequential(stem, *narrow[3:])
        return Classifier(
            layers, nn.Linear(channels, num_classes), stats=IMAGENET_STATS, size=self.size
        )

    def _weights(self) -> Enum | None:
        from torchvision.models import ResNet18_Weights

        if not self.pretrained:
            return None
        weights = ResNet18_Weights.IMAGENET1K_V1
        try:
            weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"expected ImageNet weights from {weights.url}, got: {error}; put that file into "
                f"{torch.hub.get_dir()}/checkpoints, or train from scratch with "
                "model: {name: resnet18_imagenet, pretrained: false}"
            ) from None
        return weights


class _Narrow(_ResNet):
    block: ClassVar[str] = "BasicBlock"


MODELS: dict[str, type[Architecture]] = {
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "densenet161": DenseNet161,
    "resnet18_imagenet": ResNet18ImageNet,
}


def build(spec: str | dict, num_classes: int, *, seed: int) -> Classifier:
    """Build a fresh classifier from a name or {"name": ..., overrides}.

    Raises:
        ConfigError: unknown name or setting, or weights that cannot be had.
    """
    return from_registry(MODELS, spec, "model").build(num_classes, seed=seed)


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
