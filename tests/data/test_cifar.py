"""CIFAR's archives: small ones of the same make, and ones that must be refused."""

import hashlib
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from ppr_core import data
from ppr_core.data.cifar import Cifar10, Cifar100
from ppr_core.data.download import Remote
from ppr_core.errors import DataError


class Python2(pickle._Pickler):
    """Write texts and bytes as Python 2 did, which made the real archives."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        value = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[str] = dispatch[bytes] = save_text


def pickled(value):
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"numpy._core.", b"numpy.core.")


def rows(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def install(dataset, folder, members, monkeypatch):
    """Pack members into the data set's archive, and let that be the right one."""
    name = dataset.archive.name
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w:gz") as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(f"{dataset.folder}/{member}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = (folder / name).read_bytes()
    known = Remote(name, len(whole), hashlib.md5(whole).hexdigest(), ())
    monkeypatch.setattr(dataset, "archive", known)


def ten():
    members = {"batches.meta": pickled({"label_names": ["plane", "car"]})}
    for index, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        members[name] = pickled({"data": rows(4, index), "labels": [0, 1, 1, 0]})
    return members


def test_cifar10_in_order_with_rows_of_red_green_blue(tmp_path, monkeypatch):
    install(Cifar10, tmp_path, ten(), monkeypatch)
    train, test = data.load("cifar10", tmp_path)
    assert train.classes == ("plane", "car")
    assert train.labels.tolist() == [0, 1, 1, 0] * 5
    assert (train.images[7].numpy() == rows(4, 1)[3].reshape(3, 32, 32)).all()
    assert (test.images.numpy() == rows(4, 5).reshape(4, 3, 32, 32)).all()


def test_part_of_the_images(tmp_path, monkeypatch):
    install(Cifar10, tmp_path, ten(), monkeypatch)
    train, test = Cifar10(train=6, test=2).load(tmp_path)
    assert train.labels.bincount().tolist() == [3, 3]
    assert test.labels.bincount().tolist() == [1, 1]


def test_cifar100_has_the_fine_labels(tmp_path, monkeypatch):
    members = {
        "meta": pickled(
            {"fine_label_names": ["apple", "bear", "bee"], "coarse_label_names": ["x"]}
        ),
        "train": pickled({"data": rows(3, 0), "fine_labels": [2, 0, 1], "coarse_labels": [0] * 3}),
        "test": pickled({"data": rows(2, 1), "fine_labels": [1, 2], "coarse_labels": [0] * 2}),
    }
    install(Cifar100, tmp_path, members, monkeypatch)
    train, test = Cifar100().load(tmp_path)
    assert train.classes == ("apple", "bear", "bee")
    assert train.labels.tolist() == [2, 0, 1]
    assert test.labels.tolist() == [1, 2]


def test_once_decoded_the_archive_is_not_needed(tmp_path, monkeypatch):
    install(Cifar10, tmp_path, ten(), monkeypatch)
    data.load("cifar10", tmp_path)
    (tmp_path / Cifar10.archive.name).unlink()
    assert len(data.load("cifar10", tmp_path).train) == 20


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = ten() | {"data_batch_3": pickle.dumps({"data": Evil(), "labels": []}, protocol=2)}
    install(Cifar10, tmp_path / "data", members, monkeypatch)
    with pytest.raises(DataError, match=r"unsafe pickle .*mkdir"):
        data.load("cifar10", tmp_path / "data")
    assert not (tmp_path / "made-by-a-pickle").exists()
    assert not (tmp_path / "data" / "cache").exists()


@pytest.mark.parametrize(
    "batch",
    [
        {"data": rows(4, 0)[:, :100], "labels": [0, 1, 1, 0]},
        {"data": rows(3, 0), "labels": [0, 1, 1, 0]},
        {"data": rows(4, 0).astype(np.float32), "labels": [0, 1, 1, 0]},
    ],
)
def test_a_batch_of_another_make_is_refused(batch, tmp_path, monkeypatch):
    members = ten() | {"test_batch": pickled(batch)}
    install(Cifar10, tmp_path, members, monkeypatch)
    with pytest.raises(DataError, match="expected bytes of shape"):
        Cifar10().load(tmp_path)


def test_an_archive_without_a_batch_is_refused(tmp_path, monkeypatch):
    members = {name: content for name, content in ten().items() if name != "data_batch_2"}
    install(Cifar10, tmp_path, members, monkeypatch)
    with pytest.raises(DataError, match=r"expected the archive of Cifar10, got .*data_batch_2"):
        Cifar10().load(tmp_path)


def test_a_truncated_archive_is_refused(tmp_path, monkeypatch):
    install(Cifar10, tmp_path, ten(), monkeypatch)
    path = tmp_path / Cifar10.archive.name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged or incomplete; delete it"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dataset", [Cifar10, Cifar100])
def test_the_published_digests_and_mirrors_stand(dataset):
    torchvision = pytest.importorskip("torchvision.datasets")
    theirs = torchvision.CIFAR100 if dataset is Cifar100 else torchvision.CIFAR10
    assert dataset.archive.md5 == theirs.tgz_md5
    assert dataset.archive.name == theirs.filename
    assert dataset.archive.urls[0] == theirs.url
    assert dataset.folder == theirs.base_folder
    assert dataset.train_files == tuple(name for name, _ in theirs.train_list)
    assert dataset.test_files == tuple(name for name, _ in theirs.test_list)
    assert dataset.meta == (theirs.meta["filename"], theirs.meta["key"])
    assert len(dataset.archive.urls) >= 2
