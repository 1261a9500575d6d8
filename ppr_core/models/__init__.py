"""Classifiers: pixels in [0, 1] in, logits out; normalisation is the first layer."""

from ppr_core.config import from_registry
from ppr_core.models.base import Architecture, Classifier, Network
from ppr_core.models.densenet import DenseNet161
from ppr_core.models.preact import PreActResNet18
from ppr_core.models.resnet import ResNet18, ResNet18ImageNet, ResNet18Pooled, ResNet50
from ppr_core.models.torchvision_nets import ConvNeXtTiny, MobileNetV3Large, Vgg19, VitB16
from ppr_core.models.wrap import wrap

__all__ = ["MODELS", "Architecture", "Classifier", "Network", "build", "wrap"]

MODELS: dict[str, type[Architecture]] = {
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "densenet161": DenseNet161,
    "resnet18_imagenet": ResNet18ImageNet,
    "resnet18_pooled": ResNet18Pooled,
    "preactresnet18": PreActResNet18,
    "vgg19_bn": Vgg19,
    "mobilenet_v3_large": MobileNetV3Large,
    "convnext_tiny": ConvNeXtTiny,
    "vit_b_16": VitB16,
}


def build(spec: str | dict, num_classes: int, *, seed: int) -> Network:
    """Build a fresh classifier from a name or {"name": ..., overrides}.

    A name with a colon, `module:name` or `file.py:name`, is any callable that returns an nn.Module.

    Raises:
        ConfigError: unknown name or setting, or weights that cannot be had.
    """
    return from_registry(MODELS, spec, "model").build(num_classes, seed=seed)
