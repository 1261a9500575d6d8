"""What a run is marked with, so that it is known who made it: process, machine and commit."""

import functools
import socket
import subprocess

import psutil
import torch

from ppr_core.lab.places import ROOT


def marks() -> dict[str, str]:
    """Return the tags that say which process of which machine computes, how, by which commit."""
    process = psutil.Process()
    return {
        "ppr.host": socket.gethostname(),
        "ppr.process": f"{process.pid}:{process.create_time():.0f}",
        "ppr.threads": str(torch.get_num_threads()),
        "mlflow.source.name": "ppr_core",
        "mlflow.source.git.commit": commit(),
    }


@functools.cache
def commit() -> str:
    """Return the project's git commit, or "unknown" outside a checkout."""
    if not (ROOT / ".git").exists():
        return "unknown"
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a damaged checkout
        return "unknown"


def alive(mark: str) -> bool:
    """Say whether the process "pid:start time" still runs."""
    pid, _, started = mark.partition(":")
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    except (ValueError, psutil.Error):
        return False
