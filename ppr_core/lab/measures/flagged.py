"""What a training-stage defense takes for poisoned, scored by what was."""

from typing import ClassVar

import torch

from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import Cell, Stage
from ppr_core.lab.measures.base import Column, Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result


class Flagged(Measure):
    """Count the poisons among the images that a defense flagged, and the others among them.

    Covers, which carry a trigger and their true labels, count as others.
    """

    source: ClassVar[str] = "Tran et al. 2018, arXiv:1811.00636, sec. 4"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("flag_tpr", "tpr", "flagged poisons", better="higher"),
        Column("flag_fpr", "fpr", "flagged others", better="lower"),
        Column("flag_precision", "precision", "poisons of flagged", better="higher", shown=False),
    )

    def takes(self, chains: Chains, cell: Cell) -> bool:
        """Say whether a cell's defense sees the training set."""
        return super().takes(chains, cell) and chains.anew(cell)

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Return true and false positive rates, and the precision; percent."""
        found = lab.result(stage.parents[0]).tensors.get("flagged")
        if found is None:
            return Result()
        flagged, poisoned = torch.zeros(2, len(stage.setting.images.train), dtype=torch.bool)
        flagged[found.cpu()] = poisoned[lab.poison_indices(stage).cpu()] = True
        counts = {
            "tpr": (poisoned & flagged, poisoned),
            "fpr": (~poisoned & flagged, ~poisoned),
            "precision": (poisoned & flagged, flagged),
        }
        rates = {name: (int(hit.sum()), int(of.sum())) for name, (hit, of) in counts.items()}
        return Result(metrics={name: 100 * hit / of for name, (hit, of) in rates.items() if of})
