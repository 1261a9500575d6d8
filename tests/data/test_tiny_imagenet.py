"""Tiny-ImageNet's original layout."""

import numpy as np
import pytest
from PIL import Image

from ppr_core.data.tiny_imagenet import TinyImageNet
from ppr_core.errors import DataError

WNIDS = ("n03", "n01", "n02")  # not sorted, as in the original


def picture(path, value, grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (16, 16) if grey else (16, 16, 3)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Class n0k holds flat images of value 10 k; the validation images of value 10 k + 5."""
    base = tmp_path / "tiny-imagenet-200"
    lines = []
    for number, wnid in enumerate(("n01", "n02", "n03"), 1):
        for index in range(2):
            file = base / "train" / wnid / "images" / f"{wnid}_{index}.JPEG"
            picture(file, 10 * number, grey=index == 1)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes")
        picture(base / "val" / "images" / f"val_{9 - number}.JPEG", 10 * number + 5)
        lines.append(f"val_{9 - number}.JPEG\t{wnid}\t0\t0\t9\t9\n")
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    (base / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (base / "words.txt").write_text("n00\tnone\nn01\tgoldfish, Carassius\nn02\ttailed frog\n")
    return tmp_path


def test_classes_are_sorted_and_named(tree):
    train, test = TinyImageNet().load(tree)
    assert train.classes == test.classes == ("goldfish", "tailed frog", "n03")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_belong_to_their_labels_and_grey_ones_are_rgb(tree):
    train, test = TinyImageNet().load(tree)
    assert train.images.shape == (6, 3, 16, 16)
    assert train.images[:, :, 0, 0].tolist() == [[10 * (k + 1)] * 3 for k in (0, 0, 1, 1, 2, 2)]
    assert test.labels.tolist() == [0, 1, 2]
    assert test.images[:, 0, 0, 0].tolist() == [15, 25, 35]


def test_fewer_images_smaller(tree):
    train, _ = TinyImageNet(train=3, size=8).load(tree)
    assert train.labels.tolist() == [0, 1, 2]
    assert train.images.shape == (3, 3, 8, 8)


def test_only_the_classes_of_the_list_are_read(tree):
    base = tree / "tiny-imagenet-200"
    (base / "wnids.txt").write_text("n02\nn01\n")
    annotations = base / "val" / "val_annotations.txt"
    annotations.write_text("".join(annotations.read_text().splitlines(keepends=True)[:2]))
    train, test = TinyImageNet().load(tree)
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("wnids.txt", None, "expected Tiny-ImageNet in .*unpack http"),
        ("wnids.txt", "n01\n", "expected two or more classes"),
        ("words.txt", None, "expected a file .*words.txt"),
        ("val/val_annotations.txt", None, "expected a file .*val_annotations.txt"),
        ("val/val_annotations.txt", "", "expected a line for each image"),
        ("val/val_annotations.txt", "val_8.JPEG\tn99\t0\n", "class of wnids.txt, got 'val_8"),
        ("val/val_annotations.txt", "val_8.JPEG\n", "class of wnids.txt, got 'val_8"),
        ("val/images/val_8.JPEG", None, "val_8.JPEG"),
        ("val/images/val_8.JPEG", "not an image", "val_8.JPEG: expected an image"),
        ("wnids.txt", "n01\nn02\nn03\nn04\n", "expected images in .*n04"),
    ],
)
def test_an_incomplete_layout_is_refused(file, text, message, tree):
    path = tree / "tiny-imagenet-200" / file
    path.unlink() if text is None else path.write_text(text)
    dataset = TinyImageNet()
    with pytest.raises(DataError, match=message):
        (dataset.fingerprint(tree), dataset.load(tree))
