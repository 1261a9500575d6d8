"""What a study measures beside RA: each stage computed for real, on tiny data."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from ppr_core.curves import recalibrated
from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError, ConfigError
from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.measures import MEASURES
from ppr_core.lab.measures.query import Query
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reactivation.perturbation import within
from ppr_core.reactivation.query import generator_of
from ppr_core.reporting import comparison, results
from ppr_core.runtime import autocast
from ppr_core.separation import separation
from tests.conftest import TINY_STUDY

SMALL = {"images": 10, "schedule": {"steps": 2}}
BATTERY = {
    "retuning": {"share": 0.2, "poisoned": 2, "schedule": {"epochs": 1}},
    "counts": [2, 4],
    "draws": 1,
    "fresh": 2,
    "factors": [1.0],
    "epochs": [1, 2],
    "relearn_factors": [1.0],
    "relearn_epochs": [1],
    "images": 40,
    "query": {"clean": 20, "poisoned": 20, "width": 16, "schedule": {"epochs": 1}},
    "limits": {"purified": 101.0, "awake": 101.0, "fall": 101.0, "spared": 101.0},
}
# None where ASR never falls asleep, and where no count or epoch that was tried wakes a model.
OPEN = ("t_star", "wake_count", "clean_wake_count", "recovery")
OPEN += ("separation_layer", "separation_features")  # a clean model's last layer is its own
STUDY = {
    **TINY_STUDY,
    "defenses": {**TINY_STUDY["defenses"], "fst": {"schedule": {"epochs": 1}}},
    "budgets": [0.0, 4 / 255, 16 / 255],
    "measures": {
        "query": {"clean": 20, "poisoned": 20, "width": 16, "schedule": {"epochs": 2}},
        "query_alone": {},
        "query_ep": {},
        "query_self": {},
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
        "aligned_path": {},
        "curve": {"schedule": {"epochs": 1}},
        "existence": {"images": 40},
        "separation": {},
        "flagged": {},
        "clean_model": {},
        "battery": BATTERY,
    },
}


@pytest.fixture(scope="module")
def measured(store_template, tmp_path_factory):
    """The study of this file, computed once."""
    folder = tmp_path_factory.mktemp("measured") / "mlruns"
    shutil.copytree(store_template, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PPR_DATA", str(folder.parent / "data"))
        plan, store = Plan(Study(**STUDY)), Store(folder)
        assert engine.run(plan, Lab(store)) == {}
    return plan, store


def test_every_measure_of_a_study(measured):
    plan, store = measured
    taken = {"retuning", *STUDY["measures"]}
    assert taken == set(MEASURES), "the study of this test takes every measure"
    rows = results.cells(plan, store)
    here = rows[rows["attack"] == "badnet"].set_index("defense")
    for measure, cls in MEASURES.items():
        of_purified = ("path", "aligned_path", "curve", "battery", "existence")
        purified = measure in of_purified or cls.__mro__[1] is Query or cls is Query
        who = ["ft", "fst", "ep"] if purified else ["clean", "ft", "fst", "ep"]
        who = ["clean"] if measure == "query_self" else who
        who = [] if measure == "flagged" else who  # of training-stage defenses alone
        for column in cls.columns:
            if not column.name.endswith(OPEN):
                assert here.loc[who, column.name].notna().all(), column
            assert column.name in ("o_c_acc", "o_asr") or pd.isna(here.loc["none", column.name])
    lab = Lab(store)
    stage = plan.taken("query", Cell("badnet", "ft", 0))
    assert here.loc["ft", "q_p_asr"] == lab.result(stage).metrics["p_asr"]
    assert here.loc["ft", "o_asr"] == pytest.approx(lab.result(stage).metrics["asr"])
    clean_only = lab.result(plan.taken("clean_retuning", Cell("badnet", "ft", 0)))
    assert clean_only.info["poisoned"] == 0
    assert here.loc["ft", "clean_retuned_asr"] == clean_only.metrics["p_asr"]
    queries = results.queries(plan, store)
    assert set(queries["perturbation"]) == {
        *("qra", "qra, no surrogate", "qra, eq. 2", "qra, on the clean model"),
        *("sign noise", "universal", "pgd"),
        *("trigger, white-box", "trigger, query-only", "trigger, transfer"),
    }
    assert sorted(queries[queries["perturbation"] == "qra"]["eps"].unique()) == STUDY["budgets"]
    pairs = results.transfers(plan, store)
    assert {(s, t) for s, t in zip(pairs["source"], pairs["target"], strict=True)} == {
        ("ft", "fst"),
        ("fst", "ft"),
    }, "oracles neither lend nor borrow a perturbation"


def test_separation_puts_back_what_a_defense_may_hide_behind(measured):
    plan, store = measured
    lab, stage = Lab(store), plan.taken("separation", Cell("badnet", "fst", 0))
    purified, victim = lab.model(stage.parents[0]), lab.model(stage.parents[1])
    images, target = lab.outside_target(stage), lab.trigger(stage).target
    found = lab.result(stage).metrics
    assert found["separation"] == pytest.approx(separation(purified, *images, target))
    purified.linear.load_state_dict(victim.linear.state_dict())
    assert found["layer"] == pytest.approx(separation(purified, *images, target))
    tune = stage.setting.held(0).tune
    purified.load_state_dict(recalibrated(purified, purified.state_dict(), tune))
    assert found["features"] == pytest.approx(separation(purified, *images, target))
    assert len({found[name] for name in ("separation", "layer", "features")}) == 3
    clean = lab.result(plan.taken("separation", Cell("badnet", "clean", 0)))
    assert "separation" in clean.metrics and "layer" not in clean.metrics


def test_existence_goes_from_the_clean_models_to_the_backdoored_one(measured):
    plan, store = measured
    lab, cell = Lab(store), Cell("badnet", "ft", 0)
    stage = plan.taken("existence", cell)
    victim, *cleans = stage.parents[1:]
    assert [parent.kind for parent in cleans] == ["clean", "clean"]
    assert cleans[0].cell.seed != cleans[1].cell.seed
    own = lab.result(stage)
    first, second = own.metrics["existence_0"], own.metrics["existence_1"]
    assert own.metrics["existence"] == pytest.approx((first + second) / 2)
    rows = results.summary(results.cells(plan, store))
    ft = rows[(rows["attack"] == "badnet") & (rows["defense"] == "ft")].iloc[0]
    assert results.cell_text(ft, "existence") == f"{(first + second) / 2:.2f}"
    assert results.cell_text(ft, "o_asr") == f"{ft['o_asr']:.1f}"

    def of(model):
        return stage.method.measure(lab, replace(stage, parents=(model, victim, *cleans))).metrics

    assert of(victim)["existence"] == pytest.approx(1, abs=1e-6)
    assert of(cleans[0])["existence_0"] == of(cleans[1])["existence_1"] == 0
    assert of(cleans[0])["existence_1"] != 0, "the control: one clean model beside the other"
    strict = stage.method.replace(least=0.999).measure(lab, stage)
    assert strict.metrics == {}
    assert strict.info["not_applicable"].startswith("expected layers in which the clean model is")


def test_the_released_form_of_existence_reads_all_purified_models(measured):
    _, store = measured
    measures = {"existence": {"images": 40, "form": "code"}}
    plan, lab = Plan(Study(**{**STUDY, "measures": measures})), Lab(store)
    found = {}
    for name in ("ft", "fst", "ep"):
        stage = plan.taken("existence", Cell("badnet", name, 0))
        result = stage.method.measure(lab, stage)
        found[name] = result.metrics["existence"]
        assert len(result.info["depends_on"]) == 3, "the clean model and the two other defenses"
    assert max(found.values()) == 1, "the most similar one, whatever it is"
    assert all(0 <= value <= 1 for value in found.values())
    fewer = {"ft": STUDY["defenses"]["ft"]}
    alone = Plan(Study(**{**STUDY, "defenses": fewer, "measures": measures}))
    assert alone.taken("existence", Cell("badnet", "ft", 0)).key != stage.key


def test_no_two_measures_of_a_model_return_the_same_tensors(measured):
    """One that resumed, or read, what belongs to another would return that one's tensors."""
    plan, store = measured
    lab = Lab(store)
    for cell in plan.cells():
        found = {}
        for stage in plan.measured(cell).values():
            tensors = sorted(lab.result(stage).tensors.items())
            # Each direction of the optimised triggers is a search of its own.
            parts = [[pair] for pair in tensors] if stage.kind == "triggers" else [tensors]
            for part in filter(None, parts):
                name = f"{stage.name} {part[0][0] if stage.kind == 'triggers' else ''}"
                content = b"".join(tensor.numpy().tobytes() for _, tensor in part)
                assert found.setdefault(content, name) == name, cell
        if cell.attacked and cell.variant is None:
            assert len(found) >= 6, cell  # RA, RA without poisons, a control, three triggers


