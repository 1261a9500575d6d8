"""ImageNet weights, and the statistics that a study may normalise by."""

from typing import Any, Self

import torch
from pydantic import model_validator

from ppr_core.config import Field
from ppr_core.errors import ConfigError, need
from ppr_core.models.base import CIFAR_STATS, Architecture, Stats


class Statistics(Architecture):
    """An architecture whose normalisation is a setting, for models that others trained."""

    mean: list[float] = Field(list(CIFAR_STATS[0]), description="of the input, by channel")
    std: list[float] = Field(list(CIFAR_STATS[1]), description="spread of the input, by channel")

    @model_validator(mode="after")
    def _check_stats(self) -> Self:
        need_stats(self.mean, self.std)
        return self

    @property
    def stats(self) -> Stats:
        """Mean and spread."""
        return self.mean, self.std


def need_stats(mean: list[float] | None, std: list[float] | None) -> None:
    """Raise ConfigError unless mean and spread fit each other."""
    need(
        len(mean or []) == len(std or []) and all(value > 0 for value in std or []),
        f"expected mean and std of one length, std above 0, got {mean} and {std}",
    )


def imagenet(weights: str, name: str) -> Any:
    """Return torchvision's ImageNet weights (its first edition), once they can be had.

    Args:
        weights: torchvision's class of them.
        name: of the architecture here, for the message.

    Raises:
        ConfigError: they cannot be had.
    """
    from torchvision import models as zoo

    found = getattr(zoo, weights).IMAGENET1K_V1
    try:
        found.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"expected ImageNet weights from {found.url}, got: {error}; put that file into "
            f"{torch.hub.get_dir()}/checkpoints, or train from scratch with "
            f"model: {{name: {name}, pretrained: false}}"
        ) from None
    return found
