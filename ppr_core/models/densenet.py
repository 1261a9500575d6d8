"""DenseNet-161."""

from typing import ClassVar

from ppr_core.config import Field
from ppr_core.models.base import Architecture, Classifier


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
