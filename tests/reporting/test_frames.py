"""Tables as notebooks show them: headings for people, nothing cut, nothing empty."""

import pandas as pd

from ppr_core.lab.section import Section
from ppr_core.reporting import frames, regression
from ppr_core.reporting.claims import NOT_TESTED

ROWS = pd.DataFrame(
    {
        "dataset": "shapes",
        "model": "resnet18",
        "poison_rate": 0.1,
        "attack": "blended",
        "defense": ["ep", "bti", "pam"],
        "rho": [None, None, 1.0],
        "oracle": [True, False, False],
        "seed": 0,
        "o_asr": [1.0, 2.0, 3.0],
        "p_asr": [2.0, 80.0, 9.0],
        "barrier": [30.0, 0.0, 10.0],
        "clean_barrier": 0.0,
        "t_star": [0.7, None, 0.8],
        "distance": [2.0, 3.0, None],
        "path_distance": [0.7, 0.1, None],
    }
)


def test_a_path_s_table_names_what_people_read():
    html = frames.paths(ROWS).to_html()
    for word in ("ep (oracle)", "bti", "of it, asleep", "t*", "80.00", ">-<"):
        assert word in html
    assert "pam" not in html, "no path was measured"
    assert "p_asr" not in html


def test_attacks_are_told_under_whole_words():
    table = pd.DataFrame([{"attack": "lc", "poisoned": 5, "psnr_train_db": 20.0}])
    table = table.assign(psnr_test_db=21.0, c_acc=90.0, asr=99.0, clean_model_asr=None, seconds=3)
    html = frames.victims(table).to_html()
    assert "ASR on the clean model" in html and "c_acc" not in html


def test_too_few_models_are_said_not_shown_as_an_empty_table():
    table = regression.explained(ROWS)
    assert frames.regressions(table).data == "Too few purified models for a regression."
    far, few = regression.asleep(ROWS)
    assert far.endswith("ep 0.70 (P-ASR 2 %), bti 0.10 (P-ASR 80 %).")
    assert "2 purified models are too few" in few
    many = pd.concat([ROWS.iloc[:2].assign(seed=seed) for seed in range(3)])
    assert "rank correlation with P-ASR -1.00 over 6 purified" in regression.asleep(many)[1]
    two = ROWS.iloc[:2].assign(defense=["fst", "bti"], oracle=False)
    two = [two.assign(seed=seed) for seed in range(5)]
    assert "R²" in frames.regressions(regression.explained(pd.concat(two))).to_html()


def test_the_scoreboard_folds_what_was_not_tested():
    board = pd.DataFrame(
        [
            {"claim": "1. RA wakes", "verdict": "yes", "grade": "seen", "ours": "80 < 90"},
            {"claim": "2. LC fails", "verdict": NOT_TESTED, "grade": "", "ours": "needs lc"},
        ]
    ).assign(paper="44 to 99", **{"left out": ["another scale", ""]})
    html = frames.claims(board).data
    tested, folded = html.split("1 claims that this study does not test")
    assert "80 &lt; 90<details>" in tested and frames.ASLEEP in tested
    assert "LC fails" in folded and "LC fails" not in tested


def test_settings_are_folded_and_complete(store, tiny_study):
    section = Section("02_retuning_attack", tiny_study.model_dump(exclude_unset=True))
    html = section.settings().data
    assert html.startswith("<details>") and "<td>dataset.train</td><td>300</td>" in html
    assert "..." not in html
    missing = section.drawn(ROWS.iloc[:0], lambda rows: None, "none", "transfer")
    assert "add `transfer: {}` to the `measures`" in missing.data
    section.close()
