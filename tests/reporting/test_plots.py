"""The right data drawn: axes, series, values; not pixels."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from ppr_core.reporting import plots, results

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
NAMES = ["none", "clean", "bti", "pam rho 0", "pam rho 1"]


def named(frame, column="defense"):
    """With the labels of a study in which these defenses have this order."""
    order = [*NAMES, "fst", "ep (oracle)"]
    labels = frame[column].replace({"ep": "ep (oracle)", "pam@1": "pam rho 1"})
    return frame.assign(name=pd.Categorical(labels, order))


MEASURED = ROWS.assign(
    q_p_asr=[None, 2.0, 60.0, 50.0, 40.0],
    q_c_asr=[None, 1.0, 5.0, 4.0, 3.0],
    clean_retuned_asr=None,
    trigger_asr=[None, 3.0, 70.0, 60.0, 7.0],
    distance=[None, None, 3.0, 4.0, 5.0],
    path_distance=[None, None, 1.0, 2.5, 2.0],
    barrier=[None, None, 10.0, 0.0, 30.0],
)
HISTORY = named(
    pd.DataFrame(
        {
            "epoch": [0, 1, 0, 1],
            "asr": [1.0, 50.0, 0.5, 0.7],
            "c_acc": [94.0, 93.0, 96.0, 95.0],
            "attack": "blended",
            "defense": ["bti", "bti", "clean", "clean"],
            "seed": 0,
        }
    )
)
TRAINING = HISTORY.assign(attack=["badnet", "badnet", "blended", "blended"])
QUERIES = named(
    pd.DataFrame(
        [
            {
                "attack": "blended",
                "defense": defense,
                "seed": 0,
                "perturbation": what,
                "eps": eps / 255,
                "p_asr": start + slope * eps,
                "c_asr": slope * eps,
            }
            for defense, start in (("bti", 10.0), ("fst", 20.0), ("clean", 1.0), ("ep", 2.0))
            for what, slope in (("qra", 4.0), ("sign noise", 0.5))
            for eps in (0, 8, 16)
        ]
    )
)
QUERIED = pd.DataFrame(
    {
        "attack": "blended",
        "defense": ["bti", "fst", "clean", "ep"],
        "seed": 0,
        "oracle": [False, False, False, True],
        "o_asr": [10.0, 20.0, 1.0, 2.0],
    }
)
PAIRS = named(
    pd.DataFrame(
        [
            ("blended", "bti", "fst", 10.0),
            ("blended", "bti", "pam@1", 30.0),
            ("blended", "pam@1", "bti", 50.0),
            ("blended", "pam@1", "fst", 90.0),
        ],
        columns=["attack", "source", "target", "p_asr"],
    ),
    "source",
)
PATHS = named(
    pd.DataFrame(
        [
            (attack, defense, way, t, 100 * t**power, 5.0 + power * t)
            for attack in ("badnet", "ssba")
            for defense, power in (("bti", 2), ("fst", 3), ("ep", 0.5))
            for way in ("interpolate", "recalibrate")
            for t in (0.0, 0.5, 1.0)
        ],
        columns=["attack", "defense", "batch_norm", "t", "backdoor_error", "clean_error"],
    ).assign(seed=0)
)
IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)

# Every figure of the module: how it is drawn here; its panels' titles, x axes, y axes; its legend.
FIGURES = {
    "gallery": (
        lambda: plots.gallery(IMAGES, {"badnet": (IMAGES + 1, IMAGES + 51)}),
        [""] * 8,
        [""] * 8,
        ["original", "", "badnet\ntraining", "", "badnet\ntest", "", "difference\n× 2", ""],
        [],
    ),
    "robustness_bars": (
        lambda: plots.robustness_bars(ROWS),
        ["blended"],
        ["attack success rate (%)"],
        [""],
        ["after the defense", "after RA"],
    ),
    "query_bars": (
        lambda: plots.query_bars(MEASURED),
        ["blended"],
        ["attack success rate (%)"],
        [""],
        ["triggered", "triggered + QRA", "clean + QRA"],
    ),
    "rival_bars": (
        lambda: plots.rival_bars(MEASURED),
        ["blended"],
        ["attack success rate (%)"],
        [""],
        ["RA", "QRA", "optimised trigger"],
    ),
    "budget_curves": (
        lambda: plots.budget_curves(QUERIES, QUERIED),
        [
            f"blended: {kind} images{whose}"
            for whose in ("", "\nmean of the purified models")
            for kind in ("triggered", "clean")
        ],
        ["budget (1/255)"] * 4,
        ["predicted as the target (%)"] * 4,
        ["clean", "bti", "fst", "ep (oracle)", "qra", "sign noise"],
    ),
    "transfer_bars": (
        lambda: plots.transfer_bars(PAIRS),
        ["blended"],
        ["P-ASR on the other models (%)"],
        ["perturbation learnt on"],
        [],
    ),
    "path_curves": (
        lambda: plots.path_curves(PATHS),
        [
            f"{attack}, batch norm: {way}"
            for way in ("interpolate", "recalibrate")
            for attack in ("badnet", "ssba")
        ],
        ["position t on the path"] * 4,
        ["backdoor error (%)"] * 4,
        ["bti", "fst", "ep (oracle)"] * 2,
    ),
    "what_predicts": (
        lambda: plots.what_predicts(MEASURED),
        [""] * 3,
        [
            "L2 distance from the backdoored model",
            "L2 distance along the path, ASR asleep",
            "backdoor error barrier (points)",
        ],
        ["P-ASR after RA (%)"] * 3,
        ["bti", "pam rho 0", "pam rho 1"],
    ),
    "retuning_curves": (
        lambda: plots.retuning_curves(HISTORY),
        ["blended"] * 2,
        ["epoch of retuning"] * 2,
        ["ASR (%)", "C-Acc (%)"],
        ["clean", "bti"],
    ),
    "rho_curves": (
        lambda: plots.rho_curves(ROWS),
        ["blended"],
        ["rho (L2 length of the path step)"],
        ["percent"],
        ["C-Acc", "O-ASR", "P-ASR (after RA)"],
    ),
    "training_curves": (
        lambda: plots.training_curves(TRAINING),
        [""] * 2,
        ["epoch of training"] * 2,
        ["C-Acc (%)", "ASR (%)"],
        ["badnet", "blended"],
    ),
    "trade_off": (
        lambda: plots.trade_off(ROWS),
        [""],
        ["C-Acc lost (points)"],
        ["P-ASR after RA (%)"],
        ["clean", "bti", "pam rho 0", "pam rho 1"],
    ),
}


def legend(figure):
    found = [axis.get_legend() for axis in figure.axes]
    return [text.get_text() for one in found if one for text in one.get_texts()]


def lines(axis):
    """The values of the lines drawn (a legend's are empty), left to right."""
    drawn = [line for line in axis.get_lines() if len(line.get_xdata())]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in drawn]


