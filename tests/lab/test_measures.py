"""What a study measures beside RA: each stage computed for real, on tiny data."""

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from ppr_core.errors import CheckpointError, ConfigError
from ppr_core.lab import engine
from ppr_core.lab.desk import WORK, Lab
from ppr_core.lab.plan import MEASURES, Plan
from ppr_core.lab.study import Study
from ppr_core.reactivation.query import generator_of
from ppr_core.reporting import comparison, results
from tests.conftest import TINY_STUDY

SMALL = {"images": 10, "schedule": {"steps": 2}}
STUDY = {
    **TINY_STUDY,
    "defenses": {**TINY_STUDY["defenses"], "fst": {"schedule": {"epochs": 1}}},
    "budgets": [0.0, 4 / 255, 16 / 255],
    "measures": {
        "query": {"clean": 20, "poisoned": 20, "width": 16, "schedule": {"epochs": 2}},
        "query_alone": {},
        "transfer": {},
        "controls": {"images": 20, "pgd": {"iterations": 2}, "universal": SMALL},
        "triggers": {
            "white_box": SMALL,
            "transfer": SMALL,
            "queries": {"images": 10, "iterations": 2},
        },
        "clean_retuning": {},
        "path": {"points": 3},
        "connection": {},
        "clean_model": {},
    },
}


@pytest.fixture
def measured(store):
    plan = Plan(Study(**STUDY))
    assert engine.run(plan, Lab(store)) == {}
    return plan, store


def test_every_measure_of_a_study(measured):
    plan, store = measured
    assert set(STUDY["measures"]) == set(MEASURES), "the study of this test takes every measure"
    rows = results.cells(plan, store)
    here = rows[rows["attack"] == "badnet"].set_index("defense")
    for column, (measure, _) in results.MEASURED.items():
        who = ["ft", "fst", "ep"] if measure == "path" else ["clean", "ft", "fst", "ep"]
        if column != "t_star":  # none where ASR never falls asleep
            assert here.loc[who, column].notna().all(), column
        assert pd.isna(here.loc["none", column])
    lab = Lab(store)
    stage = plan.query("badnet", "ft", 0)
    assert here.loc["ft", "q_p_asr"] == lab.result(stage).metrics["p_asr"]
    assert here.loc["ft", "o_asr"] == pytest.approx(lab.result(stage).metrics["asr"])
    clean_only = lab.result(plan.retuned("badnet", "ft", 0, clean_only=True))
    assert clean_only.info["poisoned"] == 0
    assert here.loc["ft", "clean_retuned_asr"] == clean_only.metrics["p_asr"]
    queries = results.queries(plan, store)
    assert set(queries["perturbation"]) == {
        *("qra", "qra, no surrogate", "sign noise", "universal", "pgd"),
        *("trigger, white-box", "trigger, query-only", "trigger, transfer"),
    }
    assert sorted(queries[queries["perturbation"] == "qra"]["eps"].unique()) == STUDY["budgets"]
    pairs = results.transfers(plan, store)
    assert {(s, t) for s, t in zip(pairs["source"], pairs["target"], strict=True)} == {
        ("ft", "fst"),
        ("fst", "ft"),
    }, "oracles neither lend nor borrow a perturbation"


def test_paths_start_and_end_where_they_say(measured):
    plan, store = measured
    points = results.paths(plan, store)
    assert set(points["batch_norm"]) == {"interpolate", "recalibrate"}
    home = points[(points["start"] == "backdoored") & (points["batch_norm"] == "interpolate")]
    rows = results.cells(plan, store).set_index(["attack", "defense"])
    for defense, path in home.groupby("defense"):
        assert list(path["t"]) == [0.0, 0.5, 1.0]
        start, end = path.iloc[0], path.iloc[-1]
        assert 100 - start["backdoor_error"] == pytest.approx(rows.loc[("badnet", "none"), "o_asr"])
        assert 100 - end["backdoor_error"] == pytest.approx(rows.loc[("badnet", defense), "o_asr"])
    to_ep = points[(points["start"] == "purified") & (points["batch_norm"] == "interpolate")]
    assert set(to_ep["defense"]) == {"ft", "fst"}
    ends = to_ep[to_ep["t"] == 1.0]
    assert (100 - ends["backdoor_error"]).to_list() == pytest.approx(
        [rows.loc[("badnet", "ep"), "o_asr"]] * 2
    )


def test_the_clean_model_is_defended_as_a_row_of_its_own(measured):
    plan, store = measured
    rows = results.cells(plan, store)
    alone = rows[rows["attack"] == "none"]
    assert list(alone["defense"]) == ["none", "ft", "fst"], "EP has no trigger to know here"
    assert alone["o_c_acc"].notna().all() and alone["o_asr"].isna().all()
    clean = rows[(rows["attack"] == "badnet") & (rows["defense"] == "clean")]
    assert alone["o_c_acc"].iloc[0] == clean["o_c_acc"].iloc[0]
    comparison.log_cells(plan, store)
    assert len(store.search("tiny", kind="cell")) == len(rows)


def test_qra_reads_the_surrogate_that_is_not_attacked():
    plan = Plan(Study(**STUDY))
    names = {d: plan.query("badnet", d, 0).parents[2].name for d in ("ft", "clean", "ep")}
    assert names == {"ft": "clean s0", "clean": "badnet/ep purified s0", "ep": "clean s0"}
    settings = {**STUDY["measures"], "query": {**STUDY["measures"]["query"], "surrogate": "ep"}}
    plan = Plan(Study(**{**STUDY, "measures": settings}))
    names = {d: plan.query("badnet", d, 0).parents[2].name for d in ("ft", "clean", "ep")}
    ep = "badnet/ep purified s0"
    assert names == {"ft": ep, "clean": ep, "ep": "clean s0"}


