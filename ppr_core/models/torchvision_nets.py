"""torchvision's VGG-19, MobileNetV3, ConvNeXt and ViT, at 32 to 224 pixels."""

from collections import OrderedDict
from typing import ClassVar

from torch import nn

from ppr_core.config import Field
from ppr_core.errors import need
from ppr_core.models.base import Capped, Classifier
from ppr_core.models.pretrained import Statistics, imagenet

VGG19 = (2, 2, 4, 4, 4)  # convolutions between two poolings
HEADS = {"features.": "backbone.", "classifier.": "top.classifier."}


class Vgg19(Statistics):
    """VGG-19 with batch norm. Its head has three linear layers; dropout between them.

    At 32 pixels a map of one position is repeated 7x7, as torchvision's pooling does.
    """

    source: ClassVar[str] = "Simonyan and Zisserman 2015, arXiv:1409.1556; as torchvision has it"
    width: int = Field(64, ge=1, description="channels of the first stage")
    dropout: float = Field(0.5, ge=0, lt=1, description="in the head")

    def make(self, num_classes: int) -> Capped:
        """Build with torchvision's initialisation."""
        from torchvision.models.vgg import make_layers

        wanted: list[int | str] = []
        for stage, count in enumerate(VGG19):
            wanted += [self.width * 2 ** min(stage, 3)] * count + ["M"]
        hidden, drop = 64 * self.width, self.dropout
        layers = [nn.Linear(8 * self.width * 49, hidden), nn.ReLU(inplace=True), nn.Dropout(drop)]
        layers += [nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(drop)]
        classifier = nn.Sequential(*layers, nn.Linear(hidden, num_classes))
        backbone = make_layers(wanted, batch_norm=True)
        for module in (*backbone, *classifier):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        return _capped(backbone, nn.AdaptiveAvgPool2d(7), classifier, "6", self)


class MobileNetV3Large(Statistics):
    """MobileNetV3-Large; its head has two linear layers."""

    source: ClassVar[str] = "Howard et al. 2019, arXiv:1905.02244; as torchvision has it"
    width: float = Field(1.0, gt=0, description="factor of all channel counts")
    dropout: float = Field(0.2, ge=0, lt=1, description="in the head")

    def make(self, num_classes: int) -> Capped:
        """Build with torchvision's initialisation."""
        from torchvision.models import mobilenet_v3_large

        given = {"width_mult": self.width, "dropout": self.dropout}
        net = mobilenet_v3_large(num_classes=num_classes, **given)
        return _capped(net.features, net.avgpool, net.classifier, "3", self)


class ConvNeXtTiny(Statistics):
    """ConvNeXt-Tiny, without batch norm; from ImageNet weights, with a new linear layer."""

    source: ClassVar[str] = "Liu et al. 2022, arXiv:2201.03545; as torchvision has it"
    pretrained: bool = Field(True, description="start from ImageNet weights")
    width: int = Field(96, ge=2, description="channels of the first stage (96 where pretrained)")
    drop_path: float = Field(0.1, ge=0, lt=1, description="share of the last block's skips")

    def make(self, num_classes: int) -> Capped:
        """Build with torchvision's initialisation."""
        from torchvision.models import ConvNeXt
        from torchvision.models.convnext import CNBlockConfig

        _need_whole(self.pretrained, self.width, 96)
        widths = [self.width * 2**stage for stage in range(4)]
        out = [*widths[1:], None]
        stages = [CNBlockConfig(*each) for each in zip(widths, out, (3, 3, 9, 3), strict=True)]
        net = ConvNeXt(stages, self.drop_path, num_classes=1000 if self.pretrained else num_classes)
        if self.pretrained:
            weights = imagenet("ConvNeXt_Tiny_Weights", "convnext_tiny")
            net.load_state_dict(weights.get_state_dict(progress=True, check_hash=True))
            net.classifier[2] = nn.Linear(widths[-1], num_classes)
        return _capped(net.features, net.avgpool, net.classifier, "2", self)


class VitB16(Statistics):
    """ViT-B/16, without batch norm; from ImageNet weights, with a new linear layer.

    Its features are the class token behind the last layer norm, (N, D).
    """

    source: ClassVar[str] = "Dosovitskiy et al. 2021, arXiv:2010.11929; as torchvision has it"
    pretrained: bool = Field(True, description="start from ImageNet weights")
    size: int = Field(224, ge=16, multiple_of=16, description="side that images are resized to")
    width: int = Field(768, ge=12, multiple_of=12, description="channels (768 where pretrained)")
    depth: int = Field(12, ge=1, description="blocks (12 where pretrained)")

    def make(self, num_classes: int) -> Classifier:
        """Build with torchvision's initialisation."""
        from torchvision.models import VisionTransformer

        _need_whole(self.pretrained, (self.width, self.depth, self.size), (768, 12, 224))
        shape = (self.size, 16, self.depth, 12, self.width, 4 * self.width)
        net = VisionTransformer(*shape, num_classes=1000 if self.pretrained else num_classes)
        linear = net.heads.head
        if self.pretrained:
            weights = imagenet("ViT_B_16_Weights", "vit_b_16")
            net.load_state_dict(weights.get_state_dict(progress=True, check_hash=True))
            linear = nn.Linear(self.width, num_classes)
        net.heads = nn.Identity()
        model = Classifier(net, linear, stats=self.stats, size=self.size)
        model.published = {"heads.head.": "linear.", "": "backbone."}
        return model


def _capped(
    backbone: nn.Module, pool: nn.Module, classifier: nn.Sequential, last: str, by: Statistics
) -> Capped:
    parts = [("pool", pool), ("classifier", classifier)]
    if not isinstance(classifier[1], nn.Flatten):  # which else stands behind its layer norm
        parts.insert(1, ("flatten", nn.Flatten()))
    top = nn.Sequential(OrderedDict(parts))
    model = Capped(backbone, top, last=f"classifier.{last}", stats=by.stats)
    model.published = dict(HEADS)
    return model


def _need_whole(pretrained: bool, got: object, wanted: object) -> None:
    need(
        not pretrained or got == wanted,
        f"expected the published shape {wanted} with pretrained weights, got {got}; set "
        "pretrained: false",
    )
