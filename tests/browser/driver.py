"""Chromium, and the servers that it looks at: shared by the tests and by `make screenshots`."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import psutil

from ppr_core.cli import servers
from ppr_core.cli.servers import free_port
from ppr_core.lab.places import ROOT

TOKEN = "browsertest"
PATIENCE_MS = 120_000  # of one step: kernels import torch, and machines may be busy
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PANELS = ("rho", "epsilon", "t")


def chromium() -> str | None:
    """Return the path of a Chromium, PPR_CHROMIUM first."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = (shutil.which(name) for name in (os.environ.get("PPR_CHROMIUM", ""), *names))
    return next(filter(None, found), None)


def missing() -> str | None:
    """Say why there is no browser to drive, or None."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install playwright"
    if chromium() is None:
        return "no Chromium found: apt-get install chromium, or name one in PPR_CHROMIUM"
    return None


@contextlib.contextmanager
def browser(width=1280, height=1000):
    """Open Chromium; give a page of it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            page = opened.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(PATIENCE_MS)
            yield page
        finally:
            opened.close()


@contextlib.contextmanager
def serving(command, url, folder, **environment):
    """Run a server until it answers at `url`; end it, and all that it started, at the end."""
    log = Path(folder) / f"{Path(command[2]).name}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "BROWSER": "true", **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(process, url, log)
            yield
        finally:
            started = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for left in started:  # a kernel may outlive Voila
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()


def _wait(process, url, log):
    end = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers: a token is asked for
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no answer at {url}: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def lab(notebook, folder):
    """Serve the folder of a notebook in JupyterLab; give the notebook's address."""
    port = free_port(8988)
    settings = Path(folder) / "lab" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    quiet = {"fetchNews": "false"}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={notebook.parent}"]
    own = {"JUPYTERLAB_SETTINGS_DIR": str(Path(folder) / "lab"), "JUPYTER_TOKEN": TOKEN}
    own["JUPYTERLAB_WORKSPACES_DIR"] = str(Path(folder) / "workspaces")
    with serving(command, f"http://127.0.0.1:{port}/api", folder, **own):
        yield f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?token={TOKEN}&reset"


@contextlib.contextmanager
def voila(notebook, folder):
    """Serve a notebook as a dashboard; give its address."""
    port = free_port(8966)
    command = [*servers.voila(notebook, port), "--no-browser", f"--token={TOKEN}"]
    with serving(command, f"http://127.0.0.1:{port}/", folder, **servers.voila_environment()):
        yield f"http://127.0.0.1:{port}/?token={TOKEN}"


@contextlib.contextmanager
def mlflow_ui(folder):
    """Serve the store of PPR_STORE in the MLflow UI; give its address."""
    port = free_port(5080)
    command = [sys.executable, "-m", "ppr_core", "ui", f"--port={port}"]
    with serving(command, f"http://127.0.0.1:{port}/health", folder):
        yield f"http://127.0.0.1:{port}/"


def explorer_notebook(folder, settings=None):
    """Copy the explorer's notebook into a folder, its parameters set."""
    notebook = nbformat.read(ROOT / "notebooks" / "00_explorer.ipynb", as_version=4)
    for cell in notebook.cells:
        if settings and "parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    path = Path(folder) / "00_explorer.ipynb"
    nbformat.write(notebook, path)
    return path


def open_lab(page, address):
    """Open a notebook in JupyterLab, and wait for its kernel."""
    page.goto(address)
    page.locator(".jp-Notebook").wait_for()
    page.locator("#jupyterlab-splash").wait_for(state="detached")
    # The indicator of the notebook says "idle" before there is a kernel; the status bar does not.
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()


def run_all(page):
    """Run all cells, and wait for the panels."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('[data-command="runmenu:run-all"]').click()
    drawn(page)


def drawn(page):
    """Wait until every panel shows what it has to say."""
    for name in PANELS:
        page.locator(f".ppr-{name}-out .widget-html-content p").first.wait_for()


def settled(page, name, before):
    """Wait until a panel says something else than before; return what it says."""
    text = page.locator(f".ppr-{name}-out .widget-html-content").first
    end = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < end:
        now = text.inner_text()
        if now != before:
            return now
        page.wait_for_timeout(20)
    raise AssertionError(f"panel {name} still says: {before}")


def says(page, name):
    """Return what a panel says."""
    return page.locator(f".ppr-{name}-out .widget-html-content").first.inner_text()


def put(page, name, value):
    """Type a value into a slider's readout."""
    page.locator(f".ppr-{name} .widget-readout").click()
    page.keyboard.press("Control+A")
    page.keyboard.type(str(value))
    page.keyboard.press("Enter")


def open_runs(page, experiment):
    """Open an experiment's runs in the MLflow UI, without the assistant beside them."""
    page.goto("about:blank")  # a change of the fragment alone would keep the last view's state
    page.goto(f"{experiment}/runs?workflowType=machine_learning")
    page.get_by_test_id("saved-views-trigger").wait_for()
    assistant = page.locator('button[aria-label="Close"]')
    if assistant.count():
        assistant.first.click()


def open_view(page, name, charts=False):
    """Choose a saved view, as a table or as charts."""
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_text(name, exact=True).click()
    page.get_by_text("viewing a shared view").wait_for()
    if charts:
        page.locator('label:has(input[value="CHART"])').click()
