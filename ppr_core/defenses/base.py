"""What every defense shares: its signature, which is its threat model."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ppr_core.data.images import ImageSet
from ppr_core.method import Method

Build = Callable[[int], nn.Module]  # seed -> an untrained network of the model's architecture


class Defense(Method):
    """Purify a model, given that model and a clean reserve, and nothing else.

    `defense(model, tune, rng=rng)` returns an Outcome. A defense cannot see trigger, target,
    poison indices or test data. Its own `run` is handed the model, which it may change, the clean
    images to tune on, and the rng of everything that it draws. What else it may ask for, by naming
    it keyword-only:

    - `validation`: the held-out part of its own clean reserve, an ImageSet, on which settings are
      chosen; a defense that is to choose one without it raises DataError;
    - `state`: what its own `prepare` returned, which is computed where it is missing.

    An oracle overrides `oracle` to return True, and may then also ask for:

    - `trigger`: the attacker's stamp, a callable on uint8 images;
    - `score`: a function of a model that returns its test {"c_acc", "asr"}; a defense that is to
      choose by test metrics without it raises ConfigError.
    """

    sees: ClassVar[Literal["reserve", "training"]] = "reserve"  # the images that it is handed

    def prepare(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute what several settings of this defense share; saved as a stage of its own."""
        return {}

    def preparation(self) -> dict | None:
        """Return the settings that `prepare` depends on; None: there is nothing to prepare."""
        return None

    def extend(self, model: nn.Module) -> nn.Module:
        """Add to a model, in place, the layers that this defense adds; what it computes stays.

        The weights of a purified model fit a model so extended; a path to it starts from one.
        """
        return model


class TrainingDefense(Defense):
    """Train a network anew on images that may be poisoned, without any that are known to be clean.

    `defense(model, training, rng=rng, build=build)` returns an Outcome. It is handed the backdoored
    model, and the training set that this was trained on with the labels as given: nothing tells
    which of them are the attacker's. Its own `run` names `build` where it trains from the start.

    The network that it returns lies in a basin of its own: a straight path from the backdoored
    model says nothing of it. The indices of the images that it took for poisoned are the tensor
    "flagged" of its Outcome: int64, sorted.
    """

    sees: ClassVar[Literal["reserve", "training"]] = "training"
    privileges: ClassVar[str] = "the poisoned training set, labels as given; no clean images"
