"""Backdoor attacks, one file a paper; a new one is registered here and nowhere else."""

from ppr_core.attacks.adaptive_blend import AdaptiveBlend
from ppr_core.attacks.adaptive_patch import AdaptivePatch
from ppr_core.attacks.badnet import BadNet
from ppr_core.attacks.base import Attack, Clean, Poisoned, Trigger
from ppr_core.attacks.blended import Blended
from ppr_core.attacks.blind import Blind
from ppr_core.attacks.bpp import Bpp
from ppr_core.attacks.ftrojan import FTrojan
from ppr_core.attacks.grond import Grond
from ppr_core.attacks.input_aware import InputAware
from ppr_core.attacks.lc import LabelConsistent
from ppr_core.attacks.lf import LowFrequency
from ppr_core.attacks.lira import Lira
from ppr_core.attacks.sbl import Sbl
from ppr_core.attacks.sig import Sig
from ppr_core.attacks.ssba import Ssba
from ppr_core.attacks.trojannn import TrojanNN
from ppr_core.attacks.wanet import WaNet

ATTACKS: dict[str, type[Attack]] = {
    "badnet": BadNet,
    "blended": Blended,
    "ssba": Ssba,
    "lc": LabelConsistent,
    "sig": Sig,
    "lf": LowFrequency,
    "ftrojan": FTrojan,
    "wanet": WaNet,
    "input_aware": InputAware,
    "bpp": Bpp,
    "adaptive_blend": AdaptiveBlend,
    "adaptive_patch": AdaptivePatch,
    "sbl": Sbl,
    "grond": Grond,
    "trojannn": TrojanNN,
    "lira": Lira,
    "blind": Blind,
}

__all__ = ["ATTACKS", "Attack", "Clean", "Poisoned", "Trigger"]