def test_reactivation_reads_the_poisons_that_the_victim_was_trained_on(measured):
    plan, store = measured
    lab, cell = Lab(store), Cell("badnet", "ft", 0)
    victim, images = plan.backdoored(cell), plan.images.train
    drawn = lab.result(victim).tensors["poison_indices"]
    poisons = lab.poisons(plan.retuned(cell), any_class=True)
    assert torch.equal(poisons.images, lab.trigger(victim)(images.subset(drawn).images))
    lab.result(victim).tensors["poison_indices"] = drawn[:3]
    assert len(lab.poisons(plan.retuned(cell), any_class=True)) == 3, "nothing is drawn again"
    assert len(lab.query_images(plan.taken("query", cell))) <= 3


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
    for other in ("backdoored, aligned", "backdoored, curve"):
        found = points[points["start"] == other]
        assert set(found["defense"]) == {"ft", "fst", "ep"}
        assert set(found["batch_norm"]) >= {"recalibrate"}
        both = found.merge(
            points[points["start"] == "backdoored"], on=["defense", "batch_norm", "t"]
        )
        ends = both[both["t"].isin([0.0, 1.0])]
        apart = (ends["clean_error_x"] - ends["clean_error_y"]).abs()
        assert len(ends) and apart.max() <= 1.0  # an image: sums in another order


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


