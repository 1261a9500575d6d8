"""What the attacks of a study look like: their images, and how strong and visible they are."""

import pandas as pd
import torch
from torch import Tensor

from ppr_core.lab.graph import CLEAN, NO_DEFENSE, Cell
from ppr_core.lab.plan import Plan
from ppr_core.lab.reader import Reader
from ppr_core.metrics import psnr


def table(plan: Plan, lab: Reader, seed: int) -> pd.DataFrame:
    """Return one row an attack: how strong, how visible, how often, and the clean control."""
    rows = []
    for attack in plan.attacks:
        cell = Cell(attack, CLEAN, seed)
        stage = plan.backdoored(cell)
        result, trigger = lab.result(stage), lab.trigger(stage)
        test = plan.images.test
        control = lab.store.find(plan.last(cell).key)
        rows.append(
            {
                "attack": attack,
                "poisoned": result.info["poisoned"],
                "psnr_train_db": psnr(test.images, trigger(test.images, stage="train")),
                "psnr_test_db": psnr(test.images, trigger(test.images)),
                "c_acc": result.metrics["c_acc"],
                "asr": result.metrics["asr"],
                "clean_model_asr": control.data.metrics["o_asr"] if control else None,
                "seconds": result.metrics["seconds"],
            }
        )
    return pd.DataFrame(rows)


def examples(
    plan: Plan, lab: Reader, seed: int, count: int = 8
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return test images, and for each attack the same images at training and test strength."""
    images = plan.images.test.images
    images = images[torch.linspace(0, len(images) - 1, count).long()]
    made = {}
    for attack in plan.attacks:
        trigger = lab.trigger(plan.backdoored(Cell(attack, NO_DEFENSE, seed)))
        made[attack] = (trigger(images, stage="train"), trigger(images))
    return images, made
