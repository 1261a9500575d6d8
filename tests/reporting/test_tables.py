"""The paper's tables: its layout, its numbers, ours over them, and a reason for every dash."""

import pandas as pd
import pytest

from ppr_core.reporting import paper, tables

FIGURES = paper.FIGURES


def all_of_the_papers(**changes):
    """Cells that have exactly the paper's numbers, in its own setting."""
    same = [*paper.MEANINGS, "rho", "figure"]
    table = paper.numbers().groupby(same, dropna=False)["paper"].mean()
    rows = table.unstack().reset_index()
    return rows.assign(status="done", seed=0, level="paper", scale="", **changes)


EXACT = all_of_the_papers()


@pytest.fixture(scope="module")
def printed():
    return {table.number: table for table in tables.all_tables(EXACT)}


def test_the_papers_own_numbers_fill_every_table(printed):
    assert {n: t.filled for n, t in printed.items()} == {
        **{1: (200, 200), 2: (80, 80), 3: (136, 136), 4: (136, 136), 5: (136, 136)},
        **{6: (132, 132), 7: (98, 98), 8: (78, 78), 9: (78, 78), 10: (20, 20), 11: (40, 40)},
    }
    for table in printed.values():
        for label, ours, theirs in table.lines:
            for mine, other in zip(ours, theirs, strict=True):
                if other != "-":
                    near = pytest.approx(float(other), abs=0.45)  # its averages slip
                    assert float(mine) == near, (table.number, label)


def test_rows_and_columns_are_the_papers(printed):
    assert printed[3].heads[:3] == [("BadNet", "C-Acc"), ("BadNet", "ASR"), ("Blended", "C-Acc")]
    assert [label for label, _, _ in printed[11].lines] == [
        *("Attack O-Back", "BTI+SAM O-Rob", "BTI+SAM P-Rob", "PAM O-Rob", "PAM P-Rob"),
    ]
    labels = [label for label, _, _ in printed[1].lines]
    assert len(labels) == 20
    assert labels[:2] == ["ResNet18 5% O-Back", "ResNet18 5% O-Rob EP"]
    assert printed[1].heads[-1] == ("Avg", "ASR")
    assert printed[10].heads == [
        (f"rho {rho}", name) for rho in (0.1, 0.3, 0.5, 0.7, 0.9) for name in ("C-Acc", "ASR")
    ]
    by_label = {label: theirs for label, _, theirs in printed[10].lines}
    assert by_label["P-Rob"] == [
        "93.60",
        "33.29",
        "93.61",
        "10.06",
        "93.38",
        "2.69",
        "92.17",
        "2.62",
        "92.54",
        "0.30",
    ]
    for table in printed.values():
        assert max(map(len, table.text().splitlines())) <= 120, table.number


def test_the_papers_dashes_stay_dashes(printed):
    [line] = [line for line in printed[6].lines if line[0] == "ANP O-Rob"]
    assert (line[1][0], line[2][0]) == ("-a", "-")
    assert printed[6].notes == {"a": "a dash in the paper's table, too"}


def test_a_dash_says_why():
    rows = all_of_the_papers()
    main = rows["model"].eq("resnet18") & rows["poison_rate"].eq(0.05)
    rows.loc[main & rows["defense"].eq("bti"), "status"] = "failed: diverged"
    small = main & rows["defense"].eq("fst")
    rows.loc[small, ["level", "scale"]] = ["smaller", "width 16 (64)"]
    pam = main & rows["defense"].eq("pam") & rows["attack"].ne("blended")
    rows.loc[pam, "rho"] = 0.3
    rows = rows[~(main & rows["defense"].eq("ibau"))]
    three = next(t for t in tables.all_tables(rows) if t.number == 3)
    assert set(three.notes.values()) == {
        *("failed: diverged", "at another scale: width 16 (64)", tables.NOT_RUN),
        *("PAM at rho 0.3, the paper's is 0.9", "PAM at rho 0.3, the paper's is 0.5"),
    }
    assert three.filled == (136 - 3 * 16 - 3 * 4, 136)
    one = next(t for t in tables.all_tables(rows) if t.number == 1)
    assert "an average needs all of its attacks" in one.notes.values()
    assert "-a: " in three.text()


def test_ours_stand_over_theirs_with_the_spread():
    two = pd.concat([EXACT, EXACT.assign(seed=1, o_asr=EXACT["o_asr"] + 1.0)])
    three = next(t for t in tables.all_tables(two) if t.number == 3)
    [line] = [line for line in three.lines if line[0] == "EP O-Rob"]
    assert (line[1][1], line[2][1]) == ("1.4±0.7", "0.94")
    assert "| EP O-Rob | 93.6±0.0<br>93.57 | 1.4±0.7<br>0.94 |" in three.markdown()
    frame = three.frame()
    assert list(frame["who"][:2]) == ["ours", "paper"]
    assert frame.columns[3] == "BadNet C-Acc"
    for kind in ("text", "markdown", "csv"):
        assert "Blended" in tables.joined([three], kind)


def test_a_number_whose_row_fails_a_check_has_a_sign_and_so_have_averages_over_it():
    main = EXACT["model"].eq("resnet18") & EXACT["poison_rate"].eq(0.05)
    main &= EXACT["dataset"].eq("cifar10")
    row = main & EXACT["attack"].eq("ssba") & EXACT["defense"].isin(["pam", "bti"])
    failed = EXACT.assign(checks=row.map({True: "Too weak.", False: ""}))
    printed = {table.number: table for table in tables.all_tables(failed)}
    three, one = printed[3], printed[1]
    signed = {label: [t for t in ours if "†" in t] for label, ours, _ in three.lines}
    assert {label: len(texts) for label, texts in signed.items() if texts} == {
        "BTI O-Rob": 2,
        "BTI P-Rob": 2,
        "PAM O-Rob": 2,
        "PAM P-Rob": 2,
    }
    assert three.failed == ["ssba / bti, ssba / pam: no verdict. Too weak."]
    assert "† ssba / bti, ssba / pam: no verdict. Too weak." in three.text()
    assert max(map(len, three.text().splitlines())) <= 120
    [pam] = [ours for label, ours, _ in one.lines if label == "ResNet18 5% P-Rob PAM"]
    places = [head for head, text in zip(one.heads, pam, strict=True) if "†" in text]
    assert {group for group, _ in places} == {"SSBA", "Avg"}
    assert one.failed == ["ssba / pam: no verdict. Too weak."], "it has no row of BTI"
    assert printed[9].failed == [] and "†" not in printed[9].markdown()


def test_an_average_is_one_over_the_same_attacks_of_each_seed():
    average = paper.compare(EXACT)
    average = average[average["attack"] == "avg"]
    assert len(average) == 60
    off = average[average["difference"].abs() > 0.02]
    assert len(off) == 4, "the paper's own slips"
    fewer = paper.compare(EXACT[EXACT["attack"] != "lc"])
    assert set(fewer.loc[fewer["attack"] == "avg", "table"]) == {2}, "those have no LC"
    two = pd.concat([EXACT, EXACT.assign(seed=1, p_asr=EXACT["p_asr"] + 2.0)])
    both = paper.compare(two)
    both = both[(both["attack"] == "avg") & (both["figure"] == "p_asr")]
    assert both["spread"].to_list() == pytest.approx([2**0.5] * len(both))


def test_no_study_no_number():
    empty = EXACT.iloc[:0]
    assert all(t.filled[0] == 0 for t in tables.all_tables(empty))