def test_every_generator_is_scored_on_five_models(measured):
    """The figures of the rows are those of the models themselves, under the same perturbation."""
    plan, store = measured
    lab, cell = Lab(store), Cell("badnet", "fst", 0)
    points = results.queries(plan, store)
    rows = results.cells(plan, store).set_index(["attack", "defense"]).loc[("badnet", "fst")]
    models = {
        "self": plan.purified(cell),
        "clean": plan.clean_model(0),
        "clean_unseen": plan.unseen_clean(0),
        "ep": plan.purified(cell.but(defense="ep")),
        "backdoored": plan.backdoored(cell),
    }
    seeds = [models[name].cell.seed for name in ("clean", "clean_unseen")]
    assert seeds[0] != seeds[1]
    prefixes = {"query": ("q_", "qra"), "query_ep": ("qe_", "qra, eq. 2")}
    prefixes["query_alone"] = ("q1_", "qra, no surrogate")
    for measure, (prefix, name) in prefixes.items():
        stage = plan.taken(measure, cell)
        assert lab.result(stage).info["left_out"] == []
        generator = generator_of(lab.result(stage).tensors)
        here = points[(points["defense"] == "fst") & (points["perturbation"] == name)]
        assert set(here["scored"]) == set(models)
        for scored, made in models.items():
            part = {"self": "", "clean_unseen": "unseen_"}.get(scored, f"{scored}_")
            stamped, eps = lab.stamped_test(stage), 16 / 255
            moved = to_float(stamped.images)
            moved = within(moved, generator(moved), eps)
            with torch.no_grad(), autocast(moved.device):
                hits = lab.model(made)(moved).argmax(1) == stamped.labels
            found = 100 * float(hits.double().mean())
            assert rows[f"{prefix}{part}p_asr"] == pytest.approx(found, abs=2.5)  # bf16, batches
            [at] = here[(here["scored"] == scored) & (here["eps"] == eps)].to_dict("records")
            assert at["p_asr"] == rows[f"{prefix}{part}p_asr"]
            assert at["c_asr"] == rows[f"{prefix}{part}c_asr"]


def test_no_generator_sees_the_second_clean_model(measured):
    plan, _ = measured
    unseen = plan.unseen_clean(0)
    assert unseen.key != plan.clean_model(0).key
    for label in ("query", "query_ep", "query_alone"):
        for defense in ("ft", "fst", "ep"):
            stage = plan.taken(label, Cell("badnet", defense, 0))
            assert all(parent.key != unseen.key for parent in stage.parents[:3])
            assert unseen.key in [parent.key for parent in stage.parents[3:]]
        assert plan.taken(label, Cell("badnet", "clean", 0)) is None
    alone = Plan(Study(**{**STUDY, "measures": {"path": {}}}))
    assert unseen.key not in [stage.key for stage in alone.stages()], "QRA's alone"


