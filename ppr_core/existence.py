"""The backdoor existence coefficient: how much of a backdoor's inner traces a model still has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppr_core.config import Field, Settings
from ppr_core.data.images import to_float
from ppr_core.errors import ConfigError, DataError, need
from ppr_core.metrics import EVAL_BATCH, evaluating
from ppr_core.models.base import convolutions
from ppr_core.models.hooks import watching

Channels = Mapping[str, Tensor]  # layer -> its kept channels, int64


class Existence(Settings):
    """How similar a purified model's trigger-activated channels are to the backdoored model's.

    The channels are those of the backdoored model that a trigger changes most; the similarity is
    linear CKA on triggered images, in eval mode and in fp32; the clean model sets its zero.

    Differs from the authors' code: images are paired by their index, not by equally seeded
    shuffles; every layer has one kept channel at least, for narrow networks; layers in which a
    clean model is as similar as the backdoored one itself are left out of the mean.
    """

    source: ClassVar[str] = "Zhu et al. 2024, arXiv:2405.16134"

    pairs: int = Field(2200, ge=1, description="test images by whose triggers channels are ranked")
    images: int = Field(500, ge=2, description="triggered images that similarities are taken on")
    share: float = Field(0.1, gt=0, le=1, description="of each layer's channels that are kept")
    least: float = Field(
        0.05, ge=0, lt=1, description="layers count where a clean model's similarity is 1 less this"
    )

    def channels(self, model: nn.Module, clean: Tensor, stamped: Tensor) -> dict[str, Tensor]:
        """Return, for each layer of a backdoored model, the channels that a trigger changes most.

        Args:
            model: the backdoored one.
            clean: (N, C, H, W) uint8.
            stamped: the same images with the trigger, in the same order.

        Raises:
            ConfigError: the model has no convolutions behind its first one.
        """
        names = main_branch(model, clean)
        need(
            names,
            f"expected convolutions behind the first one, got a {type(model).__name__} without",
        )
        count = min(self.pairs, len(clean))
        changes = trigger_changes(model, names, clean[:count], stamped[:count])
        return {
            name: change.topk(max(1, int(self.share * len(change)))).indices.sort().values
            for name, change in changes.items()
        }

    def similarities(
        self, victim: nn.Module, model: nn.Module, kept: Channels, stamped: Tensor
    ) -> dict[str, float]:
        """Return the linear CKA of two models' kept channels, layer by layer.

        Args:
            victim: the backdoored model, whose channels these are.
            model: another one of the same layers.
            kept: what `channels` returned.
            stamped: (N, C, H, W) uint8 images with the trigger.
        """
        theirs, ours = (features(one, kept, stamped[: self.images]) for one in (victim, model))
        return {name: cka(theirs[name], ours[name]) for name in kept}

    def coefficient(self, own: Mapping[str, float], clean: Mapping[str, float]) -> "Coefficient":
        """Return the coefficient from a model's similarities and those of a clean one.

        Mean over layers of (S(D) - S(C)) / (1 - S(C)): 1 for the backdoored model, 0 for the
        clean one; a model less similar than the clean one is below 0.
        """
        counted = [name for name, value in clean.items() if 1 - value >= self.least]
        parts = [(own[name] - clean[name]) / (1 - clean[name]) for name in counted]
        return Coefficient(sum(parts) / max(1, len(parts)), len(parts), len(clean) - len(parts))


@dataclass(frozen=True)
class Coefficient:
    """A coefficient, and the layers behind it.

    Attributes:
        value: means nothing where no layer counted.
        layers: that counted.
        left_out: layers in which the clean model is too similar to tell anything.
    """

    value: float
    layers: int
    left_out: int


def min_max(own: str, means: Mapping[str, float]) -> float:
    """Return the coefficient as the authors' code has it: it depends on which models are listed.

    Args:
        own: the model that it is of.
        means: of every model listed, the clean one and all purified ones of an attack, the mean
            similarity over layers.
    """
    low, high = min(means.values()), max(means.values())
    return (means[own] - low) / (high - low) if high > low else 0.0


def cka(first: Tensor, second: Tensor) -> float:
    """Return the linear centred kernel alignment of two sets of features (N, D) and (N, E).

    It is 1 for features that differ by a rotation and one scale, 0 where either does not vary.

    Source: Kornblith et al. 2019, arXiv:1905.00414, sec. 3.
    """
    grams = []
    for one in (first, second):
        centred = (one - one.mean(0)).double()
        grams.append(centred @ centred.T)
    norms = [torch.linalg.matrix_norm(gram) for gram in grams]
    scale = norms[0] * norms[1]
    return float((grams[0] * grams[1]).sum() / scale) if scale > 0 else 0.0


def main_branch(model: nn.Module, images: Tensor) -> list[str]:
    """Return the names of the convolutions that run behind the first one, shortcuts left out."""
    ran: list[str] = []
    layers = dict(convolutions(model))
    _run(model, layers, images[:2], lambda name, output: ran.append(name))
    return list(dict.fromkeys(ran))[1:]


def trigger_changes(
    model: nn.Module, names: Sequence[str], clean: Tensor, stamped: Tensor
) -> dict[str, Tensor]:
    """Return by how much a trigger changes every channel of some layers, before batch norm.

    It is the mean over images of the L2 distance between the channel's maps (TAC).

    Args:
        model: whose layers they are.
        names: of the layers.
        clean: (N, C, H, W) uint8.
        stamped: the same images with the trigger.

    Raises:
        DataError: the two sets are no pairs.
    """
    need(
        clean.shape == stamped.shape and len(clean),
        f"expected as many triggered images as clean ones, got {len(stamped)} and {len(clean)}",
        DataError,
    )
    summed: dict[str, Tensor] = {}

    def add(name: str, output: Tensor) -> None:
        half = len(output) // 2
        changes = (output[:half] - output[half:]).float().flatten(2).norm(dim=2).sum(0)
        summed[name] = summed[name] + changes if name in summed else changes

    size = EVAL_BATCH // 4  # of each kind: two of them are one batch, and maps take memory
    for pair in zip(clean.split(size), stamped.split(size), strict=True):
        _run(model, _named(model, names), torch.cat(pair), add)
    return {name: summed[name] / len(clean) for name in names}


def features(model: nn.Module, kept: Channels, images: Tensor) -> dict[str, Tensor]:
    """Return the maps of kept channels, before batch norm: layer -> (N, D) float32."""
    found: dict[str, list[Tensor]] = {name: [] for name in kept}

    def keep(name: str, output: Tensor) -> None:
        found[name].append(output[:, kept[name].to(output.device)].float().flatten(1))

    for part in images.split(EVAL_BATCH // 2):
        _run(model, _named(model, list(kept)), part, keep)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _named(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return layers by name.

    Raises:
        ConfigError: the model lacks one of them.
    """
    modules = dict(model.named_modules())
    missing = [name for name in names if name not in modules]
    need(
        not missing,
        f"expected the layers of the backdoored model, got one without {missing[:3]}",
        ConfigError,
    )
    return {name: modules[name] for name in names}


@torch.no_grad()
def _run(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    images: Tensor,
    note: Callable[[str, Tensor], None],
) -> None:
    """Pass uint8 images through a model in eval mode, and tell what its layers put out."""
    with evaluating(model), watching(layers, lambda name, given, output: note(name, output)):
        model(to_float(images))
