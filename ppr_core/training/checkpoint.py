"""Epoch checkpoints: a training that is killed goes on from its last saved epoch."""

import contextlib
import copy
import logging
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppr_core.errors import StoreError, need
from ppr_core.models.base import check_same_shapes
from ppr_core.runtime import Record, current

log = logging.getLogger(__name__)

# What a file that is no checkpoint of this training may raise: of torch, and of what is missing.
UNUSABLE = (
    *(pickle.UnpicklingError, EOFError, OSError, RuntimeError),
    *(AttributeError, IndexError, KeyError, TypeError, ValueError),
)


class Checkpoint:
    """The last finished epoch of a resumable training, in one file that is replaced atomically.

    Raises:
        ConfigError: another training of this session has the same name, so that one would go on
            from where the other one ended.
    """

    interval_s = 2.0  # between two of them; more where one takes long
    share = 0.02  # of the time that they may take

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
        others: Sequence[Tensor | torch.Generator] = (),
    ) -> None:
        now = current()
        self.path = now.checkpoint / f"{name}.pt" if now.checkpoint and name else None
        if self.path:
            need(
                self.path not in now.resumable,
                f"expected a name of its own to resume a training by, got {name!r} a second time "
                "in one session; give each call of fit(..., resume=...) another one",
            )
            now.resumable.add(self.path)
        self.model, self.optimizer, self.rng, self.others = model, optimizer, rng, others
        self.saved, self.wait = time.monotonic(), self.interval_s

    def load(self) -> list[Record]:
        """Restore the last saved epoch, if there is one; return the records so far.

        A file that is damaged, or of another training, is ignored with a warning.
        """
        if self.path is None or not self.path.is_file():
            return []
        before = copy.deepcopy(self._state([]))
        try:  # tensors and plain values only: a pickle that runs code is refused
            history = self._restored(torch.load(self.path, map_location="cpu", weights_only=True))
        except UNUSABLE as error:
            self._restored(before)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning(
                "expected an epoch checkpoint in %s, got %s; the training begins anew",
                self.path,
                reason,
            )
            return []
        log.info("resuming %s after epoch %d", self.path.stem, len(history))
        return history

    def _state(self, history: list[Record]) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "others": [o.detach() if isinstance(o, Tensor) else o.get_state() for o in self.others],
            "history": history,
        }

    def _restored(self, state: Any) -> list[Record]:
        """Put back what `save` has saved; return the records so far."""
        check_same_shapes(state["model"], self.model.state_dict())
        self.model.load_state_dict(state["model"])
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the loaded one lies on the CPU; the schedule sets it anyway
        self.rng.set_state(state["rng"])
        for other, value in zip(self.others, state["others"], strict=True):
            if isinstance(other, Tensor):
                with torch.no_grad():
                    other.copy_(value)
            else:
                other.set_state(value)
        epochs = [record["epoch"] for record in state["history"]]
        need(epochs == [*range(1, len(epochs) + 1)], f"expected epochs from 1 on, got {epochs}")
        return state["history"]

    def save(self, history: list[Record], *, done: bool) -> None:
        """Save this epoch, unless the last save was a moment ago.

        Raises:
            StoreError: there is no room for it; the one before stays.
        """
        if self.path is None or (time.monotonic() - self.saved < self.wait and not done):
            return
        begun = time.monotonic()
        part = Path(f"{self.path}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._state(history), part)
            part.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch raises the latter for a full disk
            with contextlib.suppress(OSError):
                part.unlink()
            raise StoreError(
                f"expected room for an epoch checkpoint in {self.path.parent}, got: "
                f"{str(error).splitlines()[0]}; free some disk and start again (finished stages "
                "are kept, and the last saved epoch of this one)"
            ) from None
        self.saved = time.monotonic()
        self.wait = self.interval_s and max(self.interval_s, (self.saved - begun) / self.share)
