"""The balanced draw of the images that are kept."""

import pytest
import torch

from ppr_core.data.base import balanced
from ppr_core.errors import DataError

LABELS = torch.tensor([0] * 10 + [1] * 3 + [2] * 7)


@pytest.mark.parametrize(
    ("count", "per_class"),
    [(3, [1, 1, 1]), (9, [3, 3, 3]), (11, [4, 3, 4]), (17, [7, 3, 7]), (20, [10, 3, 7])],
)
def test_the_draw_is_as_even_as_the_classes_allow(count, per_class):
    kept = balanced(LABELS, count, "images")
    assert LABELS[kept].bincount(minlength=3).tolist() == per_class
    assert kept.tolist() == sorted(set(kept.tolist()))


def test_all_are_kept_in_order_by_default():
    assert balanced(LABELS, None, "images").tolist() == list(range(20))


def test_a_smaller_draw_is_part_of_a_larger_one():
    small, large = (set(balanced(LABELS, count, "images").tolist()) for count in (5, 12))
    assert small < large


def test_the_draw_is_fixed_and_not_the_first_of_each_class():
    labels = torch.arange(1000) % 10
    kept = balanced(labels, 50, "images")
    assert torch.equal(kept, balanced(labels, 50, "images"))
    assert kept.tolist() != list(range(50))


def test_more_than_there_are_is_refused():
    with pytest.raises(DataError, match="at most 20 test images"):
        balanced(LABELS, 21, "test images")
