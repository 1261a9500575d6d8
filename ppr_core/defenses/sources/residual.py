"""BTI-DBF's search with a generator that needs no pre-training."""

import torch

from ppr_core.config import Field
from ppr_core.defenses.sources.inversion import Inversion
from ppr_core.defenses.sources.unet import UNet, fresh
from ppr_core.training.fit import Schedule


class ResidualInversion(Inversion):
    """Search with a generator that adds a change to the image, never beyond `norm_bound`.

    Differs from the authors' code: theirs writes the whole image, and is pre-trained to the
    identity until its error leaves room below `norm_bound`; every step beyond it only lowers that
    error. Here each image's change is scaled down to the bound, so that every step searches.

    The search starts at the change that random weights make. It must not start at the identity:
    what it enlarges, the square of the features' move, has no slope there, and just beside it
    only the directions show in which the model is most sensitive, whether a trigger lies in them
    or not.
    """

    pretrain: Schedule = Field(
        Schedule(steps=0, optimizer="adam", lr=1e-3),
        description="generator, to the identity; not needed",
    )
    generate: Schedule = Field(
        Schedule(steps=120, batch_size=32, optimizer="adam", lr=5e-3),
        description="generator, to the trigger",
    )

    def generator(self, channels: int, rng: torch.Generator, device: torch.device) -> UNet:
        """Return the generator with its first weights."""
        # A little below the bound, that rounding may not break it.
        return fresh(self.width, channels, rng, device, bound=0.999 * self.norm_bound)
