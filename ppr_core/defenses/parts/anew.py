"""What the defenses share that train a network anew."""

import torch
from torch import Tensor, nn

from ppr_core.data.images import ImageSet, to_float
from ppr_core.defenses.base import Build
from ppr_core.errors import DataError, need
from ppr_core.metrics import EVAL_BATCH, evaluating
from ppr_core.models.base import Classifier
from ppr_core.models.hooks import watching
from ppr_core.runtime import Record, autocast, seed_of
from ppr_core.training.fit import Schedule, fit


def renew(model: nn.Module, build: Build, rng: torch.Generator) -> None:
    """Give a model, in place, the initial weights of an untrained network of its architecture."""
    model.load_state_dict(build(seed_of(rng, "init") % 2**32).state_dict())


def retrain(
    model: nn.Module,
    data: ImageSet,
    flagged: Tensor,
    schedule: Schedule,
    *,
    build: Build,
    rng: torch.Generator,
) -> list[Record]:
    """Train a model from the start on the images that are not flagged.

    Raises:
        DataError: all of them are.
    """
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[flagged.cpu()] = False
    need(bool(kept.any()), "expected images that are not flagged, got none", DataError)
    renew(model, build, rng)
    return fit(model, data.subset(kept), schedule, rng=rng, resume="retrain")


@torch.no_grad()
def penultimate(model: Classifier, data: ImageSet) -> Tensor:
    """Return what the last linear layer is given: (N, D), float32, in eval mode, on the CPU."""
    parts: list[Tensor] = []
    with evaluating(model), autocast(data.device):
        layer = {"": model.linear}
        with watching(layer, lambda _, given, output: parts.append(given.float().cpu())):
            for part in data.images.split(EVAL_BATCH):
                model(to_float(part))
    return torch.cat(parts)
