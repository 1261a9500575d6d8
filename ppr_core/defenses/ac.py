"""AC: activation clustering, then training anew without the odd cluster."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.base import Build, TrainingDefense
from ppr_core.defenses.parts.anew import penultimate, retrain
from ppr_core.defenses.parts.clusters import reduced, silhouette, two_means
from ppr_core.method import Outcome, fork
from ppr_core.models.base import Classifier
from ppr_core.training.fit import VICTIM, Schedule

FEWEST = 20  # images of a class from which it is clustered


class Ac(TrainingDefense):
    """Split each class's features in two, flag a part that looks odd, and train without it.

    The features are those before the last linear layer, of the images as they are.

    Differs from the paper: the network is trained anew without the flagged images; the paper also
    relabels them and trains on.

    Differs from the authors' code: BackdoorBench clusters the first coordinates of each batch by
    itself, and looks flagged images up in another order, so that what it removes is next to random;
    here a class is clustered as a whole, in its principal components.
    """

    source: ClassVar[str] = "Chen et al. 2018, arXiv:1811.03728, sec. 4 and 5"
    needs: ClassVar[tuple[str, ...]] = ("linear",)

    reduction: Literal["pca", "ica"] = Field("pca", description="components that are clustered")
    dims: int = Field(10, ge=1, description="components")
    rule: Literal["relative_size", "smaller", "silhouette", "distance"] = Field(
        "relative_size",
        description="flag the smaller part: below `share`; always; below `share` where the split "
        "is clear; or flag a part whose centre is nearer to another class's",
    )
    share: float = Field(0.35, gt=0, le=0.5, description="of a class, below which a part is small")
    clear: float = Field(0.1, ge=-1, le=1, description="silhouette from which a split is clear")
    training: Schedule = Field(VICTIM, description="of the new network; a study's own by default")

    def run(
        self, model: Classifier, data: ImageSet, *, rng: torch.Generator, build: Build
    ) -> Outcome:
        """Flag, then train anew."""
        flagged = self.flag(penultimate(model, data), data.labels.cpu(), fork(rng, "cluster"))
        train = fork(rng, "train")
        history = retrain(model, data, flagged, self.training, build=build, rng=train)
        return Outcome(model, history, {"flagged": len(flagged)}, {"flagged": flagged})

    def flag(self, features: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Return the indices of the images that stand out of their classes, sorted.

        Args:
            features: (N, D).
            labels: as given.
            rng: of the clusters' first centres.
        """
        present = labels.unique()
        centres = torch.stack([features[labels == label].mean(0) for label in present])
        found = [torch.empty(0, dtype=torch.int64)]
        for number, label in enumerate(present.tolist()):
            own = (labels == label).nonzero().squeeze(1)
            points = reduced(features[own], self.dims, self.reduction, fork(rng, "ica", label))
            if len(own) < FEWEST or not points.numel():
                continue  # too few, or all alike
            cluster = two_means(points, fork(rng, "split", label))
            odd = self.odd(points, cluster, features[own], centres, number)
            found += [own[cluster == part] for part in odd]
        return torch.cat(found).sort().values

    def odd(
        self, points: Tensor, cluster: Tensor, features: Tensor, centres: Tensor, own: int
    ) -> list[int]:
        """Return which of a class's two clusters are flagged."""
        sizes = cluster.bincount(minlength=2)
        if self.rule == "distance":
            means = [features[cluster == part].mean(0, keepdim=True) for part in (0, 1)]
            nearest = [int(torch.cdist(mean, centres).argmin()) for mean in means]
            return [part for part in (0, 1) if sizes[part] and nearest[part] != own]
        smaller = int(sizes.argmin())
        small = float(sizes[smaller]) < self.share * len(cluster)
        if self.rule == "silhouette":
            small = small and silhouette(points, cluster) > self.clear
        return [smaller] if small or self.rule == "smaller" else []
