"""`ppr paper` on a paper of two tiny tables: shared, resumed, cut short, failed, dropped."""

import re
import shlex

import pytest
import yaml

from ppr_core.cli.main import main
from ppr_core.cli.paper import FILE
from ppr_core.cli.study import read
from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.dropping import dropped
from ppr_core.lab.graph import Setting
from ppr_core.lab.places import ROOT, study_file
from ppr_core.lab.plan import Plan
from ppr_core.lab.series import Series, adding, shares
from ppr_core.lab.study import Study
from tests.conftest import TINY_STUDY
from tests.test_params import FIGURES

SMALL = {"query": {"clean": 20, "poisoned": 20, "width": 8, "schedule": {"epochs": 1}}}
BOARD = "claims of the paper, by grade"


FAILING = """
from ppr_core.defenses import Defense

class Fails(Defense):
    def run(self, model, data, *, rng):
        raise RuntimeError("no luck")
"""


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """Three tables, the second with a defense more, the third with one that fails; a figure."""
    ft, ep = ({name: {"schedule": {"epochs": 1}}} for name in ("ft", "ep"))
    bad = {"bad": {"method": "failing:Fails"}}
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = {"changes": {"model.width": {"model.width": 2}}, "image_us": {"resnet18": 1000}}
    series = {
        "name": "paper",
        "parts": {
            "table01": [{"base": "one.yaml"}],
            "table02": [{"base": "one.yaml", "defenses": {**bad, **ft}, "measures": {}}],
            "table03": [{"base": "one.yaml", "defenses": {**ft, **ep}, "measures": {}}],
            "figure01": [{"base": "one.yaml", "measures": {}}],
        },
        "scales": {"small": small},
    }
    one = {**TINY_STUDY, "defenses": ft, "measures": SMALL}
    for name, values in (("one.yaml", one), ("paper.yml", series)):
        (tmp_path / name).write_text(yaml.safe_dump(values, sort_keys=False))
    return tmp_path / "paper.yml"


def counts(out):
    """Part -> stages, shared, cached, to do."""
    rows = [line.split() for line in out.splitlines()]
    return {row[0]: [*map(int, row[1:5])] for row in rows if len(row) == 8 and row[1].isdigit()}


def dry(paper, capsys, *words):
    capsys.readouterr()
    assert main(["paper", "-f", str(paper), "--dry-run", *words]) == 0
    return counts(capsys.readouterr().out)


def computed(out):
    return re.findall(r"^ *\d+%  (.+ s0) ", out, re.MULTILINE)


def test_a_paper_shares_stages_goes_on_and_ends_in_one_report(paper, store, capsys, monkeypatch):
    before = dry(paper, capsys)
    assert before["table01"] == [7, 0, 0, 7]  # clean twice, victim; ft, RA on it and on clean, QRA
    assert before["table03"] == [7, 5, 0, 2], "EP, and RA on it"
    assert before["figure01"] == [5, 5, 0, 0]
    assert before["all"] == [11, 0, 0, 11]

    stop = engine._Bar.end

    def killed(bar, stage, *told):
        stop(bar, stage, *told)
        if stage.kind == "purified":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._Bar, "end", killed)
        assert main(["paper", "-f", str(paper)]) == 130
    first = computed(capsys.readouterr().out)
    assert dry(paper, capsys)["all"] == [11, 0, len(first), 11 - len(first)]
    assert main(["paper", "-f", str(paper)]) == 1, "one table fails"
    told = capsys.readouterr()
    assert "failed   table02: badnet/bad purified s0: RuntimeError: no luck" in told.err
    both = [*first, *computed(told.out)]
    assert sorted(both) == sorted(set(both)), "each once"
    assert "badnet/ep retuned s0" in both, "the table after it goes on"
    assert dry(paper, capsys)["all"] == [11, 0, 9, 2]
    assert "figure01: study" not in told.out, "it adds nothing"
    assert BOARD in " ".join(told.out.split())
    assert all(f"\nTable {n}." in told.out for n in range(1, 12))
    folder = store.folder / "reports" / "paper"
    html = (folder / "index.html").read_text()
    for text in ("table01, table02, table03.", "Figure 1. RA: ASR", "no luck", "drawn images"):
        assert text in html
    assert {path.name for path in folder.iterdir()} >= {"cells.csv", "claims.md", "tables.md"}
    [run] = store.search("paper", kind="report")
    assert (store.artifacts(run.info.run_id) / "index.html").is_file()


def test_a_scale_is_laid_over_the_studies_and_the_parts_asked_for(paper, store, capsys):
    assert list(dry(paper, capsys, "--only", "table03")) == ["table03", "all"]
    series = Series.load(paper)
    [entry] = series.entries(paper.parent, ["figure01"], "small", ["seeds=[3]"])
    assert entry.plan.study.name == "figure01_small"
    assert (entry.plan.study.model["width"], entry.meant.study.model["width"]) == (2, 4)
    assert entry.plan.study.seeds == [3]
    for words, message in (
        (["--only", "table1"], "unknown part of paper: 'table1'"),
        (["--scale", "tiny"], "expected one of paper, small"),
    ):
        assert main(["paper", "-f", str(paper), *words]) == 2
        assert message in capsys.readouterr().err


