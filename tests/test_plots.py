"""The right data drawn: axes, series, values; not pixels."""

import numpy as np
import pandas as pd
import pytest
import torch

from ppr_core import plots

ROWS = pd.DataFrame(
    [
        ("blended", "none", None, 94.0, 99.0, None, None),
        ("blended", "clean", None, 96.0, 0.5, 95.0, 1.0),
        ("blended", "bti", None, 94.0, 5.0, 94.0, 80.0),
        ("blended", "pam", 0.0, 94.0, 20.0, 94.0, 90.0),
        ("blended", "pam", 1.0, 92.0, 1.0, 94.0, 4.0),
    ],
    columns=["attack", "defense", "rho", "o_c_acc", "o_asr", "p_c_acc", "p_asr"],
).assign(seed=0, oracle=False, status="done")


def test_bars_are_the_asr_before_and_after():
    [axis] = plots.robustness_bars(ROWS).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "none",
        "clean",
        "bti",
        "pam rho 0",
        "pam rho 1",
    ]
    before, after = axis.containers[:2]
    assert [bar.get_width() for bar in before] == [99.0, 0.5, 5.0, 20.0, 1.0]
    assert [bar.get_width() for bar in after if not np.isnan(bar.get_width())] == [1, 80, 90, 4]
    assert axis.get_title() == "blended"


def test_rho_curves_run_along_rho():
    [axis] = plots.rho_curves(ROWS).axes
    lines = [line for line in axis.get_lines() if len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in lines] == [[0.0, 1.0]] * 3
    assert [list(line.get_ydata()) for line in lines] == [[94, 92], [20, 1], [90, 4]]


def test_retuning_curves_have_a_line_a_defense():
    history = pd.DataFrame(
        {
            "epoch": [0, 1, 0, 1],
            "asr": [1.0, 50.0, 0.5, 0.7],
            "c_acc": [94.0, 93.0, 96.0, 95.0],
            "attack": "blended",
            "defense": ["bti", "bti", "clean", "clean"],
            "seed": 0,
        }
    )
    top, bottom = plots.retuning_curves(history).axes
    assert [list(line.get_ydata()) for line in top.get_lines()[:2]] == [[1.0, 50.0], [0.5, 0.7]]
    assert bottom.get_ylabel() == "C-Acc (%)"
    assert bottom.get_xlabel() == "epoch of retuning"


def test_the_trade_off_is_measured_against_the_backdoored_model():
    [axis] = plots.trade_off(ROWS).axes
    points = axis.collections[0].get_offsets()
    assert points[:, 0].tolist() == [-2.0, 0.0, 0.0, 2.0]
    assert points[:, 1].tolist() == [1.0, 80.0, 90.0, 4.0]


@pytest.mark.parametrize("change", [1, 40, 255])
def test_a_gallery_shows_even_a_faint_difference(change):
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    stamped = images.clone()
    stamped[:, :, 0, 0] = change
    figure = plots.gallery(images, {"badnet": (stamped, stamped)})
    rows = [figure.axes[3 * index].images[0].get_array() for index in range(4)]
    assert rows[0].max() == 0
    assert rows[1][0, 0, 0] == change
    assert rows[3][0, 0, 0] > 0.7, "the difference is not amplified"
    assert rows[3][1, 1, 0] == pytest.approx(0.5)


def test_training_curves_show_every_attack():
    history = pd.DataFrame(
        {"epoch": [1, 2], "c_acc": [50.0, 90.0], "asr": [10.0, 99.0], "attack": "badnet"}
    )
    left, right = plots.training_curves(history).axes
    assert list(left.get_lines()[0].get_ydata()) == [50.0, 90.0]
    assert list(right.get_lines()[0].get_ydata()) == [10.0, 99.0]
