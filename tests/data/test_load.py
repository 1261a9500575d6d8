"""Data sets by name, and the file that keeps each: whole or absent."""

import logging
import os
from pathlib import Path

import pytest
import torch

from ppr_core import data
from ppr_core.config import Field
from ppr_core.data.shapes import Shapes
from ppr_core.errors import ConfigError, DataError

SPEC = {"name": "shapes", "train": 40, "test": 20, "size": 8}


def cached(root):
    return sorted(path.name for path in (root / "cache").iterdir())


def test_every_data_set_names_its_source_and_explains_its_settings():
    for dataset in data.DATASETS.values():
        assert dataset.source
        assert all(row["meaning"] for row in dataset.describe())
        assert {"train", "test"} <= set(dataset.model_fields)


def test_the_second_load_reads_one_file_and_draws_nothing(tmp_path, monkeypatch):
    first = data.load(SPEC, tmp_path)
    assert len(cached(tmp_path)) == 1
    monkeypatch.setattr(Shapes, "load", lambda self, root: pytest.fail("drawn again"))
    second = data.load(SPEC, tmp_path)
    for part, again in zip(first, second, strict=True):
        assert torch.equal(part.images, again.images)
        assert torch.equal(part.labels, again.labels)
        assert part.classes == again.classes


def test_other_settings_or_another_version_have_files_of_their_own(tmp_path, monkeypatch):
    data.load(SPEC, tmp_path)
    data.load({**SPEC, "seed": 1}, tmp_path)
    monkeypatch.setattr(Shapes, "version", 99)
    data.load(SPEC, tmp_path)
    assert len(cached(tmp_path)) == 3


class Few(Shapes):
    train: int = Field(20, description="training images")
    test: int = Field(10, description="test images")


def test_a_name_alone_is_enough(tmp_path, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "few", Few)
    monkeypatch.setenv("PPR_DATA", str(tmp_path))
    assert len(data.load("few").train) == 20
    assert cached(tmp_path)[0].startswith("few-")


def test_the_data_folder_is_the_argument_else_the_environment_else_where_one_stands(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PPR_DATA", str(tmp_path / "env"))
    assert data.data_folder(tmp_path / "arg") == tmp_path / "arg"
    assert data.data_folder() == tmp_path / "env"
    monkeypatch.delenv("PPR_DATA")
    monkeypatch.chdir(tmp_path)
    assert data.data_folder() == tmp_path / "data"


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_file_is_made_again(damage, tmp_path, caplog):
    first = data.load(SPEC, tmp_path)
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    # A new file: the first split still reads from the old one.
    path.unlink()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "garbage": b"\xff" * 99, "empty": b""}[damage]
    )
    again = data.load(SPEC, tmp_path)
    assert torch.equal(first.train.images, again.train.images)
    assert "made again" in caplog.text
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_only_warns(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(data.load(SPEC, tmp_path).train) == 40
    assert "PPR_DATA" in caplog.text


def test_a_full_disk_leaves_no_half_file(tmp_path, caplog):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        split = data.load(SPEC, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(split.train) == 40
    assert cached(tmp_path) == []
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_a_file_that_cannot_be_put_in_its_place_is_taken_away(tmp_path, monkeypatch, caplog):
    def refuse(self, target):
        raise PermissionError("no")

    monkeypatch.setattr(Path, "replace", refuse)
    assert len(data.load(SPEC, tmp_path).train) == 40
    assert cached(tmp_path) == []
    assert "got no; it is used" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="no POSIX permissions")
def test_a_shared_folder_is_readable_to_others(tmp_path):
    data.load(SPEC, tmp_path)
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shape", "did you mean 'shapes'"),
        ({"name": "shapes", "sise": 8}, "did you mean 'size'"),
        ({"name": "shapes", "size": "8"}, "dataset.size"),
        ({"size": 8}, "expected a dataset name"),
    ],
)
def test_a_wrong_specification_is_refused(spec, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        data.load(spec, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_missing_source_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="expected a folder"):
        data.load("folder", tmp_path)
    assert list(tmp_path.iterdir()) == []
