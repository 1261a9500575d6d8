"""The SQLite file of a local store: made whole or not at all, mended, and moved with its folder."""

import atexit
import functools
import os
import re
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException

from ppr_core.errors import StoreError, need

BUSY_S = 20.0  # how long to wait for another process's lock on the database
UNUSABLE = "%?#"  # in a path: a database URI reads them as something else


def prepare(folder: Path) -> str:
    """Have a usable database in a folder: make one, mend a half-made one, follow a moved one.

    First-time processes would race in MLflow's migrations, so one at a time comes in; and a
    database is made under another name and renamed, so that one killed on the way leaves none.

    Returns:
        Its URI; that of a copy for reading, where the folder cannot be written.

    Raises:
        StoreError: there is no database, and none can be made.
    """
    odd = sorted({character for character in str(folder) if character in UNUSABLE})
    need(
        not odd,
        f"expected a store path without {' '.join(UNUSABLE)}, got {folder}; name another folder "
        "in PPR_STORE",
        StoreError,
    )
    path = folder / "mlflow.db"
    try:
        effective = os.access in os.supports_effective_ids
        if path.exists() and not os.access(folder, os.W_OK, effective_ids=effective):
            copy = Path(tempfile.mkdtemp(prefix="ppr-store-"))
            atexit.register(shutil.rmtree, copy, ignore_errors=True)
            # SQLite would write beside the original even to read it; its last writes may still
            # stand in the write-ahead log.
            for part in folder.glob("mlflow.db*"):
                shutil.copyfile(part, copy / part.name)
            _need_same_schema(copy / path.name, path)
            _relocate(copy / path.name, folder / "artifacts")
            return f"sqlite:///{copy}/mlflow.db"
        if path.exists():
            _need_same_schema(path, path)
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if path.exists() and _half_made(path):
                path.rename(folder / f"mlflow.db.half-made-{time.time():.0f}")
            if not path.exists():
                _make(path)
            _relocate(path, folder / "artifacts")
    except (OSError, sqlite3.Error, MlflowException) as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(
            f"expected a writable MLflow store in {folder}, got: {reason}; free or move that "
            "folder, or name another one in PPR_STORE"
        ) from None
    return f"sqlite:///{path}"


def _make(path: Path) -> None:
    part = path.with_name("mlflow.db.part")
    for rest in path.parent.glob(f"{part.name}*"):  # of a start that was killed
        rest.unlink()
    mlflow.MlflowClient(f"sqlite:///{part}").search_experiments(max_results=1)
    part.rename(path)
    with closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA journal_mode=WAL")


def _need_same_schema(file: Path, path: Path) -> None:
    """Raise StoreError for the database of another MLflow version, before anything touches it.

    MLflow itself would migrate some older ones in place, and calls newer ones out of date.

    Args:
        file: that is looked at.
        path: of the database that errors name.
    """
    known, newest = _schemas()
    with closing(sqlite3.connect(file, timeout=BUSY_S)) as base:
        names = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
        rows: list[tuple[str]] = []
        if "alembic_version" in names:
            rows = base.execute("SELECT version_num FROM alembic_version").fetchall()
    found = {version for (version,) in rows}
    older = found <= known
    mend = (
        f"keep a copy of that file and run `python -m mlflow db upgrade sqlite:///{path}`"
        if older
        else "install that MLflow version"
    )
    need(
        not found or not newest or found == {newest},
        f"expected a database of MLflow {mlflow.__version__} in {path}, got one of "
        f"{'an older' if older else 'a newer'} version (schema {', '.join(sorted(found))}, not "
        f"{newest}); {mend}, or name another store in PPR_STORE",
        StoreError,
    )


@functools.cache
def _schemas() -> tuple[set[str], str]:
    """Return the schemas that the installed MLflow knows, and its newest, "" if that is unclear.

    As its migrations name them; Alembic, which imports them all, takes two seconds for it.
    """
    folder = Path(str(mlflow.__file__)).parent / "store" / "db_migrations" / "versions"
    texts = [file.read_text(encoding="utf-8") for file in folder.glob("*.py")]
    named = [dict(re.findall(r'^(\w*revision) = "(\w+)"', text, re.MULTILINE)) for text in texts]
    known = {one["revision"] for one in named if "revision" in one}
    heads = known - {one.get("down_revision", "") for one in named}
    return known, heads.pop() if len(heads) == 1 else ""


def _half_made(path: Path) -> bool:
    """Say whether MLflow's migrations were cut off before the first run was kept."""
    with closing(sqlite3.connect(path, timeout=BUSY_S)) as base:
        names = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
        done = "alembic_version" in names and base.execute(
            "SELECT count(*) FROM alembic_version"
        ).fetchone() != (0,)
        cut = not done or any(name.startswith("_alembic_tmp_") for name in names)
        used = "runs" in names and base.execute("SELECT count(*) FROM runs").fetchone() != (0,)
    return cut and not used


def _relocate(database: Path, artifacts: Path) -> None:
    """Point a moved or copied store's absolute artifact paths at where it lies now."""
    columns = [
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
    ]
    with closing(sqlite3.connect(database, timeout=BUSY_S)) as base, base:
        rows = base.execute("SELECT artifact_location FROM experiments").fetchall()
        # An experiment's artifacts lie in <store>/artifacts/<experiment>.
        places = {Path(place).parent for (place,) in rows if place and place.startswith("/")}
        for old in sorted(str(place) for place in places if place.name == "artifacts"):
            if old == str(artifacts):
                continue
            for table, column in columns:
                base.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ? || '/'",
                    (str(artifacts), len(old) + 1, len(old) + 1, old),
                )
