"""Image trees: decoded exactly, and refused with one clear line where they cannot serve."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from ppr_core import data
from ppr_core.data.folder import Folder
from ppr_core.errors import DataError


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noise(seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Three training and two test images in each of two classes, losslessly."""
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                seed = 100 * (part == "test") + 10 * label + index
                write(tmp_path / part / name / f"{index}.png", noise(seed))
    return tmp_path


def test_images_labels_and_names_come_as_they_lie(tree):
    train, test = Folder().load(tree)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 1, 1]
    for image, seed in zip(train.images, (0, 1, 2, 10, 11, 12), strict=True):
        assert torch.equal(image, torch.from_numpy(noise(seed)).permute(2, 0, 1))


def test_val_serves_as_test(tree):
    (tree / "test").rename(tree / "val")
    assert len(Folder().load(tree).test) == 4


def test_path_is_relative_to_the_data_folder_or_absolute(tree):
    assert len(Folder(path=tree.name).load(tree.parent).train) == 6
    assert len(Folder(path=str(tree)).load(tree / "elsewhere").train) == 6


def test_part_of_the_images_balanced_over_the_classes(tree):
    train, test = Folder(train=4, test=2).load(tree)
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]


def test_nested_files_count_and_hidden_ones_do_not(tree):
    write(tree / "train" / "cat" / "more" / "9.png", noise(9))
    write(tree / "train" / "cat" / ".ipynb_checkpoints" / "0-copy.png", noise(8))
    (tree / "train" / "cat" / "._0.png").write_bytes(b"left by a file manager")
    (tree / "train" / ".cache").mkdir()
    train = Folder().load(tree).train
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_other_files_are_left_out_with_a_warning(tree, caplog):
    (tree / "train" / "cat" / "readme.txt").write_text("cats")
    assert len(Folder().load(tree).train) == 6
    assert "1 files are not images" in caplog.text


def test_grey_palette_and_transparent_images_become_rgb(tree):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    write(tree / "train" / "cat" / "0.png", grey)
    write(tree / "train" / "cat" / "1.png", np.dstack([noise(1), grey]))
    Image.fromarray(noise(2)).quantize(256).save(tree / "train" / "cat" / "2.png")
    images = Folder().load(tree).train.images
    assert torch.equal(images[0], torch.from_numpy(grey).expand(3, 8, 8))
    assert torch.equal(images[1], torch.from_numpy(noise(1)).permute(2, 0, 1))
    assert images[2].shape == (3, 8, 8)


def test_size_brings_all_images_to_one_size(tree):
    write(tree / "train" / "cat" / "0.png", np.full((12, 20, 3), 77, np.uint8))
    train = Folder(size=16).load(tree).train
    assert train.images.shape == (6, 3, 16, 16)
    assert (train.images[0] == 77).all()


def test_the_cache_follows_the_files(tree):
    spec = {"name": "folder", "path": str(tree)}
    before = data.load(spec, tree / "data").train.images
    write(tree / "train" / "dog" / "2.png", noise(55))
    after = data.load(spec, tree / "data").train.images
    assert torch.equal(before[:5], after[:5])
    assert torch.equal(after[5], torch.from_numpy(noise(55)).permute(2, 0, 1))


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def missing_tree(tree):
    remove(tree)


def no_test(tree):
    (tree / "test").rename(tree / "other")


def empty_train(tree):
    remove(tree / "train")


def one_class(tree):
    remove(tree / "train" / "dog")
    (tree / "train" / "dog").rmdir()


def empty_class(tree):
    remove(tree / "train" / "dog")


def other_classes(tree):
    (tree / "test" / "dog").rename(tree / "test" / "wolf")


def corrupt(tree):
    (tree / "train" / "dog" / "1.png").write_bytes(b"\x89PNG not really")


def truncated(tree):
    path = tree / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])


def deep(tree):
    Image.new("I;16", (8, 8)).save(tree / "train" / "dog" / "1.png")


def sizes(tree):
    write(tree / "train" / "dog" / "1.png", noise(0, size=9))


def oblong(tree):
    write(tree / "train" / "cat" / "0.png", np.zeros((8, 12, 3), np.uint8))


def disguised(tree):
    """PostScript, which Pillow would hand to another program."""
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    (tree / "train" / "dog" / "1.png").write_bytes(header)


def pipe(tree):
    (tree / "train" / "dog" / "1.png").unlink()
    os.mkfifo(tree / "train" / "dog" / "1.png")


def loop(tree):
    file = tree / "train" / "dog" / "1.png"
    file.unlink()
    file.symlink_to(file)


def huge(tree):
    """A header that promises ten thousand million pixels."""
    (tree / "train" / "dog" / "1.png").write_bytes(b"P6\n100000 100000\n255\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (disguised, "dog.1.png: expected an image, got cannot identify"),
        (pipe, "dog.1.png: expected an image, got a file of another kind"),
        (loop, "expected an image file, got .*symbolic links"),
        (huge, "dog.1.png: expected an image, got .*pixels"),
        (missing_tree, "expected a folder .*train.*PPR_DATA"),
        (no_test, "expected a folder test or val"),
        (empty_train, "two or more class folders in .*train, got 0"),
        (one_class, r"two or more class folders in .*train, got 1 \['cat'\]"),
        (empty_class, "expected images in .*train.dog, got none among 0 files"),
        (other_classes, r"same classes .* got \['dog', 'wolf'\]"),
        (corrupt, "dog.1.png: expected an image"),
        (truncated, "dog.1.png: expected an image"),
        (deep, "dog.1.png: expected an image, got I;16 pixels"),
        (sizes, "got 8x8 pixels in .*cat.0.png and 9x9 in .*dog.1.png; set size"),
        (oblong, "cat.0.png: expected a square image, got 12x8 pixels; set size"),
    ],
)
def test_a_tree_that_cannot_serve_is_refused_and_nothing_is_written(damage, message, tree):
    damage(tree)
    with pytest.raises(DataError, match=message):
        data.load({"name": "folder", "path": str(tree)}, tree / "data")
    assert not (tree / "data").exists()


def test_names_that_are_no_utf_8_are_files_like_others(tree):
    base = os.fsencode(tree / "train" / "dog")
    os.rename(os.path.join(base, b"1.png"), os.path.join(base, b"\xff1.png"))
    assert len(data.load({"name": "folder", "path": str(tree)}, tree / "data").train) == 6


@pytest.mark.parametrize(("part", "limit"), [("train", 6), ("test", 4)])
def test_more_images_than_there_are_is_refused_before_decoding(part, limit, tree, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda file: pytest.fail("decoded"))
    with pytest.raises(DataError, match=f"at most {limit} {part}"):
        Folder(**{part: 7}).load(tree)
