"""Decoded data sets, each in one tensor file."""

import contextlib
import json
import logging
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppr_core.data.base import Split
from ppr_core.data.images import ImageSet

log = logging.getLogger(__name__)


def read(path: Path) -> Split | None:
    """Return the cached data set; None if there is none, or (with a warning) a damaged one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            classes = tuple(json.loads(file.metadata()["classes"]))
            parts = [
                ImageSet(
                    file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.labels"), classes
                )
                for part in Split._fields
            ]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        log.warning("expected a data set in %s, got %s; it is made again", path, error)
        return None
    return Split(*parts)


def write(path: Path, split: Split) -> None:
    """Write the file whole or not at all; where the folder cannot be written, only warn."""
    tensors: dict[str, Tensor] = {}
    for name, part in split._asdict().items():
        tensors |= {f"{name}.images": part.images, f"{name}.labels": part.labels}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {"classes": json.dumps(split.train.classes)})
        part.chmod(0o644)  # the writer makes it private; a data folder may be shared
        part.replace(path)
    except (SafetensorError, OSError) as error:
        log.warning(
            "expected to cache the data set in %s, got %s; it is used, but will be made again: "
            "make the folder writable, make room, or let PPR_DATA name another",
            path,
            error,
        )
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing lies there
            part.unlink()
