"""Classifiers: pixels in [0, 1] in, logits out; normalisation is the first layer."""

from ppr_core.config import from_registry
from ppr_core.models.base import Architecture, Classifier
from ppr_core.models.densenet import DenseNet161
from ppr_core.models.resnet import ResNet18, ResNet18ImageNet, ResNet50

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
