"""The order of defenses by RA as published and in the worst case, and its pictures."""

from ppr_core.reactivation.cells import Cell, Setting
from ppr_core.reactivation.verdicts import Verdict
from ppr_core.reporting import frames, plots, ranking
from ppr_core.reporting.submissions import Examined
from tests.reporting.test_leaderboard import figures, submission

PAPER = 5


def cells(paper, wide):
    """RA as published in three draws, one wide setting, one that a clean model wakes in."""
    found = [Cell(arm="start", setting=Setting(epochs=0), p_asr=2.0, c_acc=88.0, admissible=True)]
    for draw, p_asr in enumerate(paper):
        setting = Setting(poisons=PAPER, epochs=5, draw=draw)
        found.append(Cell(arm="count", setting=setting, p_asr=p_asr, c_acc=88.0, admissible=True))
    strong = Setting(poisons=PAPER, epochs=20, optimizer="adam")
    found.append(Cell(arm="strength", setting=strong, p_asr=wide, c_acc=87.0, admissible=True))
    many = Setting(poisons=50, epochs=5)
    found.append(Cell(arm="count", setting=many, p_asr=77.0, c_acc=87.0, admissible=False))
    diverged = Setting(poisons=20, epochs=5)
    found.append(Cell(arm="count", setting=diverged, admissible=True))
    return found


def judged(name, paper, worst, **more):
    found = submission(
        name, runs=[figures(p_asr=worst, paper_poisons=PAPER, paper_p_asr=paper[1])], **more
    )
    runs = [Examined(seed=0, figures=found.runs[0].figures, cells=cells(paper, worst[0]))]
    return found.replace(runs=runs)


QUIET = judged("quiet", (4.0, 5.0, 6.0), (70.0, 75.0, 80.0))  # good as published, bad at worst
STEADY = judged("steady", (20.0, 22.0, 24.0), (30.0, 31.0, 32.0))
LOUD = judged("loud", (90.0, 91.0, 92.0), (95.0, 96.0, 97.0))
GATED = judged("gated", (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)).replace(
    verdict=Verdict(word="no verdict", reason="C-Acc")
)
ASLEEP = submission("rest", runs=[figures(p_asr=(), clean=(), ep=(), counts=[])])
FOUND = [QUIET, STEADY, LOUD, GATED, ASLEEP]


def test_an_order_has_means_and_the_reach_of_draws():
    frame = ranking.orders(FOUND).set_index("defense")
    assert list(frame.index) == ["quiet", "steady", "loud", "gated"], "not what was not purified"
    assert frame.loc["quiet", ["paper", "paper_low", "paper_high"]].tolist() == [5.0, 4.0, 6.0]
    assert frame.loc["quiet", ["worst", "worst_low", "worst_high"]].tolist() == [75.0, 70.0, 80.0]
    assert frame["gated"].tolist() == [False, False, False, True]


def test_a_swap_counts_where_no_draws_overlap():
    said, left = ranking.sentences(FOUND)
    assert "the order of 3 defenses changes: 1 of 3 pairs trade places, 1 of them by more" in said
    assert "(Kendall's tau 0.33; 0.33 to 0.33 by draw)" in said
    assert left.endswith("gated, rest.")
    near = judged("steady", (5.5, 5.6, 7.0), (69.0, 72.0, 74.0))
    [said] = ranking.sentences([QUIET, near, LOUD])
    assert "changes within the spread: 1 of 3 pairs trade places, 0 of them" in said
    assert "-" not in said, "no draw turns the order round"
    calm = judged("quiet", (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))
    assert "the order of 3 defenses stays" in ranking.sentences([calm, STEADY, LOUD])[0]
    assert "2 defenses with a verdict; an order takes 3" in ranking.sentences([QUIET, LOUD])[0]


def test_the_map_shows_the_worst_that_counts_and_greys_the_rest():
    figure = plots.battery_map([QUIET, LOUD])
    axis = next(axis for axis in figure.axes if axis.get_title() == "quiet, blended")
    texts = {(text.get_position(), text.get_text()) for text in axis.texts}
    arms, counts = plots.judged.ARMS, [0, 5, 50]
    at = {
        (arm, count): ((counts.index(count) + 0.5, arms.index(arm) + 0.5), value)
        for arm, count, value in (
            ("start", 0, "2"),
            ("count", 5, "5"),
            ("strength", 5, "70"),
            ("count", 50, "77"),
        )
    }
    assert texts == set(at.values())
    [grey] = [patch for patch in axis.patches if patch.get_facecolor()[:3] != (1, 1, 1)]
    assert grey.get_xy() == (2, arms.index("count")), "a clean model wakes there"


def test_what_was_left_out_or_not_calibrated_is_grey():
    run = QUIET.runs[0]
    left = Cell(arm="strength", setting=Setting(poisons=50, epochs=20), admissible=False)
    other = Setting(poisons=50, batch_norm="frozen")
    unknown = Cell(arm="batch norm", setting=other, p_asr=3.0, c_acc=88.0)
    one = QUIET.replace(runs=[run.replace(cells=[*run.cells, left, unknown])])
    [axis] = [a for a in plots.battery_map([one]).axes if a.get_title()]
    greys = {p.get_xy() for p in axis.patches if p.get_facecolor()[:3] != (1, 1, 1)}
    arms = plots.judged.ARMS
    assert greys == {(2, arms.index(arm)) for arm in ("count", "strength", "batch norm")}
    assert {"–", "3"} <= {text.get_text() for text in axis.texts}


def test_a_clean_model_that_clean_samples_wake_stands_at_none():
    none = QUIET.runs[0].figures.replace(clean_wake_count=0.0)
    one = QUIET.replace(runs=[QUIET.runs[0].replace(figures=none)])
    [axis] = plots.wake_counts([one]).axes
    [square] = [line for line in axis.lines if line.get_marker() == "s" and len(line.get_xdata())]
    assert list(square.get_xdata()) == [0.5]


def test_wake_counts_stand_beside_the_clean_models():
    figure = plots.wake_counts([QUIET, GATED, ASLEEP])
    [axis] = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["rest", "gated", "quiet"]
    dots = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata())]
    squares = [line for line in axis.lines if line.get_marker() == "s" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in dots] == [[1.5], [1.5]]
    assert [list(line.get_xdata()) for line in squares] == [[44.0], [44.0]]
    assert [dot.get_markerfacecolor() for dot in dots].count("none") == 1
    assert "not purified: nothing to wake" in [text.get_text() for text in axis.texts]


def test_order_changes_draws_a_line_a_defense():
    [axis] = plots.order_changes(FOUND).axes
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["quiet", "steady", "loud", "gated, a check failed"]
    drawn = [bar.lines[0].get_ydata().tolist() for bar in axis.containers]
    assert drawn[0] == [5.0, 75.0]


def test_verdicts_are_coloured_and_have_reasons():
    html = frames.verdicts(FOUND).to_html()
    assert html.count(frames.WOKEN.split(";")[0]) >= 1
    for word in ("no verdict", "P-ASR, worst case", "C-Acc"):
        assert word in html
    lines = ranking.table(FOUND).set_index("defense")
    assert lines.loc["rest", ["P-ASR, RA as published", "P-ASR, worst case"]].isna().all()
    assert lines.loc["quiet", "C-Acc lost"] == 2.0
