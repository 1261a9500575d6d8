"""`ppr ui`, `ppr lab` and `ppr dashboard`: servers on 127.0.0.1."""

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ppr_core.errors import ConfigError, need
from ppr_core.lab.places import PACKAGE, ROOT, environment

GRACE_S = 5  # that a server has to end by itself
IDLE_S = 1800  # after which a dashboard's kernel, of a GB, ends
# What a dashboard's pages may load: nothing of other hosts.
OWN_HOST = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'self'"
)


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the commands."""
    for name, run, port, text in (
        ("ui", _ui, 5000, "open the MLflow UI on 127.0.0.1"),
        ("lab", _lab, 8888, "open JupyterLab on 127.0.0.1"),
        ("dashboard", _dashboard, 8866, "open the explorer as a web page (Voila) on 127.0.0.1"),
    ):
        command(name, run, text).add_argument("--port", type=int, default=port)


def free_port(port: int) -> int:
    """Return this port if it is free on 127.0.0.1, or the next free one."""
    last = 65535
    need(0 < port <= last, f"expected a port from 1 to {last}, got {port}")
    for candidate in range(port, min(port + 99, last) + 1):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", candidate)) != 0:
                return candidate
    raise ConfigError(f"expected a free port from {port} on, got none; use --port")


def serve(command: list[str], variables: Mapping[str, str]) -> int:
    """Run a server until it ends or this process is stopped; leave nothing of it behind."""
    import psutil

    server = psutil.Popen(command, env=dict(variables))
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = [*server.children(recursive=True), server]
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            for process in psutil.wait_procs(started, timeout=GRACE_S)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def _ui(arguments: argparse.Namespace) -> int:
    from ppr_core.lab.store import Store
    from ppr_core.reporting import comparison

    store, port = Store(), free_port(arguments.port)
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = f"http://127.0.0.1:{port}/"
    print(f"MLflow UI on {server}#/experiments?workflowType=machine_learning")
    for study, page in comparison.pages(store).items():
        print(f"  the cells of {study}: {server}{page}")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return serve(command, {**os.environ, **quiet})


def _lab(arguments: argparse.Namespace) -> int:
    port = free_port(arguments.port)
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--ServerApp.root_dir={ROOT}", "--LabApp.default_url=/lab/tree/notebooks"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return serve(command, environment())


def voila(notebook: Path, port: int) -> list[str]:
    """Return the command that serves a notebook as a web page; see `voila_environment`."""
    culling = {"cull_idle_timeout": IDLE_S, "cull_interval": 60, "cull_connected": True}
    command = [sys.executable, "-m", "voila", str(notebook), "--template=ppr"]
    command += ["--Voila.ip=127.0.0.1", f"--port={port}"]
    command += [f"--MappingKernelManager.{name}={value}" for name, value in culling.items()]
    settings = {"headers": {"Content-Security-Policy": OWN_HOST}}
    return [*command, f"--Voila.tornado_settings={settings}"]


def voila_environment() -> dict[str, str]:
    """Return the environment in which Voila finds the template of the explorer's page."""
    folders = [str(PACKAGE / "explorer" / "share"), os.environ.get("JUPYTER_PATH", "")]
    return {**environment(), "JUPYTER_PATH": os.pathsep.join(filter(None, folders))}


def _dashboard(arguments: argparse.Namespace) -> int:
    command = voila(ROOT / "notebooks" / "00_explorer.ipynb", free_port(arguments.port))
    return serve([*command, "--token"], voila_environment())
