import pytest

from ppr_core.defenses.dist_reg import TOO_FAST
from ppr_core.defenses.parts.masks import UNREADY
from ppr_core.reactivation.gates import Evidence, Gates, ratio

FINE = Evidence(
    classes=10,
    victim_c_acc=90.0,
    victim_asr=99.0,
    clean_c_acc=91.0,
    clean_p_asr=4.0,
    c_acc=88.0,
    warnings=[],
    moved=0.8,
    wrecked=0.1,
)


def test_a_sound_row_passes():
    assert Gates()(FINE) == []
    assert Gates()(Evidence()) == [], "what is not known is not checked"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"victim_c_acc": 14.9, "c_acc": 14.9}, "near chance (10.0 %): architecture or norm"),
        ({"victim_c_acc": 80.9}, "far below its clean twin's (91.0 %): architecture or norm"),
        ({"victim_asr": 89.9}, "ASR is 89.9 %, below 90 %: the backdoor was not implanted"),
        ({"clean_p_asr": 50.6}, "brings the clean model to 50.6 % ASR: it implants"),
        ({"warnings": ["saturated mask: its mean is 0.99"]}, "doubts its own work (satur"),
        ({"warnings": ["uncertain label: it has only 30%"]}, "doubts its own work (uncert"),
        ({"warnings": ["unready generator: it starts at 0.4"]}, "doubts its own work (unread"),
        ({"warnings": [UNREADY]}, "doubts its own work (unready masks: no thr"),
        ({"warnings": [TOO_FAST]}, "doubts its own work (unready rate: the first ep"),
        ({"c_acc": 79.9}, "costs C-Acc: 79.9 % after it, 90.0 % before, more than 10 points"),
        ({"moved": 0.01}, "moves this model's weights 0.01 times as far as a clean model's"),
        ({"wrecked": 0.75}, "breaks this model in 75% of the cells"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_check_says_one_sentence(changed, says):
    said = Gates()(FINE.replace(**changed))
    assert len(said) == 1 and says in said[0]
    assert said[0].endswith((".", "?"))


@pytest.mark.parametrize(
    "changed",
    [
        {"victim_c_acc": 81.0, "c_acc": 80.0},
        {"victim_asr": 90.0},
        {"clean_p_asr": 19.9},
        {"c_acc": 80.0},
        {"moved": 0.2},
        {"wrecked": 0.5},
        {"warnings": ["short search: 93% of its steps only lowered the image MSE"]},
    ],
)
def test_thresholds_are_the_last_that_pass(changed):
    assert Gates()(FINE.replace(**changed)) == []


def test_the_median_of_ratios():
    assert ratio([1.0, 2.0, 30.0], [1.0, 1.0, 1.0]) == 2
    assert ratio([1.0], [0.0]) is None
