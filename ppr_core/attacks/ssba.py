"""SSBA: the same hidden message in every poisoned image, a different residual in each."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppr_core.attacks.base import Attack, State
from ppr_core.attacks.parts.steganography import (
    PLANS,
    Decoder,
    Encoder,
    Plan,
    bit_accuracy,
    common_share,
)
from ppr_core.config import Field
from ppr_core.data.images import ImageSet, to_float
from ppr_core.data.splits import hold_out
from ppr_core.errors import need
from ppr_core.method import fork
from ppr_core.metrics import psnr
from ppr_core.runtime import seed_of, seeded
from ppr_core.training.fit import Schedule, fit
from ppr_core.weights import under

BATCH = 512  # images encoded at once

# With these and the default knobs, held out: 100 % of bits, 30.8 dB, common share 0.08.
FAST = Schedule(
    steps=850, batch_size=64, optimizer="adam", lr=1e-3, crop=0, flip=False, drop_last=True
)
STEGASTAMP = Schedule(
    epochs=20, batch_size=64, optimizer="adam", lr=1e-4, crop=0, flip=False, drop_last=True
)


class Ssba(Attack):
    """Hide one fixed bit string in each image with an encoder trained on the training images.

    Differs from the authors' code: it reads precomputed images; here the encoder is trained by the
    study. The `fast` variant is small, bounds the distortion by a hinge, and penalises a residual
    that all images share; `stegastamp` is the published architecture, loss and schedule.
    """

    source: ClassVar[str] = "Li et al. 2021, arXiv:2012.03816; Min et al. 2024, sec. B.2"
    trains_stamp: ClassVar[bool] = True

    variant: Literal["fast", "stegastamp"] = Field("fast", description="encoder and its training")
    distortion: float = Field(
        1e-3, ge=0, description="mean squared error left unpunished, pixels in [0, 1] (fast)"
    )
    common_share: float = Field(
        0.2, ge=0, le=1, description="unpunished share of residual energy common to images (fast)"
    )
    fast: Schedule = Field(FAST, description="of the fast encoder and decoder")
    stegastamp: Schedule = Field(STEGASTAMP, description="of the full encoder and decoder")

    def preparation(self) -> dict[str, Any]:
        """Return the settings of the chosen variant; the poisoning itself has no part in them."""
        knobs = {"distortion", "common_share"} if self.variant == "fast" else set()
        return self.model_dump(mode="json", include={"variant", self.variant} | knobs)

    def prepare(self, data: ImageSet, *, rng: torch.Generator) -> dict[str, Tensor]:
        """Train encoder and decoder, and judge them on training images that they never saw.

        Differs from the authors' code: a tenth of the images, 1000 at most, is held out for that.
        """
        plan = PLANS[self.variant]
        known, unknown = hold_out(data, rng=fork(rng, "held-out"))
        with seeded(seed_of(rng, "init")):
            model = _Pair(plan, data.size, distortion=self.distortion, share=self.common_share)
        model.to(data.device).to(memory_format=torch.channels_last)
        stream = fork(rng, "encoder")  # of the messages too, so that one state says it all
        fit(
            model,
            known,
            getattr(self, self.variant),
            rng=stream,
            loss=lambda images, labels: model.loss(images, stream),
            resume="encoder",
        )
        message = torch.randint(0, 2, (plan.bits,), generator=fork(rng, "message"))
        state = {
            name: tensor.contiguous()
            for name, tensor in model.state_dict().items()
            if name.startswith(("encoder.", "decoder."))
        }
        state["message"] = message.to(torch.uint8)
        return state | self._report(model.decoder, unknown.images, state)

    def stamp(self, images: Tensor, *, stage: str, state: State) -> Tensor:
        """Encode and round to whole grey levels; the same at both stages."""
        need("message" in state, "expected SSBA's prepared state, got none; call prepare first")
        with torch.device("meta"):  # no initial weights are drawn
            encoder = Encoder(PLANS[self.variant])
        weights = under(state, "encoder.").items()
        encoder.load_state_dict({name: t.to(images.device) for name, t in weights}, assign=True)
        encoder.eval()
        message = state["message"].to(images.device, torch.float32)
        with torch.no_grad():
            encoded = [
                # Rounded, as the published images were; other triggers are truncated.
                (encoder(to_float(part), message.expand(len(part), -1)) * 255 + 0.5).byte()
                for part in images.split(BATCH)
            ]
        return torch.cat(encoded)

    def _report(self, decoder: nn.Module, images: Tensor, state: State) -> dict[str, Tensor]:
        """Judge the stamped, rounded images, as the victim's training will see them."""
        before = to_float(images)
        after = to_float(self.stamp(images, stage="test", state=state))
        message = state["message"].to(images.device)
        with torch.no_grad():
            hidden, clean = (
                torch.cat([decoder(part) for part in pixels.split(BATCH)])
                for pixels in (after, before)
            )
        figures = {
            "bit_accuracy": bit_accuracy(hidden, message),
            "clean_bit_accuracy": bit_accuracy(clean, message),
            "psnr": torch.tensor(psnr(255 * before, 255 * after)),
            "common_share": common_share(after - before),
        }
        return {f"report.{name}": value.cpu() for name, value in figures.items()}


class _Pair(nn.Module):
    """Encoder and decoder, trained together."""

    since: Tensor

    def __init__(self, plan: Plan, size: int, *, distortion: float, share: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.plan = Encoder(plan), Decoder(plan, size), plan
        self.distortion, self.share = (distortion, share) if plan.reach else (0.0, 1.0)
        # Steps since the decoder first read 90 % of a batch's bits.
        self.register_buffer("since", torch.zeros(()))

    def loss(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the loss of fresh random messages, one for each group of images."""
        plan, count = self.plan, len(images)
        messages = torch.randint(0, 2, (-(-count // plan.group), plan.bits), generator=rng)
        messages = messages.repeat_interleave(plan.group, 0)[:count].to(images.device).float()
        encoded = self.encoder(images, messages)
        logits = self.decoder(encoded)
        residuals = (encoded - images).contiguous()
        penalty = plan.weight * F.relu(residuals.square().mean() - self.distortion)
        groups = count // plan.group
        if plan.group > 1 and groups:
            grouped = residuals[: groups * plan.group].unflatten(0, (groups, plan.group))
            penalty = penalty + F.relu(common_share(grouped) - self.share).mean()
        self.since += (self.since > 0) | (bit_accuracy(logits, messages) > 0.9)
        ramp = ((self.since - plan.wait) / plan.ramp).clamp(0, 1)
        return F.binary_cross_entropy_with_logits(logits, messages) + ramp * penalty
