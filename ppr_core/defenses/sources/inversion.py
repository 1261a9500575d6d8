"""BTI-DBF's trigger inversion: decouple benign features, then move the others."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.config import Field
from ppr_core.data.images import ImageSet
from ppr_core.defenses.sources.base import Change, State, TriggerSource
from ppr_core.defenses.sources.decoupling import (
    BestEpoch,
    Pass,
    decoupled,
    doubts,
    image_error,
    label_loss,
    passed,
    votes,
)
from ppr_core.defenses.sources.unet import MULTIPLE, UNet, fresh, load, load_slots, saved
from ppr_core.errors import need
from ppr_core.method import fork
from ppr_core.models.activations import soft_mask
from ppr_core.models.base import Cut, clone, normalise_of
from ppr_core.training.fit import Schedule, fit, make_optimizer

MEASURED = ("start_error", "norm_share")


class Inversion(TriggerSource):
    """Train a generator that moves the features of a backdoor and leaves the benign ones.

    All of it lives in normalised space; a reversed image may leave the range of pixels.

    Differs from the authors' code: decoupling is counted in optimizer steps (theirs: 20 epochs,
    400 steps at 2500 images), for on a small reserve more of them drive the whole mask to 1; the
    generator works at the images' own size, before a model resizes them.
    """

    source: ClassVar[str] = "Xu et al. 2024, ICLR, OpenReview Tw9wemV6cb (BTI-DBF)"
    needs: ClassVar[tuple[str, ...]] = ("features and head",)
    capturable: ClassVar[bool] = True
    later: ClassVar[frozenset[str]] = frozenset({"regenerate_each_round", "early_stop"})

    width: int = Field(32, ge=1, description="channels of the generator's first level")
    pretrain: Schedule = Field(
        Schedule(epochs=50, optimizer="adam", lr=1e-3), description="generator, to the identity"
    )
    decouple: Schedule = Field(
        Schedule(steps=400, optimizer="adam", lr=0.01), description="mask of benign features"
    )
    generate: Schedule = Field(
        Schedule(epochs=30, optimizer="adam", lr=1e-3), description="generator, to the trigger"
    )
    soft_ce: Literal["reproduce", "kl"] = Field(
        "reproduce",
        description="pretraining's label loss: as in the released code (softmax twice, arguments "
        "swapped), or the divergence that was meant",
    )
    lam_bound: float = Field(0.1, ge=0, description="image MSE at which pretraining's weight drops")
    lam_far: float = Field(100.0, ge=0, description="weight of the image MSE above lam_bound")
    lam_near: float = Field(0.01, ge=0, description="weight of the image MSE below it")
    norm_bound: float = Field(0.3, ge=0, description="image MSE that a trigger may cost")
    feat_bound: float = Field(3.0, ge=0, description="MSE of benign features that it may cost")
    benign_weight: float = Field(0.01, ge=0, description="weight of the MSE of benign features")
    noise: float = Field(0.03, ge=0, description="spread of the noise when images vote on a label")
    clamp_pixels: bool = Field(False, description="clip reversed images to valid pixels")
    use_max_bd_feat: bool = Field(
        False, description="keep the generator of the epoch that moved backdoor features most"
    )
    regenerate_each_round: bool = Field(
        True,
        description="train the generator in every round, as BTI's released code does; off: keep "
        "the first round's, as the released PAM and BTI+SAM do",
    )
    early_stop: bool = Field(False, description="stop when a later round finds another label")

    def check(self, model: nn.Module, data: ImageSet) -> None:
        """Raise ConfigError where generator or mask cannot be built."""
        height, width = data.images.shape[-2:]
        need(
            height % MULTIPLE == 0 and width % MULTIPLE == 0,
            f"expected images whose sides are divisible by {MULTIPLE}, as the generator halves "
            f"them four times, got {height}x{width}; resize the data set",
        )

    def invert(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, state: State
    ) -> dict[str, Tensor]:
        """Decouple, train the generator, and let the images vote for the target label.

        The generator is trained in later rounds as well, as in BTI's own code.

        Differs from the authors' code: that of PAM and BTI+SAM keeps the first round's generator,
        by a leftover switch; turn `regenerate_each_round` off for it.
        """
        frozen: Any = clone(model).eval().requires_grad_(False)
        found = dict(state)
        channels = data.images.shape[1]
        generator = self.generator(channels, fork(rng, "generator"), data.device)
        optimizer = make_optimizer(generator.parameters(), self.generate)
        if state:
            load(generator, state)
            load_slots(optimizer, state)
        else:
            self._pretrain(generator, frozen, data, fork(rng, "pretrain"))
            found["start_error"] = image_error(self.reverse(generator, frozen), frozen, data)
        if not state or self.regenerate_each_round:
            logits = decoupled(frozen, data, self.decouple, rng=fork(rng, "decouple"))
            search = fork(rng, "generate")
            args = (generator, frozen, data, soft_mask(logits), state, optimizer, search)
            found.setdefault("norm_share", self._generate(*args))
            found |= saved(generator, optimizer) | {"mask_logits": logits}
        reverse = self.reverse(generator, model)
        counts = votes(reverse, model, data, noise=self.noise, rng=fork(rng, "vote"))
        if "votes" not in found:  # the first round's: later models no longer obey the trigger
            found |= {"votes": counts, "label": counts.argmax()}
        if self.early_stop and int(counts.argmax()) != int(found["label"]):
            found["stop"] = torch.ones(1)
        return found

    def trigger(self, model: nn.Module, state: State, stamp: Change | None) -> Change:
        """Return the generator as a change of pixels."""
        device, channels = next(model.parameters()).device, len(state["generator.out.bias"])
        generator = self.generator(channels, torch.Generator(), device)
        reverse = self.reverse(load(generator, state), model)
        normalise = normalise_of(model)
        return lambda pixels: normalise.inverse(reverse(normalise(pixels)).float())

    def findings(self, state: State) -> dict[str, Any]:
        """Return what the first round found (label, votes, mask, image errors), and doubts."""
        share = float(state["votes"].max() / state["votes"].sum())
        mean = float(soft_mask(state["mask_logits"]).mean())
        found = {"label": int(state["label"]), "label_votes": share, "mask_mean": mean}
        # Inversions that were saved before these two were measured do not hold them.
        found |= {name: float(state[name]) for name in MEASURED if name in state}
        error, spent = (found.get(name, 0.0) for name in MEASURED)
        told = doubts(share, mean, error, spent, self.norm_bound)
        return found | ({"warnings": told} if told else {})

    def generator(self, channels: int, rng: torch.Generator, device: torch.device) -> UNet:
        """Return the generator with its first weights."""
        return fresh(self.width, channels, rng, device)

    def reverse(self, generator: nn.Module, model: nn.Module) -> Change:
        """Return the generator as a change of normalised images."""
        if not self.clamp_pixels:
            return generator
        normalise = normalise_of(model)
        return lambda images: normalise(normalise.inverse(generator(images)).clamp(0, 1))

    def search_loss(self, batch: Pass, benign: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the generator's loss, how far it moved backdoor features, if the image is too far.

        Args:
            batch: one pass.
            benign: the mask (1, D, h, w) of benign features.
        """
        near = F.mse_loss(batch.reversed, batch.images)
        change = batch.reversed_features - batch.features
        kept, moved = (benign * change).square().mean(), ((1 - benign) * change).square().mean()
        far = near > self.norm_bound
        broken = far | (kept > self.feat_bound)
        # Chosen on the device: to ask which bound is broken would wait for it at every step.
        return torch.where(broken, near, self.benign_weight * kept - moved), moved, far

    def _pretrain(
        self, generator: nn.Module, frozen: Cut, data: ImageSet, rng: torch.Generator
    ) -> None:
        """Train the generator to leave images, features and labels as they are (step 0)."""
        reverse = self.reverse(generator, frozen)

        def loss(pixels: Tensor, labels: Tensor) -> Tensor:
            batch = passed(reverse, frozen, pixels)
            near = F.mse_loss(batch.reversed, batch.images)
            weight = torch.where(near > self.lam_bound, self.lam_far, self.lam_near)
            moved = F.mse_loss(batch.reversed_features, batch.features)
            before, after = frozen.head(batch.features), frozen.head(batch.reversed_features)
            label = label_loss(before.float(), after.float(), double=self.soft_ce == "reproduce")
            return label + moved + weight * near

        fit(generator, data, self.pretrain, rng=rng, loss=loss, capturable=True, resume="pretrain")

    def _generate(
        self,
        generator: nn.Module,
        frozen: Cut,
        data: ImageSet,
        benign: Tensor,
        state: State,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Tensor:
        """Train the generator to move what is not benign (step 2).

        Returns:
            The share of the steps that only lowered the image error, for it was above its bound.
        """
        reverse = self.reverse(generator, frozen)
        best = BestEpoch(generator, self.generate.epoch_steps(len(data)))
        spent = torch.zeros((), device=data.device)

        def loss(pixels: Tensor, labels: Tensor) -> Tensor:
            batch = passed(reverse, frozen, pixels)
            value, moved, far = self.search_loss(batch, benign)
            best.add(moved)
            spent.add_(far)
            if "label" in state:  # known from the first round on
                label = state["label"].to(labels.device).expand_as(labels)
                value = value + F.cross_entropy(frozen.head(batch.reversed_features), label)
            return value

        compare = best.after_step if self.use_max_bd_feat else None
        hooks: dict[str, Any] = {"loss": loss, "optimizer": optimizer, "after_step": compare}
        hooks |= {"capturable": True, "writes": [best.total, spent]}
        hooks["resume"] = "" if self.use_max_bd_feat else "generate"  # its weights lie elsewhere
        fit(generator, data, self.generate, rng=rng, **hooks)
        if best.weights:
            generator.load_state_dict(best.weights)
        return spent / max(1, self.generate.total_steps(len(data)))
