"""Notebooks, executed with a study's settings, each under a run; the only papermill user."""

import ast
import functools
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from ppr_core.config import digest
from ppr_core.errors import ConfigError
from ppr_core.lab.places import PACKAGE, ROOT, environment
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store

FOLDER = ROOT / "notebooks"
AT_ONCE = 4  # kernels at a time: each is a process of half a GB


def find(name: str) -> Path:
    """Return the path of a notebook given by path or by name.

    Raises:
        ConfigError: no such notebook; the known ones are listed.
    """
    for path in (Path(name), FOLDER / name, FOLDER / f"{name}.ipynb"):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    names = ", ".join(path.stem for path in sorted(FOLDER.glob("*.ipynb")))
    raise ConfigError(f"expected a notebook, got {name!r}; known: {names}")


def declared(notebook: Path) -> dict[str, Any]:
    """Return the names and literal defaults of a notebook's parameters cell."""
    import nbformat

    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            nodes = ast.parse(cell.source).body
            return {node.target.id: ast.literal_eval(node.value) for node in nodes}
    raise ConfigError(f"expected a cell tagged 'parameters' in {notebook}, got none")


@functools.cache
def code() -> str:
    """Return a digest of the package: with other code a notebook may say something else."""
    files = sorted(PACKAGE.rglob("*.py"))
    return digest([path.read_text() for path in files])


def execute_all(notebooks: list[Path], plan: Plan, store: Store) -> int:
    """Execute the notebooks of a study that has just been computed, several at once.

    Returns:
        How many failed.
    """
    if not notebooks:
        return 0
    count = min(len(notebooks), os.cpu_count() or 1, AT_ONCE)
    with ThreadPoolExecutor(count) as pool:
        try:
            return sum(pool.map(lambda path: execute(path, plan, store, computed=True), notebooks))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for kernel in psutil.Process().children(recursive=True):
                kernel.kill()
            raise


def execute(notebook: Path, plan: Plan, store: Store, *, computed: bool = False) -> int:
    """Execute a notebook with a study's settings, unless the store has that by the same code.

    Args:
        notebook: path of the notebook.
        plan: the study.
        store: where the run, and the executed copy as its artifact, are kept.
        computed: whether the notebook finds all that can be computed, and need not try again.

    Returns:
        0, or 1 where a cell failed; the executed copy is kept in both cases.
    """
    asked, known = plan.study.model_dump(exclude_unset=True), declared(notebook)
    settings = {key: value for key, value in asked.items() if key in known}
    settings["overrides"] = {key: value for key, value in asked.items() if key not in known}
    parts = [code(), notebook.read_text(), settings]
    key = digest([*parts, [stage.key for stage in plan.stages()]])
    if store.find(key):
        print(f"notebook {notebook.stem}: executed before, nothing has changed", flush=True)
        return 0
    tags = {"kind": "notebook", "settings": plan.mark}
    run_id = store.start(
        plan.study.name,
        notebook.stem,
        tags={**tags, "notebook": notebook.stem, "key": key},
        params={name: value for name, value in settings.items() if name != "name"},
        note=_note(notebook),
    )
    print(f"notebook {notebook.stem} ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / notebook.name
        error = _execute(notebook, copy, settings, run_id, computed)
        if copy.exists():
            store.attach(run_id, copy)
            store.attach(run_id, _page(copy))
    store.finish(run_id, "FAILED" if error else "FINISHED")
    if error:
        print(f"notebook {notebook.stem} failed in {error}", file=sys.stderr)
    return 1 if error else 0


def _note(notebook: Path) -> str:
    """Return what the page of a notebook's run says: its question, and where its answer lies."""
    import nbformat

    from ppr_core.lab import pages

    return (
        f"{pages.title(nbformat.read(notebook, as_version=4))}\n\nThe executed copy is among the "
        "artifacts, as a notebook and as a page that needs no network, with its figures and tables."
    )


def _page(notebook: Path) -> Path:
    """Write an executed notebook as an HTML page beside it, which the MLflow UI shows."""
    from ppr_core.lab import pages

    path = notebook.with_suffix(".html")
    path.write_text(pages.page(notebook))
    return path


def _execute(
    notebook: Path, copy: Path, settings: dict[str, Any], run_id: str, computed: bool
) -> str:
    """Execute into a copy; return what went wrong, or an empty text."""
    import papermill
    from jupyter_client.manager import AsyncKernelManager
    from papermill.exceptions import PapermillExecutionError

    class Manager(AsyncKernelManager):
        """Talks over files, not TCP ports, so that executions cannot collide.

        The kernel is told its folder and its run here: papermill would move this whole process.
        """

        transport = "tcp" if os.name == "nt" else "ipc"  # Windows has no such files
        ip = str(copy.with_name("kernel"))

        # Its parent has made this one a coroutine, too, in a way that types do not tell.
        async def start_kernel(self, **named: Any) -> None:  # type: ignore[override]
            told = {"PPR_RUN": run_id} | ({"PPR_COMPUTED": "1"} if computed else {})
            named |= {"cwd": str(ROOT), "env": {**environment(), **told}}
            with open(log, "wb") as out:  # a kernel has its say at its end, too
                await super().start_kernel(**named, stdout=out, stderr=out)

    log = copy.with_suffix(".log")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(copy),
            settings,
            kernel_name="python3",
            kernel_manager_class=Manager,
            progress_bar=False,
        )
    except PapermillExecutionError as failure:
        return f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
    except (RuntimeError, OSError) as failure:  # a kernel that died or never started
        said = log.read_text(errors="replace").strip() if log.exists() else ""
        return f"{type(failure).__name__}: {failure}; {said[-500:]}"
    return ""