def test_qra_reads_the_surrogate_that_is_not_attacked():
    def surrogates(plan):
        cells = [Cell("badnet", name, 0) for name in ("ft", "ep")]
        return [
            plan.taken(of, cell).parents[2].name for of in ("query", "query_ep") for cell in cells
        ]

    ep = "badnet/ep purified s0"
    plan = Plan(Study(**STUDY))
    assert surrogates(plan) == ["clean s0", "clean s0", ep, "clean s0"]
    assert plan.taken("query_self", Cell("badnet", "clean", 0)).parents[2].name == ep
    settings = {**STUDY["measures"], "query": {**STUDY["measures"]["query"], "surrogate": "ep"}}
    assert surrogates(Plan(Study(**{**STUDY, "measures": settings})))[:2] == [ep, "clean s0"]


def test_alpha_is_the_papers_unless_given():
    study = {**STUDY, "attacks": {"badnet": {}, "lc": {"poison_rate": 0.01}}}
    plan = Plan(Study(**study))
    queries = plan.measures["query"]
    assert {name: query.alpha for name, query in queries.items()} == {"badnet": 0.2, "lc": 0.1}
    own = {"query": {**STUDY["measures"]["query"], "alpha": 0.5}}
    plan = Plan(Study(**{**study, "measures": own}))
    assert {query.alpha for query in plan.measures["query"].values()} == {0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measures": {"qra": {}}}, "unknown measure: 'qra'"),
        ({"measures": {"transfer": {}}}, "expected the measure 'query' beside 'transfer'"),
        ({"measures": {"path": {"points": 1}}}, "greater than or equal to 2, got 1"),
        ({"measures": {"path": {}, "connection": {}}, "defenses": {"ft": {}}}, "the defense 'ep'"),
        ({"measures": {"query": {}}, "clean_control": False}, "surrogate of QRA"),
        ({"measures": {"existence": {}}, "clean_control": False}, "a clean model for the measure"),
        ({"budgets": [16.0]}, "expected less than or equal to 1, got 16.0"),
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
    stage = plan.taken("query", Cell("badnet", "ft", 0))
    before = {p.name: lab.result(p).tensors for p in stage.parents}
    copies = {n: {k: t.clone() for k, t in ts.items()} for n, ts in before.items()}
    tensors = lab.result(stage).tensors
    assert generator_of(tensors)(torch.rand(2, 3, 16, 16)).abs().max() <= 1
    for parent in stage.parents:
        for name, tensor in Lab(store).result(parent).tensors.items():
            assert torch.equal(tensor, copies[parent.name][name])


# -- models made elsewhere ------------------------------------------------------------------------


def exported(store, tmp_path):
    """Train a victim and purify it here; hand both out as files, as another project would."""
    plan, lab = Plan(Study(**TINY_STUDY)), Lab(store)
    files = {}
    for name, stage in (
        ("badnet", plan.backdoored(Cell("badnet", "none", 0))),
        ("badnet/mine", plan.purified(Cell("badnet", "ft", 0))),
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
    assert (
        rows.loc["mine", "o_asr"]
        == lab.result(plan.purified(Cell("badnet", "ft", 0))).metrics["asr"]
    )
    assert (
        rows.loc["mine", "p_asr"]
        == lab.result(plan.retuned(Cell("badnet", "ft", 0))).metrics["p_asr"]
    )
    assert rows.loc["mine", ["q_p_asr", "distance"]].notna().all()


@pytest.mark.parametrize("kind", ["missing", "pickle", "shapes", "names", "damaged", "text"])
def test_a_file_that_holds_no_such_model_is_refused(store, tmp_path, kind):
    path = tmp_path / ("a.pt" if kind in ("pickle", "text") else "a.safetensors")
    if kind == "pickle":
        torch.save({"weights": Lab}, path)
    elif kind in ("damaged", "text"):
        path.write_bytes(b"hello, not a checkpoint")
    elif kind != "missing":
        state = Plan(Study(**TINY_STUDY)).setting.model.build(4 if kind == "shapes" else 10, seed=0)
        state = {n: t.contiguous() for n, t in state.state_dict().items()}
        if kind == "names":
            state.pop("linear.bias")
        save_file(state, path)
    with pytest.raises(CheckpointError, match="expected"):
        plan = Plan(Study(**{**TINY_STUDY, "checkpoints": {"badnet": str(path)}}))
        Lab(store).result(plan.backdoored(Cell("badnet", "none", 0)))