def widths(bars):
    return [float(bar.get_width()) for bar in bars]


def ticks(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def test_every_figure_is_tested_here():
    public = {
        name
        for name, made in vars(plots).items()
        if inspect.isfunction(made) and made.__module__.startswith(plots.__name__)
    }
    elsewhere = {"paper_figures", "battery_map", "wake_counts", "order_changes"}
    assert public == {*FIGURES, *elsewhere}, "tested by test_paper_figures and test_ranking"


@pytest.mark.parametrize("name", FIGURES)
def test_panels_axes_and_legend_say_what_is_shown(name):
    draw, titles, x_labels, y_labels, named = FIGURES[name]
    figure = draw()
    assert [axis.get_title() for axis in figure.axes] == titles
    assert [axis.get_xlabel() for axis in figure.axes] == x_labels
    assert [axis.get_ylabel() for axis in figure.axes] == y_labels
    assert legend(figure) == named


def test_bars_are_the_asr_before_and_after():
    [axis] = plots.robustness_bars(ROWS).axes
    assert ticks(axis) == NAMES
    before, after = axis.containers[:2]
    assert widths(before) == [99.0, 0.5, 5.0, 20.0, 1.0]
    assert [width for width in widths(after) if not np.isnan(width)] == [1, 80, 90, 4]
    assert [int(text.get_text()) for text in axis.texts] == [99, 0, 5, 20, 1, 1, 80, 90, 4]


def test_bars_are_means_over_seeds_with_the_spread_as_whiskers():
    two = pd.concat([ROWS, ROWS.assign(seed=1, o_asr=ROWS["o_asr"] - 0.4)], ignore_index=True)
    [axis] = plots.robustness_bars(two).axes
    assert widths(axis.containers[0]) == pytest.approx([98.8, 0.3, 4.8, 19.8, 0.8])
    spread = 0.4 / 2**0.5
    ends, _ = lines(axis)[0]
    assert ends == pytest.approx([98.8 - spread, 98.8 + spread])
    assert not axis.texts, "a number over a whisker cannot be read"


def test_bars_leave_out_what_failed_and_stay_beside_their_name():
    both = pd.concat([ROWS.assign(attack="badnet"), ROWS], ignore_index=True)
    both.loc[1, "status"] = "failed: diverged"
    left, right = plots.robustness_bars(both).axes
    places = dict(zip(ticks(left), left.get_yticks(), strict=True))
    for axis, expected in ((left, {"bti": 5.0}), (right, {"bti": 5.0, "clean": 0.5})):
        bars = axis.containers[0]
        drawn = {round(bar.get_y() + bar.get_height()): bar.get_width() for bar in bars}
        assert {name: drawn[places[name]] for name in expected} == expected
    assert len(left.containers[0]) == len(right.containers[0]) - 1
    said = [text for text in left.texts if text.get_text() == "no result"]
    assert [text.get_position()[1] for text in said] == ["clean"], "no bar is not a bar of 0"
    assert "no result" not in [text.get_text() for text in right.texts]


def test_query_bars_are_the_asr_before_and_under_qra():
    [axis] = plots.query_bars(MEASURED).axes
    assert ticks(axis) == NAMES[1:], "the backdoored model has no QRA"
    plain, triggered, clean = axis.containers[:3]
    assert widths(plain) == [0.5, 5.0, 20.0, 1.0]
    assert widths(triggered) == [2.0, 60.0, 50.0, 40.0]
    assert widths(clean) == [1.0, 5.0, 4.0, 3.0]


def test_the_papers_form_of_qra_stands_beside_the_authors():
    [axis] = plots.query_bars(MEASURED.assign(qe_p_asr=33.0, qe_clean_p_asr=3.0)).axes
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels[-2:] == ["triggered + QRA, eq. 2", "clean model, eq. 2"]
    assert widths(axis.containers[3]) == [33.0] * 4


def test_rival_bars_are_the_asr_that_each_way_reaches():
    [axis] = plots.rival_bars(MEASURED).axes
    assert ticks(axis) == NAMES[1:]
    retuned, query, trigger = axis.containers[:3]
    assert widths(retuned) == [1.0, 80.0, 90.0, 4.0]
    assert widths(query) == [2.0, 60.0, 50.0, 40.0]
    assert widths(trigger) == [3.0, 70.0, 60.0, 7.0]


def test_budget_curves_show_each_model_above_and_the_controls_below():
    once = QUERIES.iloc[:1].assign(perturbation="trigger, white-box")  # has a budget of its own
    figure = plots.budget_curves(pd.concat([QUERIES, once], ignore_index=True), QUERIED)
    triggered, clean, controls, controls_clean = figure.axes
    budgets = [0.0, 8.0, 16.0]
    assert lines(triggered) == [(budgets, [s, s + 32, s + 64]) for s in (1, 10, 20, 2)]
    assert lines(clean) == [(budgets, [0, 32, 64])] * 4
    # Those of bti: fst is not purified, the clean model is a control, and EP an oracle's.
    assert lines(controls) == [(budgets, [10, 42, 74]), (budgets, [10, 14, 18])]
    assert lines(controls_clean) == [(budgets, [0, 32, 64]), (budgets, [0, 4, 8])]
    alone = plots.budget_curves(QUERIES[QUERIES["perturbation"] == "qra"], QUERIED)
    assert len(alone.axes) == 2, "no controls, no second row"


def test_transfer_bars_are_means_with_a_point_a_pair():
    [axis] = plots.transfer_bars(PAIRS).axes
    assert ticks(axis) == ["bti", "pam rho 1"]
    assert widths(axis.containers[0]) == [20.0, 70.0]
    points = [collection.get_offsets()[:, 0].tolist() for collection in axis.collections]
    assert points == [[10.0, 30.0], [50.0, 90.0]]


@pytest.mark.parametrize("figure_of", ["backdoor_error", "clean_error"])
def test_path_curves_run_along_t(figure_of):
    figure = plots.path_curves(PATHS, figure_of)
    for axis in figure.axes:
        attack, way = axis.get_title().split(", batch norm: ")
        here = PATHS[(PATHS["attack"] == attack) & (PATHS["batch_norm"] == way)]
        own = [group[figure_of].to_list() for _, group in here.groupby("name", observed=True)]
        assert lines(axis) == [([0, 0.5, 1], values) for values in own]
        assert axis.get_ylabel() == f"{figure_of.replace('_', ' ')} (%)"


def test_a_band_is_the_spread_over_seeds():
    one = PATHS[(PATHS["defense"] == "bti") & (PATHS["attack"] == "badnet")]
    two = pd.concat(
        [one, one.assign(seed=1, backdoor_error=one["backdoor_error"] + 4)], ignore_index=True
    )
    axis = plots.path_curves(two).axes[0]
    assert lines(axis) == [([0, 0.5, 1], [2, 27, 102])]
    edge = axis.collections[0].get_paths()[0].vertices
    at_start = sorted(set(edge[edge[:, 0] == 0][:, 1].round(4)))
    assert at_start == pytest.approx([2 - 8**0.5, 2 + 8**0.5], abs=1e-3)


@pytest.mark.parametrize(
    ("draw", "frame"),
    [
        (plots.path_curves, PATHS[PATHS["batch_norm"] == "interpolate"]),
        (
            lambda rows: plots.budget_curves(rows, QUERIED),
            QUERIES[QUERIES["perturbation"] == "qra"],
        ),
        (plots.retuning_curves, HISTORY),
    ],
    ids=["path_curves", "budget_curves", "retuning_curves"],
)
@pytest.mark.parametrize("poorer", ["first", "second"])
def test_a_line_keeps_its_colour_where_a_panel_lacks_another(draw, frame, poorer):
    """A cell that failed in one attack must not pass its colour on to the next defense."""
    frame, gone = frame[frame["attack"] == frame["attack"].iloc[0]], frame["name"].iloc[0]
    both = pd.concat([frame.assign(attack=name) for name in ("first", "second")], ignore_index=True)
    both = both[(both["attack"] != poorer) | (both["name"] != gone)]
    figure = draw(both)
    [shown] = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    names = [text.get_text() for text in shown.get_texts()]
    assert names == sorted(set(names), key=list(frame["name"].cat.categories).index)
    assert set(names) == set(frame["name"])
    colours = [line.get_color() for line in shown.legend_handles]
    for axis in figure.axes:
        drawn = [line.get_color() for line in axis.get_lines() if len(line.get_xdata())]
        whole = len(drawn) == len(names)
        pairs = zip(colours, names, strict=True)
        assert drawn == [colour for colour, name in pairs if whole or name != gone]
    assert any(len(lines(axis)) < len(names) for axis in figure.axes)


@pytest.mark.parametrize("name", ["path_curves", "retuning_curves", "trade_off", "what_predicts"])
def test_a_defense_looks_the_same_in_every_figure(name):
    """Whatever else a figure shows: colour and marker are those of the study's order."""
    for axis in FIGURES[name][0]().axes:
        if not (shown := axis.get_legend()):
            continue
        for text, line in zip(shown.get_texts(), shown.legend_handles, strict=True):
            place = list(PATHS["name"].cat.categories).index(text.get_text())
            assert to_hex(line.get_color()) == results.COLOURS[place]
            assert line.get_marker() == plots.MARKERS[place]


def test_what_predicts_sets_p_asr_against_each_figure_of_the_path():
    axes = plots.what_predicts(MEASURED).axes
    for axis, name in zip(axes, ("distance", "path_distance", "barrier"), strict=True):
        [points] = axis.collections
        expected = MEASURED[[name, "p_asr"]].iloc[2:].astype(float).to_numpy()
        assert points.get_offsets().tolist() == expected.tolist()


def test_rho_curves_run_along_rho():
    [axis] = plots.rho_curves(ROWS).axes
    assert lines(axis) == [([0, 1], [94, 92]), ([0, 1], [20, 1]), ([0, 1], [90, 4])]


def test_retuning_curves_have_a_line_a_defense():
    top, bottom = plots.retuning_curves(HISTORY).axes
    assert lines(top) == [([0, 1], [0.5, 0.7]), ([0, 1], [1.0, 50.0])]
    assert lines(bottom) == [([0, 1], [96.0, 95.0]), ([0, 1], [94.0, 93.0])]


def test_training_curves_show_every_attack():
    left, right = plots.training_curves(TRAINING).axes
    assert lines(left) == [([0, 1], [94.0, 93.0]), ([0, 1], [96.0, 95.0])]
    assert lines(right) == [([0, 1], [1.0, 50.0]), ([0, 1], [0.5, 0.7])]


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
    figure = plots.gallery(images, {"badnet": (stamped // 2, stamped)})
    rows = [figure.axes[3 * index].images[0].get_array() for index in range(4)]
    assert rows[0].max() == 0
    assert (rows[1][0, 0, 0], rows[2][0, 0, 0]) == (change // 2, change)
    assert rows[3][0, 0, 0] > 0.7, "the difference is not amplified"
    assert rows[3][1, 1, 0] == pytest.approx(0.5)


def test_a_picture_draws_its_curves_once_and_moves_its_marks():
    frame = pd.DataFrame({"rho": [1.0, 0.0], "o_asr": [1.0, 20.0], "p_asr": [4.0, None]})
    names = {"o_asr": "O-ASR", "p_asr": "P-ASR", "c_acc": "C-Acc"}
    picture = plots.Picture([plots.Curves("PAM", "rho", "rho (L2)", frame, names, (0, 1))] * 2)
    for axis in picture.axes:
        assert [(list(x.get_xdata()), list(x.get_ydata())) for x in axis.get_lines()] == [
            ([0.0, 1.0], [20.0, 1.0]),
            ([1.0], [4.0]),  # what was not measured is left out
            ([], []),  # what is only measured live has a name, and no points
        ]
        assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel(), axis.get_xlim()) == (
            *("PAM", "rho (L2)", "percent"),
            (0, 1),
        )
        assert [text.get_text() for text in axis.get_legend().get_texts()] == list(names.values())
    first = picture.png([(0.5, {"o_asr": 33.0}), None])
    left, right = picture.axes
    line, ring = left.get_lines()[3:]
    assert list(line.get_xdata()) == [0.5, 0.5]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([0.5], [33.0])
    assert ring.get_markeredgecolor() == left.get_lines()[0].get_color()
    assert len(right.get_lines()) == 3
    assert picture.png([None, (0.2, {"o_asr": 1.0, "p_asr": 2.0})]) != first
    assert (len(left.get_lines()), len(right.get_lines())) == (3, 6), "an old mark stayed"
    assert picture.png([(0.5, {"o_asr": 33.0}), None]) == first
