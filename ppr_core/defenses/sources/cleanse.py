"""Neural Cleanse's search for the class that a small patch reaches."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.sources.base import Change, State, TriggerSource
from ppr_core.method import fork
from ppr_core.models.activations import soft_mask
from ppr_core.models.base import clone
from ppr_core.training.fit import Schedule, fit

SEARCH = Schedule(epochs=80, optimizer="adam", lr=0.1, batch_size=256)


class Patch(NamedTuple):
    """A mask (1, H, W) and a pattern (C, H, W), both in (0, 1), and what they achieve.

    Attributes:
        mask: share of the pattern in each pixel.
        pattern: pixels.
        norm: sum of the mask; the number of pixels where no patch turned enough images.
        turned: share of an epoch's images that it turned into the class; 0 where that was not
            enough.
    """

    mask: Tensor
    pattern: Tensor
    norm: float
    turned: float


class Cleanse(TriggerSource):
    """Find, class by class, the smallest patch that turns all images; flag much smaller ones.

    In later rounds only the classes flagged in the first are searched; a patch stays where the
    search fails.
    """

    source: ClassVar[str] = "Wang et al. 2019, IEEE S&P, Neural Cleanse"

    schedule: Schedule = Field(SEARCH, description="search for each class, at the most")
    wanted: float = Field(0.98, ge=0, le=1, description="share of images that a patch must turn")
    weight: float = Field(1e-3, ge=0, description="weight of the mask's norm at first")
    raise_by: float = Field(
        2.0, ge=1, description="its factor after enough epochs that turn as many"
    )
    lower_by: float = Field(2**1.5, ge=1, description="its divisor after enough others")
    patience: int = Field(5, ge=1, description="epochs in a row that are enough")
    stop_patience: int = Field(25, ge=1, description="epochs without gain that end a search")
    gain: float = Field(0.01, ge=0, lt=1, description="least gain in the norm, share of it")
    limit: float = Field(2.0, ge=0, description="anomaly index above which a class is flagged")
    fallback: bool = Field(
        False, description="take the smallest patch where no class is flagged, instead of stopping"
    )

    def invert(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, state: State
    ) -> dict[str, Tensor]:
        """Search a patch for each class, or for those that were flagged before."""
        frozen = clone(model).eval().requires_grad_(False)
        labels = state["flagged"].tolist() if state else range(data.num_classes)
        found = [self.search(frozen, data, c, rng=fork(rng, "class", c)) for c in labels]
        if state:
            both = zip(state["masks"], state["patterns"], strict=True)
            old = (Patch(mask, pattern, 0, 0) for mask, pattern in both)
            kept = [new if new.turned else last for new, last in zip(found, old, strict=True)]
            return {**state, **_stacked(kept)}
        norms = torch.tensor([patch.norm for patch in found])
        flagged = flag(norms, self.limit)
        if not len(flagged) and self.fallback:
            flagged = norms.argmin().view(1)
        if not len(flagged):
            return {"norms": norms, "stop": torch.ones(1)}
        patches = _stacked([found[label] for label in flagged])
        return {"norms": norms, "flagged": flagged, **patches}

    def trigger(self, model: nn.Module, state: State, stamp: Change | None) -> Change:
        """Return the patches as a change of pixels; of several, each goes on its share of images.

        Differs from the authors' code: BackdoorBench puts every flagged patch on the same images.
        """
        device = next(model.parameters()).device
        masks, patterns = state["masks"].to(device), state["patterns"].to(device)

        def patched(pixels: Tensor) -> Tensor:
            which = torch.arange(len(pixels), device=device) % len(masks)
            return put(pixels, masks[which], patterns[which])

        return patched

    def findings(self, state: State) -> dict[str, Any]:
        """Return the anomaly index of the smallest patch and, if any, the classes flagged."""
        found: dict[str, Any] = {"anomaly": float(anomaly(state["norms"].cpu()).max())}
        if "stop" in state:
            doubt = "no class stands out: the model is left as it is"
            return found | {"flagged": [], "warnings": [doubt]}
        flagged = state["flagged"].tolist()
        if found["anomaly"] <= self.limit:
            doubt = "uncertain label: no class stands out, and the smallest patch was taken"
            found["warnings"] = [doubt]
        return found | {"label": flagged[0], "flagged": flagged}

    def search(
        self, frozen: nn.Module, data: ImageSet, label: int, *, rng: torch.Generator
    ) -> Patch:
        """Return the smallest patch met that turns enough images into one class."""
        shape, device = data.images.shape[1:], data.device
        logits = [torch.ones(size, device=device) for size in ((1, *shape[1:]), shape)]
        optimizer = torch.optim.Adam(
            [tensor.requires_grad_() for tensor in logits], self.schedule.lr, betas=(0.5, 0.9)
        )
        pace, hits = _Pace(self), torch.zeros((), device=device)

        def loss(pixels: Tensor, labels: Tensor) -> Tensor:
            shape, pattern = map(soft_mask, logits)
            scores = frozen(put(pixels, shape, pattern))
            hits.add_((scores.argmax(1) == label).sum())
            target = torch.full_like(labels, label)
            return F.cross_entropy(scores, target) + pace.weight * shape.sum()

        hooks: dict[str, Any] = {"loss": loss, "optimizer": optimizer, "parameters": logits}
        now, pattern = (soft_mask(tensor.detach()) for tensor in logits)
        best = Patch(now, pattern, float(shape[1] * shape[2]), 0.0)
        for epoch in self.schedule.epoch_by_epoch(len(data)):
            hits.zero_()
            fit(frozen, data, epoch, rng=rng, train_mode=False, **hooks)
            turned = float(hits) / min(epoch.total_steps(len(data)) * epoch.batch_size, len(data))
            now, pattern = (soft_mask(tensor.detach()) for tensor in logits)
            norm = float(now.sum())
            if turned >= self.wanted and norm < best.norm:
                best = Patch(now, pattern, norm, turned)
            if pace.over(turned, best):
                break
        return best


class _Pace:
    """The weight of the norm, and when to stop: both follow the share of images turned."""

    def __init__(self, settings: Cleanse) -> None:
        self.settings, self.weight = settings, settings.weight
        self.good = self.bad = self.idle = 0
        self.moved: set[str] = set()
        self.least = float("inf")

    def over(self, turned: float, best: Patch) -> bool:
        """Count an epoch by the share of images turned; say whether the search shall end."""
        settings = self.settings
        enough = turned >= settings.wanted
        self.good, self.bad = (self.good + 1, 0) if enough else (0, self.bad + 1)
        if self.good == settings.patience:
            self.good, self.weight = 0, self.weight * settings.raise_by
            self.moved.add("up")
        if self.bad == settings.patience:
            self.bad, self.weight = 0, self.weight / settings.lower_by
            self.moved.add("down")
        if best.turned:
            gained = best.norm < (1 - settings.gain) * self.least
            self.idle = 0 if gained else self.idle + 1
            self.least = min(self.least, best.norm)
        return len(self.moved) == 2 and self.idle >= settings.stop_patience


def put(pixels: Tensor, shape: Tensor, pattern: Tensor) -> Tensor:
    """Blend a pattern into pixels (N, C, H, W), by a mask's share in each."""
    return (1 - shape) * pixels + shape * pattern


def anomaly(norms: Tensor) -> Tensor:
    """Return how far each norm lies below the median, in median absolute deviations."""
    median = norms.quantile(0.5)
    deviation = 1.4826 * (norms - median).abs().quantile(0.5)
    return (median - norms) / deviation.clamp_min(1e-6)


def flag(norms: Tensor, limit: float) -> Tensor:
    """Return the classes whose patch is an anomaly, the smallest patch first."""
    order = norms.argsort()
    return order[anomaly(norms)[order] > limit]


def _stacked(patches: list[Patch]) -> dict[str, Tensor]:
    return {
        "masks": torch.stack([patch.mask for patch in patches]),
        "patterns": torch.stack([patch.pattern for patch in patches]),
    }
