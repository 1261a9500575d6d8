"""Backdoor defenses, one file a paper; a new one is registered here and nowhere else."""

from ppr_core.defenses.abl import Abl
from ppr_core.defenses.ac import Ac
from ppr_core.defenses.anp import Anp
from ppr_core.defenses.base import Defense, TrainingDefense
from ppr_core.defenses.bnp import Bnp
from ppr_core.defenses.bti import Bti
from ppr_core.defenses.bti_p import BtiP
from ppr_core.defenses.bti_sam import BtiSam
from ppr_core.defenses.clp import Clp
from ppr_core.defenses.d3 import D3
from ppr_core.defenses.dbd import Dbd
from ppr_core.defenses.dist_reg import DistReg
from ppr_core.defenses.ep import ExactPurification
from ppr_core.defenses.fine_pruning import FinePruning
from ppr_core.defenses.finetune import FeTuning, Ft, FtInit, Lp
from ppr_core.defenses.fst import Fst
from ppr_core.defenses.ft_sam import FtSam
from ppr_core.defenses.ibau import IBau
from ppr_core.defenses.mc_reg import McReg
from ppr_core.defenses.mesa import Mesa
from ppr_core.defenses.nab import Nab
from ppr_core.defenses.nad import Nad
from ppr_core.defenses.neural_cleanse import NeuralCleanse
from ppr_core.defenses.npd import Npd
from ppr_core.defenses.pam import Pam
from ppr_core.defenses.rnp import Rnp
from ppr_core.defenses.sau import Sau
from ppr_core.defenses.ss import Ss
from ppr_core.defenses.tsbd import Tsbd
from ppr_core.defenses.tsc import Tsc
from ppr_core.defenses.weight_distortion import WeightDistortion

DEFENSES: dict[str, type[Defense]] = {
    "ep": ExactPurification,
    "anp": Anp,
    "ibau": IBau,
    "ft": Ft,
    "lp": Lp,
    "ft_init": FtInit,
    "fe_tuning": FeTuning,
    "ft_sam": FtSam,
    "fst": Fst,
    "bti": Bti,
    "bti_p": BtiP,
    "bti_sam": BtiSam,
    "pam": Pam,
    "clp": Clp,
    "bnp": Bnp,
    "rnp": Rnp,
    "fine_pruning": FinePruning,
    "nad": Nad,
    "neural_cleanse": NeuralCleanse,
    "d3": D3,
    "tsbd": Tsbd,
    "mesa": Mesa,
    "sau": Sau,
    "npd": Npd,
    "tsc": Tsc,
    "wd": WeightDistortion,
    "dist_reg": DistReg,
    "mc_reg": McReg,
    "ac": Ac,
    "ss": Ss,
    "abl": Abl,
    "dbd": Dbd,
    "nab": Nab,
}

__all__ = ["DEFENSES", "Defense", "Pam", "TrainingDefense"]
