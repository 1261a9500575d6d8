import csv
import io
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ppr_core.attacks import ATTACKS
from ppr_core.cli import evaluate, servers
from ppr_core.cli.main import main
from ppr_core.data import DATASETS
from ppr_core.defenses import DEFENSES
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.models import MODELS
from ppr_core.reporting import claims
from tests.conftest import TINY_STUDY


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_STUDY))
    return str(path)


@pytest.mark.parametrize(
    ("kind", "registry"),
    [("attacks", ATTACKS), ("defenses", DEFENSES), ("datasets", DATASETS), ("models", MODELS)],
)
def test_list_gives_one_row_a_method(kind, registry, capsys):
    assert main(["list", kind, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == list(registry)
    assert all(row["source"] for row in rows)
    assert main(["list", kind]) == 0
    assert all(name in capsys.readouterr().out for name in [next(iter(registry))])


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("asked", [["defenses"], ["measures"], ["models"], ["defenses", "pam"]])
def test_list_fits_a_terminal(asked, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["list", *asked]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    if asked == ["defenses"]:
        assert all(line.split()[0] in DEFENSES for line in lines[1:-2] if line[:1].strip())
        assert {line.split()[0] for line in lines if line[:1].strip()} >= set(DEFENSES)
        assert "ppr list KIND NAME" in text
        needs = lines[0].index("needs")
        shown = {line.split()[0]: line[needs:].split() for line in lines if line[:1].strip()}
        assert shown["anp"][:2] == ["batch", "norm"] and shown["ep"][:2] == ["any", "network"]
        assert shown["tsc"][:1] == ["layers"], "what its own check asks"
    elif asked[0] != "defenses":
        assert "needs" not in lines[0].split()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["defenses", "pam"], ["rho", "tuning.lr"]),
        (["measures", "retuning"], ["poisoned", "schedule.epochs"]),
        (["measures", "triggers"], ["white_box.eps", "queries.iterations"]),
    ],
)
def test_list_one_method_gives_its_settings(arguments, settings, capsys):
    assert main(["list", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(settings) <= {line.split()[0] for line in lines if line}
    told = "needs of a model, besides forward and parameters: features and head"
    assert (told in lines) == (arguments == ["defenses", "pam"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "attacks", "badnets"], "did you mean 'badnet'"),
        (["study", "none.yaml"], "no such file"),
        (["run", "09_none"], "01_backdoors, 02_retuning_attack"),
        (["run", "01_backdoors", "-p", "poison_rat=1"], "did you mean 'poison_rate'"),
        (["run", "01_backdoors", "-p", "poison_rate"], "expected KEY=VALUE"),
        (["ui", "--port", "65536"], "expected a port from 1 to 65535, got 65536"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(arguments, message, capsys, store):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert store.search() == [], "a run was opened before the mistake was found"


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("poison_rate=2", "expected less than or equal to 1, got 2"),
        ("poison_rat=0.1", "did you mean 'poison_rate'"),
        ("training.epochs=many", "expected a valid integer, got 'many'"),
        ("poison_rate.x=1", "to be a group"),
        ("notebooks=[99_none]", "expected a notebook, got '99_none'"),
    ],
)
def test_overrides_are_checked_before_anything_runs(pair, message, study_file, capsys, store):
    assert main(["study", study_file, "-p", pair]) == 2
    assert message in capsys.readouterr().err
    assert store.search() == []


@pytest.mark.parametrize("names", [["mine:FT"], ["mine:Own", "other:Own"]])
def test_a_users_defense_takes_no_others_place(names, study_file, capsys, store):
    given = [word for name in names for word in ("--defense", name)]
    assert main(["study", study_file, *given, "--dry-run"]) == 2
    assert "expected a class of another name" in capsys.readouterr().err


def test_a_users_class_keeps_the_case_of_its_name(study_file, tmp_path, capsys, store):
    Path(study_file).with_name("mine.py").write_text(OWN_DEFENSE)
    given = ["--defense", f"{tmp_path}/mine.py:MyDef"]
    rows = ["report", study_file, *given, "--format", "csv", "-p", "defenses.MyDef.strength=2"]
    assert main(rows) == 0, capsys.readouterr().err
    assert "MyDef" in [
        row["defense"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))
    ]
    assert main(["study", study_file, *given, "--dry-run"]) == 0
    assert "compute  badnet/MyDef purified s0" in capsys.readouterr().out
    assert main(["study", study_file, *given, "-p", "defenses.mydef.strength=2", "--dry-run"]) == 2
    assert "expected -p defenses.MyDef.KEY=VALUE, as the class is" in capsys.readouterr().err
    values = {**TINY_STUDY, "defenses": {"mydef": {"method": given[1]}}}  # as the file calls it
    Path(study_file).write_text(yaml.safe_dump(values))
    assert main(["study", study_file, *given, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("mydef purified") == 1


OWN_DEFENSE = """
from ppr_core import Defense, Field
class MyDef(Defense):
    "Do nothing."
    source = "a test"
    strength: int = Field(1, description="a number")
"""


def test_report_as_csv_has_a_row_a_cell(study_file, capsys, store):
    assert main(["report", study_file, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    wanted = "dataset,model,poison_rate,attack,defense,seed,rho,o_c_acc,o_asr,p_c_acc,p_asr"
    assert set(wanted.split(",")) <= set(rows[0])
    assert [row["defense"] for row in rows] == ["none", "clean", "ep", "ft"]
    assert {row["status"] for row in rows} == {"not run"}


def test_report_takes_further_studies_for_the_claims(study_file, tmp_path, capsys, store):
    rare = tmp_path / "rare.yaml"
    rare.write_text(yaml.safe_dump({**TINY_STUDY, "name": "rare", "poison_rate": 0.01}))
    assert main(["report", study_file, "--also", str(rare)]) == 0
    out = capsys.readouterr().out
    assert "decided: none; indicated: none; seen: none" in " ".join(out.split())
    plans = [Plan(Study.load(path)) for path in (study_file, rare)]
    evidence = claims.gather(plans[0], store, plans[1:])
    assert set(evidence.cells["poison_rate"]) == {0.1}
    assert set(evidence.further["poison_rate"]) == {0.01}
    assert set(evidence.further["ra_poisons"]) == {3}
    assert main(["report", study_file, "--also", "none.yaml"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_dry_run_lists_the_stages(study_file, capsys, store):
    assert main(["study", study_file, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "compute  badnet backdoored s0" in lines
    assert store.search() == []


def test_a_study_from_the_command_line_to_its_report(study_file, capsys, store):
    assert main(["study", study_file, "--no-notebooks"]) == 0
    out = capsys.readouterr().out
    assert "badnet       ep (oracle)" in out
    html = (store.folder / "reports" / "tiny.html").read_text()
    assert "http" not in html.replace("http-equiv", ""), "a report needs nothing beside itself"
    assert "ep (oracle)" in html
    assert len(store.search("tiny", kind="cell")) == 4
    [run] = store.search("tiny", kind="report")
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("The report of this study") and "no verdict" in note


def test_report_writes_the_page_that_it_says_and_keeps_one(study_file, capsys, store):
    for _ in range(2):
        assert main(["report", study_file]) == 0
    path = capsys.readouterr().out.splitlines()[-1].removeprefix("report   ")
    assert "tiny: is the purified model really safe?" in Path(path).read_text()
    assert len(store.search("tiny", kind="report")) == 1


def test_models_that_do_not_fit_are_refused_before_anything_is_computed(
    study_file, tmp_path, capsys, store
):
    weights = tmp_path / "a.safetensors"
    save_file({"other": torch.zeros(1)}, weights)
    command = ["evaluate", "--attack", "badnet", "--backdoored", str(weights)]
    assert main([*command, "--purified", str(weights), "-f", study_file]) == 2
    assert str(weights) in capsys.readouterr().err
    assert store.search() == []


def test_a_port_in_use_gives_the_next_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert servers.free_port(port) > port


def test_a_core_without_the_lab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert main(["list", "attacks"]) == 2
    assert "expected the package pandas, got none; pip install" in capsys.readouterr().err


def test_doctor_names_the_store_and_the_threads(capsys, store):
    main(["doctor"])
    out = capsys.readouterr().out
    assert store.uri in out
    assert "OMP_WAIT_POLICY" in out


def test_doctor_notices_threads_that_spin(capsys, store, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main(["doctor"]) == 1
    assert "BAD  threads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "dataset", "model"),
    [
        ([], TINY_STUDY["dataset"], TINY_STUDY["model"]),
        (["--dataset", "shapes"], TINY_STUDY["dataset"], TINY_STUDY["model"]),
        (["--model", "resnet50"], TINY_STUDY["dataset"], {"name": "resnet50"}),
        (["--dataset", "cifar100", "-p", "model.width=8"], {"name": "cifar100"}, {"width": 8}),
    ],
)
def test_evaluate_takes_what_is_named_before_what_a_file_says(
    arguments, dataset, model, study_file, monkeypatch, tmp_path
):
    monkeypatch.setattr(evaluate, "_evaluate", lambda given: taken.append(given) or 0)
    taken, weights = [], tmp_path / "a.pt"
    weights.touch()
    command = ["evaluate", "--attack", "badnet", "--backdoored", str(weights)]
    assert main([*command, "--purified", str(weights), "-f", study_file, *arguments]) == 0
    label, plan = evaluate.resolve(*taken)
    study = plan.study
    assert label == "badnet"
    assert study.name == "evaluate", "the file's study keeps its cells and its report"
    assert study.dataset == dataset
    assert model.items() <= study.model.items()
