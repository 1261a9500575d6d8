"""Path-Aware Minimization (PAM): unlearn a trigger by gradients evaluated toward the backdoor."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ppr_core.config import Field
from ppr_core.data.images import ImageSet, to_float
from ppr_core.defenses.parts.unlearning import Mix, Stepping
from ppr_core.defenses.sources.base import Change, State
from ppr_core.method import Outcome
from ppr_core.metrics import clean_accuracy
from ppr_core.models.base import clone
from ppr_core.runtime import autocast
from ppr_core.sharpness import frozen_statistics
from ppr_core.training.fit import Gradient
from ppr_core.weights import moved, norm, recalibrate, scaled_to


class Pam(Stepping):
    """Evaluate the gradient at a point rho from the current weights toward the backdoored model's.

    The gradient is then applied at the current weights. In every round the backdoored model is the
    one handed in. While the weights are nearer to it than rho, the point lies beyond it.

    Differs from the paper: rate, momentum, rounds and the share of reversed images, which it does
    not give, are the authors' code's; rho is one for all attacks, where the paper sets it for each.
    """

    source: ClassVar[str] = "Min et al. 2024, arXiv:2410.09838, sec. 4.2, Algorithm 1"

    rho: float = Field(0.5, ge=0, description="L2 length of the move back, over all weights")
    clip_to_segment: bool = Field(False, description="never move beyond the backdoored model")
    per_layer_norm: bool = Field(
        False, description="move every tensor by the same length, together by rho"
    )
    bn: Literal["track_probe", "recalibrate", "frozen"] = Field(
        "track_probe",
        description="batch-norm statistics: those met at the moved weights, as in the authors' "
        "code; taken anew on the clean set at the end; or those of the model handed in",
    )

    def hooks(self, model: nn.Module, mix: Mix, rng: torch.Generator) -> dict[str, Any]:
        """Return PAM's gradient."""
        gradient = path_gradient(
            model.parameters(),
            self.rho,
            clip=self.clip_to_segment,
            per_layer=self.per_layer_norm,
            freeze_bn_model=model if self.bn == "frozen" else None,
        )
        return {"on_batch": mix, "gradient": gradient}

    def tune(
        self,
        model: nn.Module,
        data: ImageSet,
        state: State,
        *,
        rng: torch.Generator,
        validation: ImageSet | None,
        trigger: Change | None,
    ) -> Outcome:
        """Tune in rounds, then treat the batch-norm statistics as `bn` says."""
        given: dict[str, Any] = {"rng": rng, "validation": validation, "trigger": trigger}
        outcome = super().tune(model, data, state, **given)
        tracked = outcome.info.get("val_c_acc")
        if self.bn == "frozen" or (self.bn == "track_probe" and tracked is None):
            return outcome
        anew = model if self.bn == "recalibrate" else clone(model)
        recalibrate(anew, lambda: _forward(anew, data, self.tuning.batch_size))
        if validation is not None and tracked is not None:
            accuracy = clean_accuracy(anew, validation)
            outcome.info |= {"val_c_acc_tracked": tracked, "val_c_acc_recalibrated": accuracy}
            outcome.info["val_c_acc"] = accuracy if anew is model else tracked
        return outcome


def path_gradient(
    parameters: Iterable[Tensor],
    rho: float,
    *,
    clip: bool = False,
    per_layer: bool = False,
    freeze_bn_model: nn.Module | None = None,
) -> Gradient:
    """Return PAM's gradient for `fit`: that at a point toward the values the parameters have now.

    It takes one forward and backward pass a step. Buffers are not moved, nor are parameters that do
    not train.

    Args:
        parameters: what is moved, and put back bit for bit; their values now are the goal.
        rho: L2 length of the move.
        clip: see `Pam.clip_to_segment`.
        per_layer: see `Pam.per_layer_norm`.
        freeze_bn_model: a model whose batch-norm statistics shall not be tracked.
    """
    trained = [p for p in parameters if p.requires_grad]
    start = [p.detach().clone() for p in trained]

    def gradient(loss: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            back = torch._foreach_sub(start, trained)
        move = probe(back, rho, clip=clip, per_layer=per_layer)
        with moved(trained, move), frozen_statistics(freeze_bn_model):
            value = loss()
            value.backward()
        return value.detach()

    return gradient


def probe(
    back: Sequence[Tensor], rho: float, *, clip: bool = False, per_layer: bool = False
) -> list[Tensor]:
    """Return the move from the current weights to the point where PAM evaluates the gradient.

    Source: Min et al. 2024, arXiv:2410.09838, Algorithm 1.

    Args:
        back: the way from the weights to the backdoored model's; where it is zero, so is the move.
        rho: L2 length of the move over all tensors.
        clip: move no further than the way is long.
        per_layer: give each tensor rho / sqrt(number of tensors).
    """
    if not per_layer:
        return scaled_to(back, norm(back).clamp(max=rho) if clip else rho)
    lengths = torch.stack(torch._foreach_norm(list(back)))
    share = rho / len(back) ** 0.5
    wanted = lengths.clamp(max=share) if clip else share
    return list(torch._foreach_mul(list(back), list((wanted / (lengths + 1e-12)).unbind())))


def _forward(model: nn.Module, data: ImageSet, batch_size: int) -> None:
    """Send all images through the model, in batches of nearly equal size."""
    with autocast(data.device):
        for part in data.images.chunk(-(-len(data) // batch_size)):
            model(to_float(part))