def test_alpha_is_the_papers_unless_given():
    study = {**STUDY, "attacks": {"badnet": {}, "lc": {"poison_rate": 0.01}}}
    plan = Plan(Study(**study))
    assert {name: query.alpha for name, query in plan.queries.items()} == {"badnet": 0.2, "lc": 0.1}
    own = {"query": {**STUDY["measures"]["query"], "alpha": 0.5}}
    plan = Plan(Study(**{**study, "measures": own}))
    assert {query.alpha for query in plan.queries.values()} == {0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measures": {"qra": {}}}, "unknown measure: 'qra'"),
        ({"measures": {"transfer": {}}}, "expected the measure 'query' beside 'transfer'"),
        ({"measures": {"path": {"points": 1}}}, "greater than or equal to 2, got 1"),
        ({"measures": {"path": {}, "connection": {}}, "defenses": {"ft": {}}}, "the defense 'ep'"),
        ({"measures": {"query": {}}, "clean_control": False}, "surrogate of QRA"),
        ({"budgets": [16.0]}, "expected pixel budgets from 0 to 1"),
        ({"checkpoints": {"badnt": "x"}}, "did you mean 'badnet'"),
        ({"defenses": {"mine": {"method": "no.such:Defense"}}}, "module:Class"),
        ({"defenses": {"mine": {"method": "pathlib:Path"}}}, "subclass of Defense"),
    ],
)
def test_a_measure_that_cannot_be_is_refused_before_anything_runs(changes, words):
    with pytest.raises(ConfigError, match=words):
        Plan(Study(**{**STUDY, **changes}))


def test_no_gradient_reaches_the_models_of_qra(store):
    plan = Plan(Study(**STUDY))
    lab = Lab(store)
    stage = plan.query("badnet", "ft", 0)
    before = {p.name: lab.result(p).tensors for p in stage.parents[:3]}
    copies = {n: {k: t.clone() for k, t in ts.items()} for n, ts in before.items()}
    tensors = lab.result(stage).tensors
    assert generator_of(tensors)(torch.rand(2, 3, 16, 16)).abs().max() <= 1
    for parent in stage.parents[:3]:
        for name, tensor in Lab(store).result(parent).tensors.items():
            assert torch.equal(tensor, copies[parent.name][name])


# -- models made elsewhere ------------------------------------------------------------------------


def exported(store, tmp_path):
    """Train a victim and purify it here; hand both out as files, as another project would."""
    plan, lab = Plan(Study(**TINY_STUDY)), Lab(store)
    files = {}
    for name, stage in (
        ("badnet", plan.backdoored("badnet", 0)),
        ("badnet/mine", plan.purified("badnet", "ft", 0)),
    ):
        state = lab.model(stage).state_dict()
        path = tmp_path / f"{name.replace('/', '-')}.safetensors"
        save_file({n: t.contiguous() for n, t in state.items()}, path)
        files[name] = str(path)
    return plan, lab, files


def test_models_made_elsewhere_are_measured_like_our_own(store, tmp_path):
    plan, lab, files = exported(store, tmp_path)
    study = {
        **STUDY,
        "checkpoints": files,
        "clean_control": False,
        "defenses": {"ep": TINY_STUDY["defenses"]["ep"]},
        "measures": {
            "query": {**STUDY["measures"]["query"], "surrogate": "ep"},
            "path": {"points": 3},
        },
    }
    other = Plan(Study(**study))
    assert all(stage.kind != "clean" for stage in other.stages())
    assert engine.run(other, lab) == {}
    rows = results.cells(other, store).set_index("defense")
    assert list(rows.index) == ["none", "ep", "mine"]
    ours = results.cells(plan, store).set_index("defense")
    assert rows.loc["none", "o_asr"] == ours.loc["none", "o_asr"]
    assert rows.loc["mine", "o_asr"] == lab.result(plan.purified("badnet", "ft", 0)).metrics["asr"]
    assert rows.loc["mine", "p_asr"] == lab.result(plan.retuned("badnet", "ft", 0)).metrics["p_asr"]
    assert rows.loc["mine", ["q_p_asr", "distance"]].notna().all()


@pytest.mark.parametrize("kind", ["missing", "pickle", "shapes", "names", "damaged", "text"])
def test_a_file_that_holds_no_such_model_is_refused(store, tmp_path, kind):
    path = tmp_path / ("a.pt" if kind in ("pickle", "text") else "a.safetensors")
    if kind == "pickle":
        torch.save({"weights": Lab}, path)
    elif kind in ("damaged", "text"):
        path.write_bytes(b"hello, not a checkpoint")
    elif kind != "missing":
        state = Plan(Study(**TINY_STUDY)).model.build(4 if kind == "shapes" else 10, seed=0)
        state = {n: t.contiguous() for n, t in state.state_dict().items()}
        if kind == "names":
            state.pop("linear.bias")
        save_file(state, path)
    with pytest.raises(CheckpointError, match="expected"):
        plan = Plan(Study(**{**TINY_STUDY, "checkpoints": {"badnet": str(path)}}))
        WORK["backdoored"](Lab(store), plan.backdoored("badnet", 0))
