"""Residual networks: the paper's for 32 pixels, and torchvision's for 224."""

from typing import ClassVar, Literal

from torch import nn

from ppr_core.config import Field
from ppr_core.errors import need
from ppr_core.models.base import IMAGENET_STATS, Architecture, Classifier
from ppr_core.models.pretrained import Statistics, imagenet

# Its names, where the stem is one part of the backbone.
TORCHVISION = {"conv1.": "backbone.0.0.", "bn1.": "backbone.0.1.", "fc.": "linear."}
TORCHVISION |= {f"layer{n}.": f"backbone.{n}." for n in range(1, 5)}


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
        weights = imagenet("ResNet18_Weights", "resnet18_imagenet") if self.pretrained else None
        net = resnet18(weights=weights)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        layers = nn.Sequential(stem, net.layer1, net.layer2, net.layer3, net.layer4)
        channels = 512
        if self.width != 64:
            narrow, channels = _Narrow(width=self.width)._backbone((2, 2, 2, 2))
            first = nn.Conv2d(3, self.width, 7, 2, 3, bias=False)
            stem = nn.Sequential(first, narrow[1], narrow[2], nn.MaxPool2d(3, 2, 1))
            layers = nn.Sequential(stem, *narrow[3:])
        linear = nn.Linear(channels, num_classes)
        model = Classifier(layers, linear, stats=IMAGENET_STATS, size=self.size)
        model.published = dict(TORCHVISION)
        return model


class ResNet18Pooled(Statistics, _ResNet):
    """ResNet-18 with max-pooling behind its stem, at the images' own size: torchvision's.

    Its weights fit `resnet18` by name and shape where the stem is 3x3: only its answers tell the
    two apart.
    """

    source: ClassVar[str] = "He et al. 2016, arXiv:1512.03385; as torchvision has it"
    block: ClassVar[str] = "BasicBlock"
    stem: Literal[3, 7] = Field(7, description="side of the first kernel: 7 strides by 2, 3 by 1")
    blocks: int = Field(2, ge=1, le=2, description="blocks a stage; 1 for small studies")

    def make(self, num_classes: int) -> Classifier:
        """Build with torch's default initialisation."""
        net, channels = self._backbone((self.blocks,) * 4)
        first, norm, act, *stages = net
        if self.stem == 7:
            first = nn.Conv2d(3, self.width, 7, 2, 3, bias=False)
        stem = nn.Sequential(first, norm, act, nn.MaxPool2d(3, 2, 1))
        model = Classifier(
            nn.Sequential(stem, *stages), nn.Linear(channels, num_classes), stats=self.stats
        )
        model.published = dict(TORCHVISION)
        return model


class _Narrow(_ResNet):
    block: ClassVar[str] = "BasicBlock"
