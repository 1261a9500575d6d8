"""Rows that fail a check have no verdict, in any table."""

import numpy as np
import pandas as pd
import pytest

from ppr_core.reactivation.gates import Evidence, Gates
from ppr_core.reporting import checks, findings, frames, results

NAMES = ("none", "clean", "ep", "ft")


def rows(c_acc=(90.0, 91.0, 89.0, 88.0), o_asr=(99.0, 2.0, 2.0, 3.0), p_asr=(None, 4.0, 5.0, 80.0)):
    values = zip(NAMES, c_acc, o_asr, p_asr, strict=True)
    return [
        {"attack": "blended", "defense": name, "seed": 0, "o_c_acc": a, "o_asr": b, "p_asr": c}
        for name, a, b, c in values
    ]


def failed(made, doubts=((), (), (), ()), classes=10):
    return dict(zip(NAMES, checks.failed(made, [list(d) for d in doubts], classes), strict=True))


def table(made, said):
    other = {"rho": None, "oracle": False, "status": "done", "p_c_acc": 88.0, "seconds": 1.0}
    return pd.DataFrame([{**row, **other, "checks": said[row["defense"]]} for row in made])


def test_sound_rows_pass():
    assert set(failed(rows()).values()) == {""}
    assert "†" not in results.markdown_table(table(rows(), failed(rows())))


@pytest.mark.parametrize(
    ("made", "says", "who"),
    [
        ({"o_asr": (80.0, 2.0, 2.0, 3.0)}, "was not implanted", NAMES),
        ({"o_asr": (0.0, 2.0, 2.0, 3.0)}, "ASR is 0.0 %", NAMES),
        ({"c_acc": (80.0, 91.0, 89.0, 88.0)}, "its clean twin's", NAMES),
        ({"c_acc": (12.0, 11.0, 12.0, 12.0)}, "near chance", NAMES),
        ({"p_asr": (None, 50.6, 5.0, 80.0)}, "brings the clean model to 50.6 %", NAMES),
        ({"c_acc": (90.0, 91.0, 89.0, 70.0)}, "costs C-Acc: 70.0 %", ("ft",)),
    ],
)
def test_each_check_gates_the_rows_it_is_about(made, says, who):
    said = failed(rows(**made))
    assert [name for name in NAMES if says in said[name]] == list(who)


def test_a_doubt_about_the_inversion_gates_its_own_row():
    said = failed(rows(), ((), (), (), ("uncertain label: it has only 30% of the votes",)))
    assert "doubts its own work" in said["ft"] and said["ep"] == ""


def test_the_decision_is_that_of_the_gates():
    made = rows(o_asr=(50.0, 2.0, 2.0, 3.0), c_acc=(90.0, 91.0, 89.0, 70.0))
    evidence = Evidence(
        classes=10,
        victim_c_acc=90.0,
        victim_asr=50.0,
        clean_c_acc=91.0,
        clean_p_asr=4.0,
        c_acc=70.0,
    )
    assert failed(made)["ft"] == checks.MARK.join(Gates()(evidence))


def test_a_row_without_figures_and_the_clean_model_s_defenses_are_not_checked():
    made = rows(c_acc=(50.0, 91.0, None, 50.0), o_asr=(10.0, 2.0, None, 3.0))
    assert failed(made)["ep"] == ""
    assert checks.failed([{**row, "attack": "none"} for row in made], [[]] * 4, 10) == [""] * 4


def test_a_gated_row_has_no_verdict_in_text_findings_and_notebooks():
    made = rows(c_acc=(90.0, 91.0, 89.0, 70.0))
    frame = table(made, failed(made))
    text = results.text_table(frame)
    line = next(one for one in text.split("\n") if one.startswith("blended") and " ft " in one)
    assert line.endswith("gated")
    assert "blended / ft: no verdict. The defense costs C-Acc: 70.0 %" in text
    [red, found, *_] = findings.of_robustness(frame)
    assert red.startswith("blended / ft: no verdict.")
    assert "1 of 1 defenses" in found, "a gated defense counts as purified"
    head, *lines = results.markdown_table(frame).split("\n\n")
    assert [line for line in head.split("\n") if "†" in line] == [
        line for line in head.split("\n") if line.startswith("| blended | ft")
    ]
    [told] = lines
    assert told.startswith("- † blended / ft: no verdict. The defense costs C-Acc: 70.0 %")
    html = frames.readable(frame).to_html()
    assert html.count("no verdict") == 1


def test_where_nothing_was_implanted_nothing_is_found():
    made = rows(o_asr=(0.0, 0.0, 0.0, 0.0))
    told = findings.of_robustness(table(made, failed(made)))
    assert len(told) == 1 and "was not implanted" in told[0]
    assert "blended / none, blended / clean, blended / ep, blended / ft" in told[0]


def test_one_gated_seed_leaves_no_verdict_over_all():
    made = rows(c_acc=(90.0, 91.0, 89.0, 70.0))
    second = [{**row, "seed": 1} for row in rows()]
    said = dict.fromkeys(NAMES, "")
    both = pd.concat([table(made, failed(made)), table(second, said)], ignore_index=True)
    summary = results.summary(both).set_index("defense")
    assert summary.loc["ft", "checks"] and not summary.loc["ep", "checks"]


def test_a_table_kept_without_checks_reads_as_passed():
    made = table(rows(), dict.fromkeys(NAMES, ""))
    assert checks.listed(made.drop(columns="checks")) == []
    assert checks.listed(made.assign(checks=np.nan)) == []
