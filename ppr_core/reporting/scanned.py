"""What a scan found, as text, as JSON and as pictures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ppr_core.data.images import ImageSet
from ppr_core.reactivation.scan import Guess, StandIn

SHOWN = 8  # images of a picture
SIDE = 64  # least side of each, pixels


def lines(guess: Guess, stand_in: StandIn, classes: tuple[str, ...]) -> list[str]:
    """Say in a few lines what one inversion found, and what RA does with it."""
    kind = "votes" if guess.name == "BTI-DBF" else "anomaly index"
    scores = ", ".join(
        f"{name} {score:.0f}" if kind == "votes" else f"{name} {score:.1f}"
        for name, score in zip(classes, guess.scores, strict=True)
    )
    label = f"label {guess.label} ({classes[guess.label]})"
    told = [f"{guess.name}: {label}; {kind} by class: {scores}"]
    if kind != "votes":
        told.append(f"  anomaly index {guess.info['anomaly']:.2f} (above 2: a class stands out)")
    told += [f"  doubt: {warning}" for warning in guess.info.get("warnings", [])]
    after = ", ".join(f"{count}: {asr:.1f}" for count, asr in stand_in.counts)
    count = stand_in.wake_count
    woken = f"{count:.3g} poisons" if math.isfinite(count) else "no count that was tried"
    told.append(
        f"  RA with it as a stand-in: ASR {stand_in.asr:.1f} before, by poisons {after or 'none'}; "
        f"half of the images follow at {woken}"
    )
    return told


def record(
    guesses: Mapping[str, tuple[Guess, StandIn]], left_out: Mapping[str, str], **about: Any
) -> str:
    """Return all that a scan found as JSON."""
    found = {
        name: {
            "label": guess.label,
            "scores": guess.scores,
            **guess.info,
            "asr": stand_in.asr,
            "wake_count": stand_in.wake_count if math.isfinite(stand_in.wake_count) else None,
            "counts": stand_in.counts,
        }
        for name, (guess, stand_in) in guesses.items()
    }
    return json.dumps({**about, "found": found, "left_out": dict(left_out)}, indent=1)


def picture(guess: Guess, data: ImageSet) -> Image.Image:
    """Show images without and with a trigger, and how they differ; of a patch also the patch.

    Args:
        guess: the trigger.
        data: clean images; a few of other classes than its label are shown.
    """
    images = data.subset(data.labels != guess.label).spread(SHOWN).images
    marked = guess.stamp(images)
    change = (marked.int() - images.int()).abs()
    rows = [images, marked, (change * 255 // change.max().clamp_min(1)).to(torch.uint8)]
    if "masks" in guess.state:
        mask, pattern = guess.state["masks"][0].cpu(), guess.state["patterns"][0].cpu()
        patch = torch.stack([mask.expand_as(pattern), pattern, mask * pattern])
        blank = torch.zeros_like(images.cpu())
        blank[: len(patch)] = (patch * 255).to(torch.uint8)[: len(blank)]
        rows.append(blank)
    return _sheet([row.cpu() for row in rows])


def write(folder: Path, text: str, pictures: Mapping[str, Image.Image]) -> None:
    """Write what a scan found, when all of it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
    (folder / "scan.json").write_text(text)


def _sheet(rows: list[Tensor]) -> Image.Image:
    """Put rows of images (N, C, H, W) uint8 into one picture."""
    whole = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    pixels = whole.expand(3, -1, -1) if whole.shape[0] == 1 else whole[:3]
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, -(-SIDE // rows[0].shape[-1]))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)
