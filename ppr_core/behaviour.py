"""Whether a model that was read from a file does what its maker says."""

from collections.abc import Mapping

from torch import Tensor

from ppr_core.errors import CheckpointError, need
from ppr_core.models import MODELS
from ppr_core.models.nearest import proposal

# How far a model read from a file may be from what its maker reports, percentage points.
TOLERANCE = {"c_acc": 1.0, "asr": 2.0}
ABOVE_CHANCE = 0.25  # of the way from chance to 100 %: below it a model has not learnt its task


def need_behaviour(
    found: Mapping[str, float],
    num_classes: int,
    *,
    c_acc: float | None = None,
    asr: float | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise CheckpointError where a model read from a file does not do what it should.

    Names and shapes of weights do not tell pooling, normalisation, or the order of classes; only
    the answers do.

    Args:
        found: {"c_acc", "asr"}, percent, as measured here; asr may be missing.
        num_classes: of the data.
        c_acc: what its maker reports, percent; none: it must be well above chance.
        asr: likewise; none: anything goes.
        state: its weights, to name the architectures that they fit.
    """
    chance = 100 / num_classes
    least = chance + ABOVE_CHANCE * (100 - chance)
    fits = f"; by names and shapes, the file {proposal(MODELS, state)}" if state else ""
    hint = f"{fits}; check architecture, mean and std, and the order of classes"
    if c_acc is None:
        need(
            found["c_acc"] >= least,
            f"expected a C-Acc of {least:.1f} or more (chance is {chance:.1f}), got "
            f"{found['c_acc']:.1f}{hint}",
            CheckpointError,
        )
    for name, wanted, told in (("c_acc", c_acc, "C-Acc"), ("asr", asr, "ASR")):
        if wanted is not None:
            got, within = found.get(name, float("nan")), TOLERANCE[name]
            need(
                abs(got - wanted) <= within,
                f"expected {told} {wanted:g} within {within:g} points, got {got:.1f}{hint}",
                CheckpointError,
            )
