"""Where the defenses that unlearn a trigger take it from."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Settings
from ppr_core.data.images import ImageSet, to_float, to_uint8
from ppr_core.errors import need

State = Mapping[str, Tensor]
Change = Callable[[Tensor], Tensor]


class TriggerSource(Settings):
    """A way to come by a trigger; a new one is a subclass, handed to a defense as `inversion`."""

    version: ClassVar[int] = 1  # raise it when what it finds changes
    oracle: ClassVar[bool] = False  # it is given the attacker's own stamp
    capturable: ClassVar[bool] = False  # its triggers make no host reads or draws (see `fit`)
    needs: ClassVar[tuple[str, ...]] = ()  # of the model, besides forward and parameters
    later: ClassVar[frozenset[str]] = frozenset()  # settings that the first round does not read

    @property
    def told(self) -> str:
        """What of the trigger, so configured, a defender is told; empty for nothing."""
        return "the attacker's trigger" if self.oracle else ""

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise ConfigError or DataError at once where model or data cannot be served."""

    def preparation(self) -> dict[str, Any] | None:
        """Return the settings that the first round depends on; None: it is not worth saving."""
        settings = self.model_dump(mode="json", exclude=set(self.later))
        return {"trigger_source": type(self).__name__, "version": self.version, **settings}

    def invert(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, state: State
    ) -> dict[str, Tensor]:
        """Look for the trigger of a model, which is left as it is.

        Args:
            model: the model as it is now.
            data: clean images.
            rng: CPU generator of this round.
            state: what the round before returned; empty in the first.

        Returns:
            Tensors by name; one called "stop" ends the defense before it tunes any further.
        """
        raise NotImplementedError(f"{type(self).__name__}.invert")

    def trigger(self, model: nn.Module, state: State, stamp: Change | None) -> Change:
        """Return the function that puts what was found on float pixels (N, C, H, W).

        Args:
            model: the model that is tuned.
            state: what `invert` returned.
            stamp: the attacker's, of uint8 images; only an oracle gets it.
        """
        raise NotImplementedError(f"{type(self).__name__}.trigger")

    def findings(self, state: State) -> dict[str, Any]:
        """Return what is worth a row of a table; doubts go under "warnings"."""
        return {}


class RealTrigger(TriggerSource):
    """The attacker's own trigger: the upper bound of every inversion."""

    oracle: ClassVar[bool] = True

    def preparation(self) -> None:
        """Return None: there is nothing to look for."""

    def invert(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, state: State
    ) -> dict[str, Tensor]:
        """Return nothing: there is nothing to look for."""
        return {}

    def trigger(self, model: nn.Module, state: State, stamp: Change | None) -> Change:
        """Return the stamp, made to take float pixels.

        Raises:
            ConfigError: the stamp was not handed over.
        """
        missing = "expected trigger=, the attacker's stamp, got none; this source is an oracle"
        real = need(stamp, missing)
        return lambda pixels: to_float(real(to_uint8(pixels)))
