"""QRA among purified models: every generator against every other one."""

from typing import Any, ClassVar

import torch

from ppr_core.lab.chains import Chains
from ppr_core.lab.graph import Cell, Stage
from ppr_core.lab.measures.base import Measure
from ppr_core.lab.reader import Reader
from ppr_core.method import Result
from ppr_core.reactivation.perturbation import along, transfer
from ppr_core.reactivation.query import generator_of


class Transfer(Measure):
    """Try every QRA perturbation on the other purified models of its attack."""

    source: ClassVar[str] = "Min et al. 2024, arXiv:2410.09838, fig. 3"
    reads: ClassVar[tuple[str, ...]] = ("query",)
    of_attack: ClassVar[bool] = True
    curve: ClassVar[str] = "transfers"

    def parents(self, chains: Chains, cell: Cell, *read: Stage) -> tuple[Stage, ...]:
        """Return the QRA stages; the models are those that they attack."""
        return read

    def measure(self, lab: Reader, stage: Stage) -> Result:
        """Return the P-ASR of every pair at QRA's own budget."""
        place = stage.setting.place
        models = {query.cell.defense: lab.model(query.parents[0]) for query in stage.parents}
        made = {
            query.cell.defense: along(generator_of(lab.result(query).tensors).to(place))
            for query in stage.parents
        }
        eps = stage.parents[0].method.eps
        with torch.no_grad():
            rates = transfer(models, made, lab.stamped_test(stage), eps)
        rows: list[dict[str, Any]] = [
            {"source": source, "target": target, "p_asr": rate}
            for source, found in rates.items()
            for target, rate in found.items()
        ]
        mean = sum(row["p_asr"] for row in rows) / max(1, len(rows))
        return Result(info={"rows": rows}, metrics={"transfer_p_asr": mean})
