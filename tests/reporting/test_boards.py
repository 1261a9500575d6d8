"""Boards of tables that were kept, and what of them is not to be judged."""

import pandas as pd
import pytest

from ppr_core.cli.main import main
from ppr_core.errors import DataError
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting import boards

RESULTS = ROOT / "notebooks" / "results"
KEPT = ["demo", "cifar10_scaled", "cifar10_small", "defenses"]


def evidence(name, study=None):
    plan = Plan(Study.load(ROOT / "params" / f"{study or name}.yaml"))
    return boards.read(plan, RESULTS / f"{name}.csv")


@pytest.mark.parametrize("name", KEPT)
def test_the_boards_that_are_kept_are_those_of_the_tables_beside_them(name):
    found = evidence(name)
    text = (RESULTS / f"{name}_claims.md").read_text()
    assert boards.printed(found, "claims") in text
    kept = (RESULTS / f"{name}_claims.csv").read_text()
    assert kept == boards.printed(found, "claims-csv") + "\n"
    assert f"--cells notebooks/results/{name}.csv" in text
    readme = (RESULTS / "README.md").read_text()
    assert f"{name}_claims.md" in readme


@pytest.mark.parametrize("name", [name for name in KEPT if name != "demo"])
def test_no_claim_about_qra_is_judged_by_the_older_control(name):
    board = pd.read_csv(RESULTS / f"{name}_claims.csv")
    numbers = board["claim"].str.split(".").str[0].astype(int)
    assert (board.loc[numbers.between(20, 27), "verdict"] == "not tested").all()


@pytest.mark.parametrize("name", ["cifar10_small", "defenses"])
def test_a_defense_that_may_doubt_itself_is_not_judged_without_its_diagnostics(name):
    found = evidence(name)
    doubting = ["bti", "bti_sam", "pam", "neural_cleanse", "mesa", "anp", "rnp"]
    doubting = found.cells["defense"].isin(doubting)
    assert set(found.cells.loc[doubting, "status"]) == {boards.UNKNOWN}
    assert set(found.cells.loc[~doubting, "status"]) == {"done"}
    assert not {"bti", "pam"} & set(found.done()["defense"])
    assert {"bti", "pam"} <= set(evidence("demo_two_threads", "demo").done()["defense"])


def test_a_table_of_defenses_has_a_board_or_a_word_why_not():
    readme = (RESULTS / "README.md").read_text()
    for path in RESULTS.glob("*.csv"):
        has_defenses = "defense" in path.read_text().partition("\n")[0].split(",")
        if has_defenses and path.stem not in KEPT:
            assert f"no board for `{path.name}`" in " ".join(readme.split()).lower()


def test_the_command(store, capsys):
    file, table = ROOT / "params" / "demo.yaml", RESULTS / "demo.csv"
    assert main(["report", str(file), "--cells", str(table), "--format", "claims"]) == 0
    assert capsys.readouterr().out.strip() in (RESULTS / "demo_claims.md").read_text()
    assert main(["report", str(file), "--cells", str(table), "--format", "tables"]) == 0
    assert "Table 11." in capsys.readouterr().out


def test_what_is_no_table_of_cells_is_refused(tmp_path):
    plan = Plan(Study.load(ROOT / "params" / "demo.yaml"))
    with pytest.raises(DataError, match="expected a table of cells, got .* \\(no such file\\)"):
        boards.read(plan, tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("attack,asr\nbadnet,1\n")
    with pytest.raises(DataError, match="without dataset, model"):
        boards.read(plan, tmp_path / "other.csv")