def test_missing_data_is_said_before_anything_runs(paper, store, capsys):
    words = ["paper", "-f", str(paper), "-p", "dataset={name: folder}"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: table01 table02 table03 figure01: expected a folder ")
    assert "PPR_DATA" in err
    assert store.search() == []
    assert main([*words, "--dry-run"]) == 0
    assert "missing  table01 table02 table03 figure01: expected a folder" in capsys.readouterr().out


def test_what_was_dropped_is_computed_again_where_it_is_asked_for(store, capsys):
    study = Study(**{**TINY_STUDY, "keep": "needed"})
    plan, lab = Plan(study), Lab(store)
    assert engine.run(plan, lab) == {}
    retuned = {s.cell.defense: s for s in plan.stages() if s.kind == "retuned"}
    run = store.find(retuned["ft"].key)
    kept = store.load(run)
    wanted = Plan(Study(**{**TINY_STUDY, "measures": SMALL}))
    later = [stage for stage in wanted.stages() if stage.kind == "query"]
    assert lab.drop(plan.stages(), later) > 10_000
    assert not dropped(store.find(retuned["ft"].key)), "a later stage reads it"
    assert dropped(store.find(retuned["clean"].key))
    assert lab.drop(plan.stages()) > 10_000
    assert engine.run(plan, lab) == {}, "nothing is missing"
    assert store.summary(store.find(retuned["ft"].key)).metrics == kept.metrics
    assert engine.run(wanted, Lab(store)) == {}
    again = store.find(retuned["ft"].key)
    assert again.info.run_id != run.info.run_id
    there = store.load(again).tensors
    assert all(tensor.equal(there[name]) for name, tensor in kept.tensors.items())
    assert [r.info.run_id for r in store.search(key=retuned["ft"].key)] == [again.info.run_id]


# -- the paper itself -----------------------------------------------------------------------------


@pytest.fixture
def real(monkeypatch):
    """The paper, one seed; keys are made without the images, which are not here."""
    monkeypatch.setattr(Setting, "images_key", property(lambda setting: setting.study.dataset))

    def entries(*only, scale="paper"):
        path = study_file(FILE, ".yml")
        return Series.load(path).entries(path.parent, only, scale, ["seeds=[0]"])

    return entries


def test_the_paper_has_every_table_figure_and_claim_file(real):
    series = Series.load(study_file(FILE, ".yml"))
    assert {f"table{n:02d}" for n in range(1, 12)} <= set(series.parts)
    assert {f"figure{n:02d}" for n in range(1, 17)} <= set(series.parts)
    bases = {study["base"] for studies in series.parts.values() for study in studies}
    files = {path.name for path in (ROOT / "params").glob("*.yaml")}
    assert bases == {name for name in files if name.startswith(("table", "claim"))}


@pytest.mark.parametrize(("numbers", "command"), FIGURES.items(), ids=list(FIGURES))
def test_its_figures_are_those_of_the_index(real, numbers, command):
    words = shlex.split(command)
    [first, *_] = re.findall("[0-9]+", numbers)
    [entry, *_] = real(f"figure{int(first):02d}")
    theirs = Plan(Study(**read(words[0], words[2::2])))
    assert {s.key for s in entry.plan.stages()} == {s.key for s in theirs.stages()}


def test_tables_1_and_2_and_the_figures_add_nothing(real):
    parts = [*(f"table{n:02d}" for n in (3, 8, 9, 2)), "figure02", "figure12"]
    told = {share.part: share for share in shares(real(*parts), set())}
    assert [len(told[part].own) for part in ("table02", "figure02", "figure12")] == [0, 0, 0]
    assert told["table02"].shared == told["table02"].stages > 30
    assert [entry.part for entry in adding(real("table03", "figure02", "table10"))] == [
        "table03",
        "table10",
    ]


def test_table_3_at_laptop_scale_is_the_scaled_study_and_more(real):
    [entry] = real("table03", scale="laptop")
    there = {stage.key for stage in entry.plan.stages()}
    scaled = Plan(Study.load(study_file("cifar10_scaled")))
    assert {stage.key for stage in scaled.stages()} <= there


@pytest.mark.parametrize("part", ["table05", "table06", "table08", "table09", "claim18"])
def test_every_setting_has_a_counterpart_at_laptop_scale(real, part):
    for entry in real(part, scale="laptop"):
        ours, meant = entry.plan.study, entry.meant.study
        assert ours.training["epochs"] < meant.training.get("epochs", 100)
        assert {**ours.model, **meant.model} != meant.model, "a smaller model"
        assert ours.model["name"] == meant.model["name"]
        assert (ours.poison_rate, ours.reserve, ours.retuning) == (
            meant.poison_rate,
            meant.reserve,
            meant.retuning,
        )
