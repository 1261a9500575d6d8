"""Backdoor defenses, one file a paper; a new one is registered here and nowhere else."""

from ppr_core.defenses.base import Defense

DEFENSES: dict[str, type[Defense]] = {}

__all__ = ["DEFENSES", "Defense"]
