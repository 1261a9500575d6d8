"""PreAct-ResNet-18 as backdoor benchmarks have it."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.models.base import Classifier
from ppr_core.models.pretrained import Statistics


class PreActBlock(nn.Module):
    """Two convolutions, each behind batch norm and ReLU; the shortcut has neither of its own."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.downsample = None
        if stride != 1 or channels != planes:
            self.downsample = nn.Sequential(nn.Conv2d(channels, planes, 1, stride, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, channels, h, w) -> (N, planes, h / stride, w / stride)."""
        active = F.relu(self.bn1(maps))
        short = maps if self.downsample is None else self.downsample(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + short


class PreActResNet18(Statistics):
    """PreAct-ResNet-18 with a 3x3 stem, and neither batch norm nor ReLU in front of pooling.

    Differs from the paper: it has both at the end; benchmarks of backdoors leave them out.
    """

    source: ClassVar[str] = "He et al. 2016, arXiv:1603.05027; as BackdoorBench has it"
    width: int = Field(64, ge=1, description="channels of the first stage")
    blocks: int = Field(2, ge=1, le=2, description="blocks a stage; 1 for small studies")

    def make(self, num_classes: int) -> Classifier:
        """Build with torch's default initialisation."""
        channels = self.width
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for stage in range(4):
            planes, blocks = self.width * 2**stage, []
            for index in range(self.blocks):
                blocks.append(PreActBlock(channels, planes, 2 if stage and not index else 1))
                channels = planes
            layers.append(nn.Sequential(*blocks))
        return Classifier(
            nn.Sequential(*layers), nn.Linear(channels, num_classes), stats=self.stats
        )
