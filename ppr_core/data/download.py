"""Fetching one file from a list of mirrors: resumed where it broke off, whole or not at all."""

import hashlib
import logging
import shutil
import ssl
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from ppr_core.errors import DataError, need

log = logging.getLogger(__name__)

BLOCK = 1 << 18  # bytes read at once
TIMEOUT_S = 30.0
SLOW_BYTES_S = 250_000  # a mirror below this rate is left for the next one ...
SLOW_AFTER_S = 20.0  # ... after so long
NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class Remote(NamedTuple):
    """A file that several servers hold.

    Attributes:
        name: of the file.
        size: bytes.
        md5: hexadecimal digest of the whole file.
        urls: mirrors, in the order in which they are tried.
    """

    name: str
    size: int
    md5: str
    urls: Sequence[str]


def fetch(remote: Remote, folder: Path) -> Path:
    """Return the path of the file in `folder`, downloading it first if it is not there.

    Half a file is called `.part` until its digest is right; the next call goes on from its end.

    Raises:
        DataError: the file there is damaged, the folder cannot be written, or no mirror served it.
    """
    path = folder / remote.name
    if path.is_file():
        return _verified(path, remote)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            # Another process may have fetched it while this one waited.
            return _verified(path, remote) if path.is_file() else _download(remote, path)
    except OSError as error:
        raise DataError(
            f"expected to write {remote.name} ({remote.size / 1e6:.0f} MB) to {folder}, got "
            f"{error}; make it writable, make room, or let PPR_DATA name another folder"
        ) from None


def _verified(path: Path, remote: Remote) -> Path:
    got = _md5(path)
    need(
        got == remote.md5,
        f"{path}: expected {remote.size} bytes with md5 {remote.md5}, got {path.stat().st_size} "
        f"bytes with md5 {got}: damaged or incomplete; delete it, and it is fetched again",
        DataError,
    )
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _download(remote: Remote, path: Path) -> Path:
    """Try the mirrors in turn; the slow ones again, patiently, when the others have failed."""
    part = path.with_name(f"{path.name}.part")
    if part.is_file() and part.stat().st_size > remote.size:
        part.unlink()
    done = part.stat().st_size if part.is_file() else 0
    free = shutil.disk_usage(path.parent).free
    need(
        free >= remote.size - done,
        f"expected {(remote.size - done) / 1e6:.0f} MB of room for {path}, got {free / 1e6:.0f} "
        "MB; make room, or let PPR_DATA name another folder",
        DataError,
    )
    waiting = [(url, SLOW_BYTES_S) for url in remote.urls]
    failures = []
    while waiting:
        url, least = waiting.pop(0)
        resumed = part.is_file()
        try:
            _receive(url, part, remote, least)
            if (got := _md5(part)) == remote.md5:
                part.replace(path)
                return path
            part.unlink()
            if resumed:  # what it went on from may be at fault: once more, from the start
                waiting.insert(0, (url, least))
            else:
                failures.append(f"{url}: expected md5 {remote.md5}, got {got}")
        except _Slow as error:
            waiting.append((url, 0))
            log.info("%s: %s; trying the next mirror", url, error)
        except NETWORK_ERRORS as error:
            failures.append(f"{url}: {error}")
    raise DataError(
        f"expected to download {remote.name}, got from every mirror:\n  "
        + "\n  ".join(failures)
        + f"\nput the file at {path} by hand (md5 {remote.md5}), or start again: what has "
        "arrived is kept"
    )


class _Slow(Exception):
    """The mirror delivers less than is asked of it."""


def _receive(url: str, part: Path, remote: Remote, least: float) -> None:
    """Append the rest of the file to `part`; go on as long as each connection brings something.

    Raises:
        URLError, HTTPException, OSError: nothing more arrives.
        _Slow: fewer than `least` bytes a second.
    """
    while True:
        before = part.stat().st_size if part.is_file() else 0
        if before == remote.size:
            return
        try:
            _connect(url, part, remote, before, least)
        except NETWORK_ERRORS:
            if not part.is_file() or part.stat().st_size <= before:
                raise


def _connect(url: str, part: Path, remote: Remote, start: int, least: float) -> None:
    """Write what one connection brings, from byte `start` if the server can."""
    headers = {"User-Agent": "ppr-core"} | ({"Range": f"bytes={start}-"} if start else {})
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        if answer.status != 206:
            start = 0  # the whole file comes again
        length = answer.headers.get("Content-Length")
        if length is not None and start + int(length) != remote.size:
            raise HTTPException(f"expected {remote.size} bytes, got {start + int(length)}")
        bar = tqdm(
            desc=remote.name,
            total=remote.size,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None,
        )
        with part.open("ab" if start else "wb") as file, bar:
            clock, received = time.monotonic(), 0
            while block := answer.read(BLOCK):
                file.write(block)
                received += len(block)
                bar.update(len(block))
                seconds = time.monotonic() - clock
                if seconds > SLOW_AFTER_S and received < least * seconds:
                    raise _Slow(f"{received / seconds / 1e3:.0f} kB/s")
    if start + received != remote.size:
        raise ConnectionError(f"expected {remote.size} bytes, got {start + received}")
