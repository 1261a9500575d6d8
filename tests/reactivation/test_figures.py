import math

import pytest

from ppr_core.reactivation.cells import Cell, Setting
from ppr_core.reactivation.figures import beyond, by_place, counted, judged, recovery, wake_count
from ppr_core.reactivation.verdicts import Limits, QueryResult, interval, verdict

LIMITS = Limits()


def start(p_asr=2.0, c_acc=90.0):
    return Cell(arm="start", setting=Setting(epochs=0), p_asr=p_asr, c_acc=c_acc)


def cell(arm="strength", p_asr=0.0, c_acc=90.0, curve=(), **setting):
    return Cell(arm=arm, setting=Setting(**setting), p_asr=p_asr, c_acc=c_acc, curve=list(curve))


def counts(*medians):
    """Three draws of each of 1, 2, 5, 10, 20, 50 poisons, around these medians."""
    return [
        cell("count", median + spread, poisons=count, draw=draw)
        for count, median in zip((1, 2, 5, 10, 20, 50), medians, strict=False)
        for draw, spread in enumerate((-2.0, 0.0, 9.0))
    ]


def test_wake_count_is_interpolated_on_log_n():
    found = wake_count(counts(0, 10, 20, 80, 95, 99), 50)
    assert found == pytest.approx(5 * 2 ** ((50 - 20) / (80 - 20)))  # half way in log n
    assert wake_count(counts(0, 10, 50, 80, 95, 99), 50) == pytest.approx(5)


def test_wake_count_at_the_ends():
    assert wake_count(counts(70, 80, 90, 95, 99, 99), 50) == 1
    assert wake_count(counts(0, 1, 2, 3, 4, 5), 50) == math.inf
    alone = cell("relearn", 60.0, poisons=0)
    assert wake_count([*counts(0, 1, 2, 3, 4, 5), alone], 50) == 0


def test_the_median_draw_counts_and_a_diverged_one_sleeps():
    lucky = [cell("count", asr, poisons=1, draw=i) for i, asr in enumerate((99.0, 0.0, 0.0))]
    assert wake_count(lucky, 50) == math.inf
    void = [Cell(arm="count", setting=Setting(poisons=1, draw=i)) for i in range(3)]
    assert wake_count(void, 50) == math.inf


@pytest.mark.parametrize(
    ("asr", "c_acc", "admissible"),
    [(19.9, 88.1, True), (20.0, 90.0, False), (5.0, 87.9, False), (None, None, False)],
)
def test_a_cell_is_admissible_where_every_clean_model_sleeps(asr, c_acc, admissible):
    own = [start(), cell(p_asr=99.0, poisons=3)]
    quiet = [start(), cell(p_asr=1.0, poisons=3)]
    other = [start(), cell(p_asr=asr, c_acc=c_acc, poisons=3)]
    assert judged(own, [quiet, other], LIMITS)[1].admissible is admissible
    assert judged(own, [quiet], LIMITS)[1].admissible is True
    assert judged(own, [[start()]], LIMITS)[1].admissible is None, "a cell that no one ran"


def test_a_setting_is_admissible_by_its_mean_over_draws():
    """The noise of one draw neither admits a setting nor shuts it out."""
    own = [start(), *(cell(p_asr=99.0, poisons=3, draw=draw) for draw in range(3))]

    def control(*c_acc):
        draws = [cell(p_asr=1.0, c_acc=at, poisons=3, draw=d) for d, at in enumerate(c_acc)]
        return [start(), *draws, draws[0].replace(arm="count")]  # two arms may share a draw

    def said(*c_acc):
        return {cell.admissible for cell in judged(own, [control(*c_acc)], LIMITS)[1:]}

    assert said(87.5, 88.5, 89.0) == {True}, "one draw loses 2.5 points, all three 1.7"
    assert said(88.5, 87.5, 87.0) == {False}, "one draw loses 1.5 points, all three 2.3"
    assert said(87.0, 88.6, 88.6) == {True}, "a shared draw counts once"
    assert said(90.0, 90.0, None) == {False}, "a draw that diverged"


def test_only_admissible_cells_of_a_working_model_count():
    fine = cell(p_asr=40.0, poisons=1).replace(admissible=True)
    grey = cell(p_asr=90.0, poisons=2).replace(admissible=False)
    wrecked = cell(p_asr=100.0, c_acc=79.0, poisons=3).replace(admissible=True)
    void = Cell(arm="count", setting=Setting(poisons=4), admissible=True)
    assert counted([start(), fine, grey, wrecked, void], LIMITS) == [fine]


