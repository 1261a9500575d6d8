"""EP: exact purification, the oracle that knows the trigger."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ppr_core.attacks.base import Trigger
from ppr_core.config import Field
from ppr_core.data.images import ImageSet, to_float, to_uint8
from ppr_core.defenses.base import Defense
from ppr_core.errors import DataError, need
from ppr_core.method import Outcome, fork
from ppr_core.training.fit import Schedule, fit

STAGES = {"test": ("test",), "train": ("train",), "both": ("test", "train")}


class ExactPurification(Defense):
    """Fine-tune on clean images, some of which carry the real trigger and their true labels.

    The paper names neither optimizer, rate and batch size (here those of its retuning attack, with
    a cosine) nor the strength of the trigger (here that of the test images, which ASR measures).
    """

    source: ClassVar[str] = "Min et al. 2024, arXiv:2410.09838, sec. 3.1, B.2"
    privileges: ClassVar[str] = "the real trigger; the target label with exclude_target"

    share: float = Field(0.1, ge=0, le=1, description="triggered images, share of the clean set")
    trigger_stage: Literal["test", "train", "both"] = Field(
        "test", description="strength of the trigger; both: half of the images each"
    )
    redraw: bool = Field(False, description="draw the triggered images anew each epoch")
    exclude_target: bool = Field(False, description="leave images of the target class alone")
    schedule: Schedule = Field(Schedule(epochs=20, lr=0.01, decay="cosine"), description="tuning")

    @property
    def oracle(self) -> bool:
        """Always: no real defender holds the trigger."""
        return True

    def run(
        self, model: nn.Module, data: ImageSet, *, rng: torch.Generator, trigger: Trigger
    ) -> Outcome:
        """Tune all weights; the trigger goes on after crop and flip, where the attack puts it.

        Args:
            model: is changed.
            data: clean images.
            rng: of the triggered images, the shuffles and the crops.
            trigger: the attacker's stamp.

        Raises:
            DataError: fewer images outside the target class than are to be triggered.
        """
        allowed = torch.ones(len(data), dtype=torch.bool)
        if self.exclude_target:
            allowed = (data.labels != trigger.target).cpu()
        count, most = round(self.share * len(data)), int(allowed.sum())
        need(
            count <= most,
            f"expected at most {most} images to trigger, got {count}; lower share",
            DataError,
        )
        stages, shuffles = STAGES[self.trigger_stage], fork(rng, "tune")
        fixed = mark(allowed, count, len(stages), fork(rng, "marks")).to(data.device)

        def marks() -> Tensor:
            if not self.redraw:
                return fixed
            # All shuffles and crops of an epoch are drawn before its first batch, so during an
            # epoch the generator's state stands still: it names the epoch, also after a resume.
            return mark(allowed, count, len(stages), _peek(shuffles)).to(data.device)

        stamp = stamper(data.labels, marks, trigger, stages)
        numbered = data.with_labels(torch.arange(len(data), device=data.device))
        history = fit(model, numbered, self.schedule, rng=shuffles, on_batch=stamp, resume="tune")
        return Outcome(model, history, {"triggered": count})


def mark(allowed: Tensor, count: int, kinds: int, rng: torch.Generator) -> Tensor:
    """Draw `count` of the allowed images; 0 leaves an image alone, 1 to `kinds` name its stamp."""
    order = torch.randperm(len(allowed), generator=rng)
    marks = torch.zeros(len(allowed), dtype=torch.int64)
    marks[order[allowed[order]][:count]] = 1 + torch.arange(count) % kinds
    return marks


def stamper(
    labels: Tensor, marks: Callable[[], Tensor], trigger: Trigger, stages: tuple[str, ...]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a change of batches whose labels are image numbers: stamp marked images, label all."""

    def stamp(images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        kinds = marks()[numbers]
        images = images.clone()
        for kind, stage in enumerate(stages, 1):
            chosen = (kinds == kind).nonzero().squeeze(1)
            if len(chosen):
                images[chosen] = to_float(trigger(to_uint8(images[chosen]), stage=stage))
        return images, labels[numbers]

    return stamp


def _peek(rng: torch.Generator) -> torch.Generator:
    """Return a generator seeded by the state of another, which is left as it is."""
    copy = torch.Generator()
    copy.set_state(rng.get_state())
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=copy)))
