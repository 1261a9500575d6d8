"""`ppr scan`: which trigger may a checkpoint know, where nothing but clean images is at hand?"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppr_core.cli.foreign import add_model, file_stats, normalised
from ppr_core.cli.study import need_groups, override, read
from ppr_core.errors import CheckpointError, need

if TYPE_CHECKING:  # late, so that --help imports no torch
    from torch import nn

    from ppr_core.data.images import ImageSet

LARGEST = 1024  # side of images, pixels


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "invert the trigger of a checkpoint from clean images alone, and retune it on that"
    parser = command("scan", _scan, text)
    parser.add_argument("checkpoint", metavar="FILE", help="weights (safetensors, .pt)")
    text = "clean images: one folder a class, images alone, or the name of a data set"
    parser.add_argument("--data", required=True, metavar="FOLDER", help=text)
    parser.add_argument("--size", type=int, help="resize the images to this side, pixels")
    add_model(parser)
    text = "the model's C-Acc, as its maker reports it; 1 point off is an error"
    parser.add_argument("--expect-c-acc", type=float, metavar="PERCENT", help=text)
    text = "folder of pictures and figures (default: FILE_scan)"
    parser.add_argument("--out", metavar="FOLDER", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    override(parser)


def _scan(arguments: argparse.Namespace) -> int:
    """Read, check, search, retune; print, and write when all is done."""
    from ppr_core.config import derive
    from ppr_core.reactivation.scan import Scan
    from ppr_core.reporting import scanned, stand_in
    from ppr_core.runtime import pick_device, set_threads

    values = read(None, arguments.set)
    need_groups(values)
    spec = {**({"name": arguments.model} if arguments.model else {}), **values.pop("model", {})}
    scan, file = Scan.labelled("scan", values), Path(arguments.checkpoint)
    need(file.is_file(), f"expected a file, got {file}", CheckpointError)
    folder = Path(arguments.out or f"{file.with_suffix('')}_scan")
    there = next((part for part in (folder, *folder.parents) if part.exists()), folder)
    need(there.is_dir(), f"expected a folder for pictures and figures, got the file {there}; --out")
    device = pick_device("auto")
    set_threads(device)
    data, known = _images(arguments)
    stats = (arguments.mean, arguments.std)
    model, data = _read(file, spec, stats, data.to(device), known)
    c_acc = _accuracy(model, data, known, arguments.expect_c_acc, file)
    rng = derive(arguments.seed, "scan")
    tune, held = scan.split(data, rng)
    guesses, left_out = scan.guesses(model, tune, rng=rng)
    made = {}
    for guess in guesses:
        made[guess.name] = (guess, scan.stand_in(model, guess, tune, held, rng=rng))
        print("\n".join(scanned.lines(*made[guess.name], data.classes)), flush=True)
    for name, reason in left_out.items():
        print(f"left out  {name}: {reason}")
    print("\n".join(stand_in.told()))
    print("A clean model has a label with the most votes and a smallest patch, too.")
    pictures = {
        guess.name.lower().replace(" ", "_"): scanned.picture(guess, held) for guess in guesses
    }
    about = {"checkpoint": file.name, "images": len(data), "c_acc": c_acc}
    scanned.write(folder, scanned.record(made, left_out, **about), pictures)
    print(f"pictures {folder}")
    return 0


def _images(arguments: argparse.Namespace) -> tuple["ImageSet", bool]:
    """Return the clean images, and whether their labels are known."""
    from ppr_core import data
    from ppr_core.data.folder import read_images

    folder = Path(arguments.data).expanduser()
    size = arguments.size
    need(size is None or 1 <= size <= LARGEST, f"expected --size of 1 to {LARGEST}, got {size}")
    if not folder.is_dir() and (arguments.data in data.DATASETS or ":" in arguments.data):
        need(size is None, f"expected a folder as --data beside --size, got {arguments.data}")
        return data.load(arguments.data).test, True
    return read_images(folder, size)


def _read(
    file: Path,
    spec: dict[str, Any],
    stats: tuple[str | None, str | None],
    data: "ImageSet",
    known: bool,
) -> tuple["nn.Module", "ImageSet"]:
    """Return the model, and the images with its own answers as labels where none are known."""
    from ppr_core.bench import tensors_of, weights_of
    from ppr_core.data.images import ImageSet
    from ppr_core.metrics import logits
    from ppr_core.models import build
    from ppr_core.models.nearest import classes_of
    from ppr_core.models.needs import need_channels

    if not known:
        classes = classes_of(tensors_of(file))
        data = ImageSet(data.images, data.labels, tuple(map(str, range(classes))))
    if not {"name", "model"} & set(spec):
        spec = _found(file, data, known) | spec
    stats = stats if any(stats) else file_stats(str(file))
    model = build(normalised(spec, *stats), data.num_classes, seed=0)
    need_channels(model, data.images)
    model.load_state_dict(weights_of(file, model))
    model.to(data.device).eval()
    if not known:
        data = data.with_labels(logits(model, data.images).argmax(1))
    return model, data


def _found(file: Path, data: "ImageSet", known: bool) -> dict[str, Any]:
    """Return the architecture that a file names, or the one that its weights fit best."""
    from ppr_core.behaviour import alternatives
    from ppr_core.bench import tensors_of
    from ppr_core.checkpoints import is_result, read_head
    from ppr_core.models import MODELS
    from ppr_core.models.nearest import proposal
    from ppr_core.weights import need_finite

    if is_result(file):
        return read_head(file).spec()
    state = tensors_of(file)
    need_finite(state, file)
    fits = alternatives(state, data, file)
    need(
        fits and (known or len(fits) == 1),
        f"expected --model for {file}: it {proposal(MODELS, state)}, and there are "
        f"{f'{data.num_classes} classes' if known else 'no labels to choose by'}",
        CheckpointError,
    )
    print(f"model    {fits[0].name}, by names and shapes", flush=True)
    return fits[0].spec


def _accuracy(
    model: "nn.Module", data: "ImageSet", known: bool, expected: float | None, file: Path
) -> float | None:
    """Return C-Acc; a model that does not know these images is not scanned."""
    from ppr_core.behaviour import need_behaviour
    from ppr_core.metrics import clean_accuracy

    if not known:
        need(
            expected is None,
            "expected images with labels (one folder a class) beside --expect-c-acc, got images "
            "alone; leave it out",
        )
        print("C-Acc    not known: the images have no labels; the model's answers stand for them")
        return None
    found = clean_accuracy(model, data)
    try:
        need_behaviour({"c_acc": found}, data.num_classes, c_acc=expected)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    print(f"C-Acc    {found:.1f} on {len(data)} images, {data.num_classes} classes", flush=True)
    return found
