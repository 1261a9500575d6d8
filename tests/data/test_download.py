"""The downloader against a server on this machine: resumed, checked, whole or not at all."""

import hashlib
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ppr_core.data import download
from ppr_core.data.download import Remote, fetch
from ppr_core.errors import DataError

PAYLOAD = bytes(range(256)) * 40
CUT = 3000


class Handler(BaseHTTPRequestHandler):
    """Serve PAYLOAD; the path says how badly."""

    def do_GET(self):
        how = self.path.strip("/")
        asked = self.headers.get("Range")
        self.server.log.append((how, asked))
        if how == "gone":
            self.send_error(404)
            return
        body = {"wrong": b"x" * len(PAYLOAD), "page": b"<html>try later</html>"}.get(how, PAYLOAD)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and how != "whole" else 0
        self.send_response(206 if start else 200)
        if how != "unsized":
            self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(body[start : start + CUT] if how == "cut" else body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.log = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server, *ways):
    urls = [f"http://127.0.0.1:{server.server_port}/{way}" for way in ways]
    return Remote("file.bin", len(PAYLOAD), hashlib.md5(PAYLOAD).hexdigest(), urls)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_fetched_once(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert fetch(remote(server, "good"), folder).read_bytes() == PAYLOAD
    assert server.log == [("good", None)]
    assert files(folder) == ["file.bin"]


def test_a_part_is_gone_on_from(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(PAYLOAD[:5000])
    assert fetch(remote(server, "good"), tmp_path).read_bytes() == PAYLOAD
    assert server.log == [("good", "bytes=5000-")]
    assert files(tmp_path) == ["file.bin"]


def test_a_whole_part_needs_no_server(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(PAYLOAD)
    assert fetch(remote(server, "gone"), tmp_path).read_bytes() == PAYLOAD
    assert server.log == []


def test_a_broken_connection_is_gone_on_from_where_it_broke(server, tmp_path):
    assert fetch(remote(server, "cut"), tmp_path).read_bytes() == PAYLOAD
    starts = [asked for _, asked in server.log]
    assert starts == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"y" * 5000)
    assert fetch(remote(server, "whole"), tmp_path).read_bytes() == PAYLOAD


def test_a_server_that_does_not_tell_the_size_is_checked_all_the_same(server, tmp_path):
    assert fetch(remote(server, "unsized"), tmp_path).read_bytes() == PAYLOAD


@pytest.mark.parametrize("first", ["gone", "page", "wrong"])
def test_the_next_mirror_serves_where_the_first_does_not(first, server, tmp_path):
    assert fetch(remote(server, first, "good"), tmp_path).read_bytes() == PAYLOAD
    assert [how for how, _ in server.log] == [first, "good"]


def test_a_dead_host_is_passed_over(server, tmp_path):
    there = remote(server, "good")
    dead = there._replace(urls=["http://127.0.0.1:9/nobody", *there.urls])
    assert fetch(dead, tmp_path).read_bytes() == PAYLOAD


@pytest.mark.parametrize("length", [5000, len(PAYLOAD), len(PAYLOAD) + 1])
def test_a_part_that_is_wrong_is_fetched_from_its_start(length, server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"z" * length)
    assert fetch(remote(server, "good"), tmp_path).read_bytes() == PAYLOAD
    assert server.log[-1] == ("good", None)


def test_slow_mirrors_wait_until_the_others_have_failed(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SLOW_AFTER_S", 0.0)
    monkeypatch.setattr(download, "SLOW_BYTES_S", 1e15)
    monkeypatch.setattr(download, "BLOCK", 1024)
    assert fetch(remote(server, "good", "gone"), tmp_path).read_bytes() == PAYLOAD
    assert server.log == [("good", None), ("gone", "bytes=1024-"), ("good", "bytes=1024-")]


def test_when_every_mirror_fails_the_error_tells_all(server, tmp_path):
    there = remote(server, "gone", "wrong", "page")
    with pytest.raises(DataError) as error:
        fetch(there, tmp_path)
    for said in (*there.urls, "404", "expected md5", str(tmp_path / "file.bin"), there.md5):
        assert said in str(error.value)
    assert not (tmp_path / "file.bin").exists()


def test_half_a_file_is_never_taken_for_a_whole_one(server, tmp_path):
    """A server that stops for good leaves a part, which the next call completes."""
    (tmp_path / "file.bin.part").write_bytes(PAYLOAD[:100])
    with pytest.raises(DataError, match="what has arrived is kept"):
        fetch(remote(server, "gone"), tmp_path)
    assert files(tmp_path) == ["file.bin.part"]
    assert fetch(remote(server, "good"), tmp_path).read_bytes() == PAYLOAD


def test_a_damaged_file_put_there_by_hand_is_refused_and_kept(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(PAYLOAD[:-1])
    with pytest.raises(DataError, match=f"expected {len(PAYLOAD)} bytes with md5"):
        fetch(remote(server, "good"), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == PAYLOAD[:-1]
    assert server.log == []


def test_a_full_disk_is_noticed_before_anything_is_asked(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=len(PAYLOAD) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="room"):
        fetch(remote(server, "good"), tmp_path)
    assert server.log == []


def test_a_disk_that_fills_up_meanwhile_is_told_apart_from_the_mirrors(server, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match=r"expected to write file.bin"):
            fetch(remote(server, "good"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "file.bin").exists()


def test_a_folder_that_cannot_be_made_is_one_error(server, tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"expected to write file.bin .*PPR_DATA"):
        fetch(remote(server, "good"), tmp_path / "data")


def test_two_at_once_download_once(server, tmp_path):
    there = remote(server, "good")
    threads = [threading.Thread(target=fetch, args=(there, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.log == [("good", None)]
    assert (tmp_path / "file.bin").read_bytes() == PAYLOAD
