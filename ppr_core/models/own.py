"""A user's own architecture: any callable that returns an nn.Module."""

import inspect
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import nn

from ppr_core.config import Field, code_digest, from_registry, load_own
from ppr_core.errors import ConfigError, need
from ppr_core.models.base import PIXELS, Architecture, Network, Normalise
from ppr_core.models.pretrained import Statistics, need_stats
from ppr_core.models.wrap import wrap


class Own(Architecture):
    """Call what a user names, and take the nn.Module that it returns."""

    source: ClassVar[str] = "a user's own"

    path: str = Field(description="module:name or file.py:name of a callable")
    arguments: dict[str, Any] = Field({}, description="handed to it by name")
    mean: list[float] | None = Field(
        None, description="of its input, by channel; none: it takes pixels in [0, 1]"
    )
    std: list[float] | None = Field(None, description="spread of its input, by channel")
    size: int | None = Field(None, ge=1, description="side that images are resized to, pixels")
    head: str = Field("", description="name of its last layer, where it is not the last nn.Linear")

    @model_validator(mode="after")
    def _check(self) -> Self:
        need_stats(self.mean, self.std)
        return self

    def make(self, num_classes: int) -> Network:
        """Call it, with num_classes where it takes that, and find features and head."""
        module = self._called(num_classes)
        need(
            isinstance(module, nn.Module),
            f"expected an nn.Module from {self.path}, got {type(module).__name__}",
        )
        stats = (self.mean, self.std) if self.mean and self.std else PIXELS
        return wrap(module, stats=stats, size=self.size, head=self.head, num_classes=num_classes)

    def _called(self, num_classes: int) -> Any:
        """Return what the user's callable returns."""
        call, arguments = load_own(self.path, "model"), dict(self.arguments)
        form = f"expected {self.path} to be a callable that returns an nn.Module"
        need(callable(call), f"{form}, got {call!r}")
        signature = inspect.signature(call)
        kinds = signature.parameters
        if "num_classes" in kinds or any(p.kind is p.VAR_KEYWORD for p in kinds.values()):
            arguments.setdefault("num_classes", num_classes)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise ConfigError(
                f"expected {self.path} to take {sorted(arguments)}, got {error}; give what it "
                "takes besides num_classes as -p model.arguments.NAME=VALUE"
            ) from None
        try:
            return call(**arguments)
        except Exception as error:  # whatever the user's code raises
            bare = torch.get_default_device().type == "meta"
            if bare and isinstance(error, NotImplementedError | RuntimeError):
                raise  # `skeleton` tries again with memory
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ConfigError(f"{form}, got {reason}") from None

    def skeleton(self, num_classes: int) -> Network:
        """Return the classifier without memory, or with it where its code does not allow that."""
        try:
            return super().skeleton(num_classes)
        except (NotImplementedError, RuntimeError):
            return self.build(num_classes, seed=0)

    def own_code(self) -> str | None:
        """Return a digest of the file that the callable comes from."""
        return code_digest(load_own(self.path, "model"))


class Normalised(Statistics):
    """Another architecture with another normalisation: for weights that were trained with it.

    It is named by path, `ppr_core.models.own:Normalised`.
    """

    source: ClassVar[str] = "a user's own"

    model: dict[str, Any] = Field({"name": "resnet18"}, description="architecture and its settings")

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        self.inner()
        return self

    def inner(self) -> Architecture:
        """Return the architecture."""
        from ppr_core.models import MODELS  # late: the registry stands above

        return from_registry(MODELS, self.model, "model")

    def make(self, num_classes: int) -> Network:
        """Build it, and put the first layer in its place."""
        model = self.inner().make(num_classes)
        model.normalise = Normalise(*self.stats)
        return model

    def skeleton(self, num_classes: int) -> Network:
        """Return it without memory for its weights."""
        return self.inner().skeleton(num_classes)

    def own_code(self) -> str | None:
        """Return a digest of the user's code that it runs, if any."""
        return self.inner().own_code()
