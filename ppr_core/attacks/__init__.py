"""Backdoor attacks, one file a paper; a new one is registered here and nowhere else."""

from ppr_core.attacks.badnet import BadNet
from ppr_core.attacks.base import Attack, Clean, Poisoned, Trigger
from ppr_core.attacks.blended import Blended

ATTACKS: dict[str, type[Attack]] = {
    "badnet": BadNet,
    "blended": Blended,
}

__all__ = ["ATTACKS", "Attack", "Clean", "Poisoned", "Trigger"]
