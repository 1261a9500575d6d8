"""Check the machine: versions, device, store, disk, and whether threads wait passively."""

import argparse
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable

from ppr_core.errors import StoreError
from ppr_core.lab.places import ROOT, results_folder

MINIMUM_DISK_GB = 2


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    command("doctor", _check, "check versions, device, store, disk and threads")


def _check(arguments: argparse.Namespace) -> int:
    """Print one line a check; return 1 if any failed."""
    bad = 0
    for name, good, text in _checks():
        bad += not good
        print(f"{'ok ' if good else 'BAD'}  {name:10s} {text}")
    return 1 if bad else 0


def _checks() -> list[tuple[str, bool, str]]:
    checks = [("python", True, f"{platform.python_version()} on {platform.platform()}")]
    checks += [_versions(), _device(), _threads(), _store(), _disk()]
    return checks


def _versions() -> tuple[str, bool, str]:
    """Compare what is installed with the exact pins."""
    pins = ROOT / "requirements.txt"
    if not pins.is_file():
        return "packages", True, "whatever was installed beside this one (no exact pins here)"
    odd = []
    for line in pins.read_text().splitlines():
        name, pinned, version = line.partition("==")
        if not pinned or name.startswith("#"):
            continue
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "packages", False, f"{name} is missing; run make setup"
        if found != version:
            odd.append(f"{name} {found} (pinned {version})")
    return "packages", True, "as pinned" if not odd else "other versions: " + ", ".join(odd)


def _device() -> tuple[str, bool, str]:
    import torch

    from ppr_core.runtime import cpu_has_bf16

    if torch.cuda.is_available():
        return "device", True, torch.cuda.get_device_name()
    precision = "bf16" if cpu_has_bf16() else "fp32"
    return "device", True, f"CPU, {precision} (no CUDA device)"


def _threads() -> tuple[str, bool, str]:
    from ppr_core.runtime import free_cores, pick_device, rivals, set_threads

    threads, policy = set_threads(pick_device("auto")), os.environ.get("OMP_WAIT_POLICY", "unset")
    told = rivals(threads)
    text = f"{threads} a process, {free_cores()} cores, OMP_WAIT_POLICY={policy}"
    if policy.upper() != "PASSIVE":
        return "threads", False, text + "; set OMP_WAIT_POLICY=PASSIVE: spinning rivals stall"
    return "threads", not told, f"{text}; {told}" if told else text


def _store() -> tuple[str, bool, str]:
    from ppr_core.lab.store import Store

    try:
        store = Store()
    except StoreError as error:
        return "store", False, str(error)
    return "store", True, store.uri


def _disk() -> tuple[str, bool, str]:
    folder = results_folder().parent
    free = shutil.disk_usage(folder).free / 1e9
    return "disk", free > MINIMUM_DISK_GB, f"{free:.0f} GB free in {folder}"
