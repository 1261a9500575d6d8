"""CIFAR's archives: small ones of the same make, downloaded, read, and refused where damaged."""

import hashlib
import io
import pickle
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torchvision.datasets

from ppr_core import data
from ppr_core.data.cifar import Cifar10, Cifar100
from ppr_core.errors import DataError


def rows(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


BATCHES = {
    name: {"data": rows(4, seed)}
    | ({"fine_labels": [1, 0, 0, 1]} if name in ("train", "test") else {"labels": [0, 1, 1, 0]})
    for seed, name in enumerate(
        [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "train", "test"]
    )
}
NAMES = {"label_names": ["plane", "car"], "fine_label_names": ["apple", "bear"]}


@pytest.fixture
def address(tmp_path):
    """A web server of a folder of this machine."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *told: None})
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=[Cifar10, Cifar100])
def served(request, tmp_path, monkeypatch, address):
    """A small archive behind the first address, right by its digests."""
    dataset, folder = request.param, tmp_path / "served"
    theirs = getattr(torchvision.datasets, dataset.reader)
    digests = {}
    with tarfile.open(folder / theirs.filename, "w:gz") as archive:
        members = [name for name, _ in (*theirs.train_list, *theirs.test_list)]
        for name in (*members, theirs.meta["filename"]):
            content = pickle.dumps(BATCHES.get(name, NAMES))
            info = tarfile.TarInfo(f"{theirs.base_folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            digests[name] = hashlib.md5(content).hexdigest()
    file = folder / theirs.filename
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(theirs, part, [[n, digests[n]] for n, _ in getattr(theirs, part)])
    meta = {**theirs.meta, "md5": digests[theirs.meta["filename"]]}
    monkeypatch.setattr(theirs, "meta", meta)
    monkeypatch.setattr(theirs, "tgz_md5", hashlib.md5(file.read_bytes()).hexdigest())
    monkeypatch.setattr(theirs, "url", f"{address}/{file.name}")
    monkeypatch.setattr(dataset, "mirrors", ())
    return dataset, file


def test_images_in_order_with_rows_of_red_green_blue(served, tmp_path):
    dataset, _ = served
    train, test = data.load(dataset.reader.lower(), tmp_path / "data")
    if dataset is Cifar10:
        assert train.classes == ("plane", "car")
        assert train.labels.tolist() == [0, 1, 1, 0] * 5
        assert (train.images[7].numpy() == rows(4, 1)[3].reshape(3, 32, 32)).all()
        assert (test.images.numpy() == rows(4, 5).reshape(4, 3, 32, 32)).all()
    else:
        assert train.classes == ("apple", "bear"), "the fine labels"
        assert train.labels.tolist() == [1, 0, 0, 1]
        assert (test.images.numpy() == rows(4, 7).reshape(4, 3, 32, 32)).all()


def test_part_of_the_images_is_balanced(served, tmp_path):
    train, test = served[0](train=4, test=2).load(tmp_path / "data")
    assert train.labels.bincount().tolist() == [2, 2]
    assert test.labels.bincount().tolist() == [1, 1]


def test_once_decoded_no_file_and_no_address_is_needed(served, tmp_path):
    dataset, file = served
    first = data.load(dataset.reader.lower(), tmp_path / "data")
    file.unlink()
    for path in sorted((tmp_path / "data").rglob("*")):
        if path.is_file() and "cache" not in path.parts:
            path.unlink()
    assert len(data.load(dataset.reader.lower(), tmp_path / "data").train) == len(first.train)


def test_the_next_address_serves_where_the_first_does_not(served, address, tmp_path, monkeypatch):
    dataset, file = served
    theirs = getattr(torchvision.datasets, dataset.reader)
    monkeypatch.setattr(theirs, "url", f"{address}/gone")
    monkeypatch.setattr(dataset, "mirrors", (f"{address}/{file.name}",))
    assert len(dataset().load(tmp_path / "data").test) == 4


def test_an_archive_put_there_by_hand_is_enough(served, address, tmp_path, monkeypatch):
    dataset, file = served
    theirs = getattr(torchvision.datasets, dataset.reader)
    monkeypatch.setattr(theirs, "url", f"{address}/gone")
    (tmp_path / "data").mkdir()
    file.rename(tmp_path / "data" / file.name)
    assert len(dataset().load(tmp_path / "data").test) == 4


def test_when_every_address_fails_the_error_tells_all(served, address, tmp_path):
    dataset, file = served
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError) as error:
        data.load(dataset.reader.lower(), tmp_path / "data")
    for said in (
        f"{address}/{file.name}",
        "corrupted",
        str(tmp_path / "data"),
        dataset.md5,
        "PPR_DATA",
    ):
        assert said in str(error.value)
    assert "\n" not in str(error.value), "one line"
    assert not (tmp_path / "data" / "cache").exists()


@pytest.mark.parametrize("dataset", [Cifar10, Cifar100])
def test_the_digest_that_names_the_cache_is_the_published_one(dataset):
    theirs = getattr(torchvision.datasets, dataset.reader)
    assert dataset.md5 == theirs.tgz_md5
    assert all(Path(url.partition("?")[0]).name == theirs.filename for url in dataset.mirrors)
