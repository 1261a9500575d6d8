"""Made-up models whose cells are chosen to get a better verdict than they deserve."""

import pytest
from torch import nn

from ppr_core.reactivation.battery import Battery
from ppr_core.reactivation.beside import Control
from ppr_core.reactivation.cells import Cell, Setting
from ppr_core.reactivation.examination import examine
from ppr_core.reactivation.gates import Evidence
from ppr_core.reactivation.summary import combine

BATTERY = Battery(retuning={"poisoned": 5})
LIMITS = BATTERY.limits
ASLEEP = (2.0, 91.5)


class Made(nn.Module):
    """A model that is known by its (P-ASR, C-Acc) as it came and after each setting."""

    def __init__(self, after=lambda setting: ASLEEP, start=(2.0, 92.0)):
        super().__init__()
        self.after, self.start = after, start


class Bench:
    """Looks up what the battery's own bench measures."""

    pools = {"exact": None, "weak": None}

    def start(self, model):
        p_asr, c_acc = model.start
        return Cell(arm="start", setting=Setting(epochs=0), p_asr=p_asr, c_acc=c_acc)

    def run(self, model, arm, setting, epochs):
        cells = []
        for count in epochs:
            own = setting.replace(epochs=count)
            p_asr, c_acc = model.after(own)
            curve = [*(cells[-1].curve if cells else []), (count, p_asr)]
            made = {"arm": arm, "setting": own, "moved": 1.0, "curve": curve}
            cells.append(Cell(p_asr=p_asr, c_acc=c_acc, **made))
        return cells


def judge(own, clean=None, ep=None):
    """Return the cells and figures of a model beside two clean ones and EP's."""
    clean, ep = clean or Made(start=(0.5, 92.0)), ep or Made(start=(0.5, 92.0))
    evidence = Evidence(classes=10, victim_c_acc=own.start[1], victim_asr=99.0)
    controls = [Control(clean), Control(clean)]
    return examine(BATTERY, Bench(), own, controls, ep=Control(ep), evidence=evidence)


def where(condition, found, other=ASLEEP):
    """Return what a model is after a setting: one pair where a condition holds, else another."""
    return lambda setting: found if condition(setting) else other


def long(setting):
    return setting.poisons > 0 and setting.epochs >= 20


def fast(setting):
    return setting.poisons > 0 and setting.factor == 3


IMPLANTED = Made(where(long, (21.0, 91.5)), start=(0.5, 92.0))


def test_what_sleeps_everywhere_holds():
    cells, figures = judge(Made())
    assert (figures.verdict.word, figures.beyond, figures.ep_o_asr) == ("holds", "", 0.5)
    assert all(cell.p_asr is not None for cell in cells)


def awake_at_length(*fresh):
    """A model that wakes at 20 epochs, where clean ones do, and has such fresh draws."""

    def after(setting):
        if long(setting):
            return 99.0, 91.0
        return 2.0 + (fresh[setting.draw - 3] if setting.draw >= 3 else 0.0), 91.0

    return Made(after)


def test_what_wakes_far_beyond_clean_models_does_not_hold_over_seeds_either():
    """Each seed is open by the spread of its draws; their means lie together."""
    draws = [(0, 0, 6.0), (0, 6.0, 0), (6.0, 0, 0)]
    seeds = [judge(awake_at_length(*one), IMPLANTED)[1] for one in draws]
    assert [one.verdict.word for one in seeds] == ["open"] * 3
    said = combine(seeds, LIMITS)
    assert said.word == "open" and "bring it to 99 %" in said.reason
    quiet = [judge(Made(lambda s, i=i: (2.0 + (s.draw == i), 91.5)))[1] for i in (3, 4, 5)]
    assert combine(quiet, LIMITS).word == "holds", "several seeds may say what one cannot"


def test_no_verdict_over_seeds_is_better_than_a_seed_allows():
    asleep, woken = judge(Made())[1], judge(Made(where(fast, (99.0, 91.0))))[1]
    above = asleep.replace(p_asr=[9.0, 9.0, 9.0])
    several = [asleep] * 19
    assert woken.verdict.word == "superficial"
    assert combine([asleep, asleep], LIMITS).word == "holds"
    for bad, why in ((woken, "worst admissible P-ASR"), (above, "7 [7, 7] points above EP's")):
        said = combine([*several, bad], LIMITS)
        assert said.word == "open", bad
        assert why in said.reason or "not surely within" in said.reason
    alone = asleep.replace(ep_o_asr=60.0)
    assert combine([asleep, asleep, alone], LIMITS).word == "open"


def test_what_was_left_out_is_run_before_a_model_holds():
    """Clean models wake there; this one so much further that it does not hold."""
    clean = Made(where(fast, (21.0, 91.5)), start=(0.5, 92.0))
    cells, figures = judge(Made(where(fast, (99.0, 91.0))), clean)
    assert figures.verdict.word == "open" and "sgd x3" in figures.beyond
    left = [cell for cell in cells if cell.arm == "strength" and fast(cell.setting)]
    assert {(cell.p_asr, cell.admissible) for cell in left} == {(99.0, False)}
    assert judge(Made(where(fast, (30.0, 91.0))), clean)[1].verdict.word == "holds"
    woken, figures = judge(Made(where(lambda s: s.poisons >= 10, (99.0, 91.0))), clean)
    assert figures.verdict.word == "superficial"
    assert any(cell.p_asr is None for cell in woken), "run, though it changes nothing"