def test_settings_are_ordered_by_their_mean_over_draws():
    """One lucky draw does not make a setting the worst."""
    lucky = [cell("count", asr, poisons=1, draw=i) for i, asr in enumerate((90.0, 0.0, 0.0))]
    steady = [cell("count", asr, poisons=2, draw=i) for i, asr in enumerate((50.0, 52.0, 48.0))]
    order = by_place([*lucky, *steady])
    assert [found.setting.poisons for _, found in order] == [2, 1]
    assert [mean for mean, _ in order] == [50, 30]


def test_of_equals_the_strongest_is_first():
    weak, strong = cell(poisons=5, epochs=1), cell(poisons=5, epochs=20)
    assert by_place([weak, strong])[0][1] == strong


def test_recovery_is_interpolated_between_epochs():
    paper = Setting(poisons=5, epochs=5)
    points = [(1, 10.0), (5, 30.0), (20, 90.0)]
    runs = [
        cell(curve=points[: i + 1], poisons=5, epochs=epoch) for i, (epoch, _) in enumerate(points)
    ]
    faster = cell(curve=[(1, 99.0)], poisons=5, epochs=1, factor=3.0)
    assert recovery([start(), *runs, faster], paper, 50) == pytest.approx(5 + 15 * 20 / 60)
    assert recovery([start(), *runs[:2]], paper, 50) == math.inf
    assert recovery([start(p_asr=60.0), *runs], paper, 50) == 0


def test_the_interval_is_student_s():
    found = interval([1.0, 2.0, 3.0], 0.95)
    assert found.mean == 2 and found.sd == 1
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert interval([7.0], 0.95).low is None


@pytest.mark.parametrize(
    ("o_asr", "above_clean", "above_ep", "word"),
    [
        (15.1, [0, 0, 0], [0, 0, 0], "not purified"),
        (3.0, [60, 70, 65], [60, 70, 65], "superficial"),
        (3.0, [20, 20, 20], [1, 1, 1], "superficial"),
        (3.0, [5, 90, 10], [0, 1, 0], "open"),  # above 20, but the interval holds 0
        (3.0, [90], [90], "open"),  # no interval from one draw
        (3.0, [2, 3, 1], [0, 1, -1], "holds"),
        (3.0, [2, 3, 1], [4, 5, 6], "open"),  # within 5 of EP, but not surely
        (3.0, [2, 3, 1], [-9, -8, -9], "holds"),  # sleeps deeper than EP
        (3.0, [2, 3, 1], [], "open"),
        (3.0, [], [], "open"),
    ],
)
def test_verdicts(o_asr, above_clean, above_ep, word):
    assert verdict(o_asr, above_clean, above_ep, limits=LIMITS).word == word


def test_what_wakes_far_beyond_clean_models_does_not_hold():
    """Whether the setting is admissible or not; one lucky draw of several is not enough."""
    strong = {"poisons": 5, "epochs": 20}
    own = [start(), cell(p_asr=96.0, **strong)]
    quiet, woken = [start(), cell(p_asr=6.0, **strong)], [start(), cell(p_asr=35.0, **strong)]
    assert beyond(own, [quiet, woken], LIMITS) == [(own[1].setting, 96.0, 35.0)]
    assert beyond(own, [quiet, [start(), cell(p_asr=77.0, **strong)]], LIMITS) == []
    assert beyond(own, [quiet, [start()]], LIMITS) == [], "a setting that a clean model did not see"
    assert beyond([start(), cell(p_asr=49.0, **strong)], [quiet], LIMITS) == []
    wrecked = [start(), cell(p_asr=96.0, c_acc=40.0, **strong)]
    assert beyond(wrecked, [quiet], LIMITS) == []
    lucky = [start(), *(cell(p_asr=p, draw=i, **strong) for i, p in enumerate((96.0, 2.0, 2.0)))]
    assert beyond(lucky, [quiet], LIMITS) == []
    held = verdict(3.0, [1, 2, 3], [0, 1, 0], limits=LIMITS, beyond="Why.")
    assert (held.word, held.reason) == ("open", "Why.")
    assert verdict(3.0, [60, 70, 65], [], limits=LIMITS, beyond="Why.").word == "superficial"


def test_a_query_that_wakes_keeps_a_model_from_holding():
    deaf = QueryResult(eps=8 / 255, p_asr=10.0, clean=8.0)
    awake = QueryResult(eps=16 / 255, p_asr=70.0, clean=12.0)
    assert verdict(3.0, [1, 2, 3], [0, 1, 0], [deaf], limits=LIMITS).word == "holds"
    said = verdict(3.0, [1, 2, 3], [0, 1, 0], [deaf, awake], limits=LIMITS)
    assert said.word == "open" and "gains 58 points" in said.reason
