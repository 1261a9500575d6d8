"""The files that a stage's run keeps: tensors, and JSON with their sha256; checked when read."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from ppr_core.errors import CheckpointError, need
from ppr_core.method import Result
from ppr_core.weights import sha256

FIGURES, TENSORS = "result.json", "tensors.safetensors"
LAYOUT = {"info": dict, "metrics": dict, "history": list, "sha256": str}  # of the JSON


def write(folder: Path, result: Result) -> None:
    """Write a result into a folder.

    Raises:
        OSError: there is no room; SafetensorError says the same of the tensors.
    """
    path = folder / TENSORS
    tensors = {name: t.detach().cpu().contiguous() for name, t in result.tensors.items()}
    safetensors.torch.save_file(tensors, path)
    content: dict[str, Any] = {
        "info": result.info,
        "metrics": result.metrics,
        "history": result.history,
    }
    content["sha256"] = sha256(path)
    (folder / FIGURES).write_text(json.dumps(content, indent=1))


def read(folder: Path, name: str) -> Result:
    """Read a whole result back, its tensors checked against their sha256.

    Args:
        folder: of the files.
        name: of the stage, for errors.

    Raises:
        CheckpointError: files that are missing, damaged, or of another layout.
    """
    content = _content(folder / FIGURES, name)
    path = folder / TENSORS
    try:
        found = sha256(path)
        need(
            found == content["sha256"],
            f"expected sha256 {content['sha256']} of {path}, got {found}; {_mend(name)}",
            CheckpointError,
        )
        tensors = safetensors.torch.load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, error, name) from None
    return _result(content, tensors)


def figures(path: Path, name: str) -> Result:
    """Read a result without its tensors; see `read`."""
    return _result(_content(path, name), {})


def check(folder: Path, name: str) -> None:
    """Raise CheckpointError where files are missing or cut off; their content is left unread."""
    _content(folder / FIGURES, name)
    try:
        with safe_open(folder / TENSORS, "pt"):
            return
    except (OSError, SafetensorError) as error:
        raise _damaged(folder / TENSORS, error, name) from None


def _result(content: dict[str, Any], tensors: dict[str, Any]) -> Result:
    return Result(tensors, content["info"], content["metrics"], content["history"])


def _content(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error, name) from None
    parts = content if isinstance(content, dict) else {}
    odd = [part for part, kind in LAYOUT.items() if not isinstance(parts.get(part), kind)]
    if odd:
        raise _damaged(path, f"nothing usable as {', '.join(odd)}", name)
    return content


def _damaged(path: Path, found: object, name: str) -> CheckpointError:
    told = getattr(found, "strerror", None) or found  # without the path once more
    return CheckpointError(f"expected a stage's result in {path}, got: {told}; {_mend(name)}")


def _mend(name: str) -> str:
    return f"start the study of {name} again: that stage is then computed anew"