@pytest.mark.parametrize("p_asr", [50.0, None])
def test_a_model_that_breaks_where_it_wakes_does_not_hold(p_asr):
    def breaks(setting):
        return setting.poisons >= 10 or fast(setting) or long(setting)

    found = (p_asr, None if p_asr is None else 81.0)
    _, figures = judge(Made(where(breaks, found)))
    assert figures.gates == [] and figures.verdict.word == "open"
    assert ("diverge" if p_asr is None else "C-Acc breaks down") in figures.beyond
    like = Made(where(breaks, found), start=(0.5, 92.0))
    assert judge(Made(where(breaks, (9.0, 81.0))), ep=like)[1].verdict.word == "holds"


def test_errors_that_the_tuning_does_not_make_are_not_taken_off():
    """C-Acc 60 of 100 classes: 88 % of stamped images in the target are the trigger's work."""
    own = Made(where(long, (88.0, 60.0), (2.0, 60.0)), start=(2.0, 60.0))
    clean = Made(where(long, (21.0, 61.5), (2.0, 61.5)), start=(0.5, 62.0))
    _, figures = judge(own, clean, Made(lambda s: (2.0, 60.0), start=(0.5, 60.0)))
    assert figures.verdict.word == "open" and "88 %" in figures.beyond
    wrecked = Made(where(long, (88.0, 20.0), (2.0, 60.0)), start=(2.0, 60.0))
    assert judge(wrecked, clean)[1].beyond == ""


def test_wake_counts_are_those_of_admissible_cells():
    """The clean models break in a relearning cell, and wake at the counts from 10 on."""

    def many(setting):
        return setting.poisons >= 10

    def harsh(setting):
        return setting.poisons == 0 and setting.factor == 3

    def own(setting):
        if harsh(setting):
            return 95.0, 30.0
        return (91.0 if many(setting) else 30.0 if setting.poisons == 5 else 2.0), 91.0

    def clean(setting):
        return (2.0, 88.0) if harsh(setting) else (30.0 if many(setting) else 2.0, 91.5)

    _, figures = judge(Made(own), Made(clean, start=(0.5, 92.0)))
    assert figures.verdict.word == "superficial"
    assert figures.wake_count is None, "no admissible cell reaches 50 %"
    assert figures.counts == [(1, 2.0), (2, 2.0), (5, 30.0)]
    assert figures.clean_counts[-1] == (50, 30.0)


def test_a_worst_setting_that_cannot_be_tried_anew_does_not_leave_the_next_one_to_decide():
    def most(setting):
        return setting.poisons == 50

    def woken(p_asr):  # in its fresh draws alone
        return Made(where(lambda s: most(s) and s.draw >= 3, (p_asr, 91.5)), start=(0.5, 92.0))

    assert judge(Made(where(most, (49.0, 91.0))), woken(21.0))[1].verdict.word == "superficial"
    clean = woken(39.0)  # over all of them 20.5
    _, figures = judge(Made(where(most, (49.0, 91.0))), clean)
    assert figures.verdict.word == "open" and "50 poisons" in figures.beyond
    assert figures.worst.poisons < 50
    assert judge(Made(where(most, (6.0, 91.0))), clean)[1].verdict.word == "holds", "as EP's"
    voids = Made(lambda s: (49.0, 91.0) if most(s) and s.draw < 3 else ((None,) * 2))
    plain = Made(lambda s: voids.after(s) if most(s) else ASLEEP)
    assert judge(plain)[1].verdict.word == "open", "its fresh draws diverge"


def test_one_lucky_setting_does_not_hide_a_steady_one():
    """The worst of the grid is one draw that fresh ones refute; the next wakes in all of its."""

    def lucky(steady):
        def own(setting):
            if fast(setting) and setting.optimizer == "adam" and setting.epochs == 5:
                return (48.0 if setting.draw == 0 else 2.0), 91.0
            return (steady if setting.poisons == 20 else 2.0), 91.0

        return Made(own)

    _, figures = judge(lucky(45.0))
    assert figures.worst.optimizer == "adam" and figures.p_asr == [2.0] * 3
    assert figures.verdict.word == "open" and "20 poisons" in figures.beyond
    assert judge(lucky(15.0))[1].verdict.word == "holds"
    woken = Made(lucky(45.0).after, start=(0.5, 92.0))
    assert judge(lucky(45.0), ep=woken)[1].verdict.word == "holds", "EP does so as well"


@pytest.mark.parametrize("start", [60.0, 2.0])
def test_a_broken_ep_lets_nothing_hold(start):
    ep = Made(lambda s: (90.0, 91.0), start=(start, 92.0))
    _, figures = judge(Made(lambda s: (21.0, 91.0)), ep=ep)
    assert figures.verdict.word == "open" and "no control" in figures.verdict.reason
    asleep = Made(start=(start, 92.0))
    assert judge(Made(), ep=asleep)[1].verdict.word == ("open" if start > 15 else "holds")


def test_what_is_superficial_at_every_seed_is_superficial():
    seeds = [
        judge(Made(where(lambda s: s.poisons >= 5, (woken, 91.0))))[1]
        for woken in (25.0, 60.0, 99.0)
    ]
    assert [one.verdict.word for one in seeds] == ["superficial"] * 3
    said = combine(seeds, LIMITS)
    assert said.above_clean.low < 0, "as seeds go, the interval reaches 0"
    assert said.word == "superficial" and "23 to 97 points" in said.reason
    asleep = judge(Made())[1]
    assert combine([*seeds, asleep], LIMITS).word == "open"
