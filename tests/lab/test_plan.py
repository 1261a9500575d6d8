import pickle

import pytest

from ppr_core.attacks import ATTACKS
from ppr_core.config import Settings
from ppr_core.defenses import DEFENSES
from ppr_core.errors import ConfigError, DataError
from ppr_core.lab.checks import check
from ppr_core.lab.graph import Cell, Stage, Variant
from ppr_core.lab.measures import MEASURES
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from tests.conftest import TINY_STUDY


def plan(**overrides):
    return Plan(Study(**{**TINY_STUDY, **overrides}))


def keys(a_plan):
    return {stage.name: stage.key for stage in a_plan.stages()}


def test_parents_come_first_and_each_stage_once():
    stages = plan(attacks={"badnet": {}, "blended": {}}).stages()
    seen = set()
    for stage in stages:
        assert all(parent.key in seen for parent in stage.parents)
        assert stage.key not in seen
        seen.add(stage.key)
    kinds = [stage.kind for stage in stages]
    assert kinds.count("clean") == 1, "both attacks share the clean model"
    assert kinds.count("backdoored") == 2
    assert kinds.count("purified") == 4
    assert kinds.count("retuned") == 6


@pytest.mark.parametrize(
    ("overrides", "kept", "changed"),
    [
        ({"retuning": {"poisoned": 2}}, ["clean", "backdoored", "purified"], ["retuned"]),
        ({"reserve": 70}, ["clean", "backdoored"], ["purified"]),
        ({"poison_rate": 0.2}, ["clean"], ["backdoored", "purified"]),
        ({"target": 1}, ["clean"], ["backdoored", "purified"]),
        ({"model": {"name": "resnet18", "width": 8}}, [], ["clean", "backdoored", "retuned"]),
        ({"name": "other"}, ["clean", "backdoored", "purified", "retuned"], []),
    ],
)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(overrides, kept, changed):
    before, after = keys(plan()), keys(plan(**overrides))
    for name in before:
        kind = name.split()[-2]
        if kind in kept and not (kind == "retuned" and "clean" in name):
            assert before[name] == after[name], name
        if kind in changed:
            assert before[name] != after[name], name


def test_keys_are_stable():
    assert keys(plan()) == keys(plan())
    assert len(set(keys(plan(seeds=[0, 1])).values())) == 2 * len(keys(plan()))


def test_every_rho_of_the_grid_is_a_cell_that_shares_the_inversion():
    grid = plan(
        defenses={"pam": {"rho": 0.5, "rounds": 1, "inversion": {"width": 4}}},
        rho_grid=[0.0, 0.5, 1.0],
    )
    cells = grid.purified_cells("badnet", 0)
    assert [(cell.defense, cell.variant) for cell in cells] == [
        ("pam", Variant("rho", 0.0)),
        ("pam", None),
        ("pam", Variant("rho", 1.0)),
    ]
    assert [grid.defense(cell).rho for cell in cells] == [0.0, 0.5, 1.0]
    assert [cell.label for cell in cells] == ["badnet/pam rho 0", "badnet/pam", "badnet/pam rho 1"]
    kinds = [stage.kind for stage in grid.stages()]
    assert kinds.count("inverted") == 1
    assert kinds.count("purified") == 3


def test_one_method_under_two_labels():
    twice = plan(defenses={"ft": {}, "ft_slow": {"method": "ft", "schedule": {"lr": 0.001}}})
    one, other = (twice.defenses[label, None] for label in ("ft", "ft_slow"))
    assert type(one) is type(other)
    assert other.schedule.lr == 0.001


def test_poison_counts_are_the_papers_unless_set():
    both = {"badnet": {}, "blended": {}}
    assert plan(attacks=both, retuning={}).measures["retuning"]["blended"].poisoned == 1
    set_one = plan(attacks=both, retuning={"poisoned": {"badnet": 9}}).measures["retuning"]
    assert (set_one["badnet"].poisoned, set_one["blended"].poisoned) == (9, 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attacks": {"badnett": {}}}, "unknown attack: 'badnett' .did you mean 'badnet'"),
        ({"defenses": {"fst": {"alhpa": 1}}}, "defense fst: .*did you mean 'alpha'"),
        ({"defenses": {"clean": {"method": "ft"}}}, "it names a control row"),
        ({"dataset": {"name": "mnist"}}, "unknown dataset: 'mnist'"),
        ({"model": {"name": "resnet18", "width": 0}}, "greater than or equal to 1, got 0"),
        ({"retuning": {"poisoned": {"badnets": 3}}}, "did you mean 'badnet'"),
        ({"training": {"lr": "fast"}}, "expected a valid number, got 'fast'"),
        ({"training": {"lr": float("inf")}}, "attack badnet.training.lr: expected a finite number"),
        ({"attacks": {}}, "expected at least one attack, got none"),
        ({"reserve": 1, "validation": 0.9}, "expected a reserve of more than"),
    ],
)
def test_mistakes_are_found_before_anything_runs(overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan(**overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"attacks": {"sig": {}}, "poison_rate": 0.5},
            "attack sig: .*cannot serve poison_rate",
        ),
        ({"target": 10}, "expected a target label below 10, got 10"),
        ({"reserve": 301}, "expected a reserve of at most 300 images, got 301"),
        (
            {"retuning": {"poisoned": 60, "share": 0.5}},
            r"retuning of badnet: expected at most \d+ poisoned samples \(150 samples in all",
        ),
        ({"measures": {"query": {"clean": 301}}}, "query of badnet: expected at most 300 clean"),
    ],
)
def test_what_the_data_cannot_serve_is_found_before_anything_runs(overrides, message, store):
    with pytest.raises(DataError, match=message):
        check(plan(**overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training": {"epochs": 0}}, "badnet: expected a training of at least one step"),
        ({"training": {"crop": 16}}, "badnet.training.crop: expected less than .* 16, got 16"),
        ({"defenses": {"ft": {"schedule": {"crop": 20}}}}, "ft.schedule.crop: .* 16, got 20"),
        ({"retuning": {"schedule": {"crop": 17}}}, "retuning.schedule.crop: .* 16, got 17"),
    ],
)
def test_trainings_that_cannot_work_are_found_before_anything_runs(overrides, message, store):
    with pytest.raises(ConfigError, match=message):
        check(plan(**overrides))


def test_defenses_that_do_not_apply_are_named_together_before_anything_runs(store):
    """A network without batch norm, on its skeleton; what applies goes on."""
    bare = {"name": "convnext_tiny", "width": 4, "pretrained": False}
    settings = {"model": bare, "dataset": {**TINY_STUDY["dataset"], "size": 32}}
    check(plan(**settings, defenses={"ft": {}, "ibau": {}}))
    wrong = plan(**settings, defenses={"ft": {}, "anp": {}, "clp": {}, "bti": {}})
    message = "apply to convnext_tiny, got 2 that do not; leave out anp, clp, or mend it: Anp: .*"
    with pytest.raises(ConfigError, match=message + "with batch norm, .*; Clp: ") as caught:
        check(wrong)
    assert "\n" not in str(caught.value)


def test_images_too_small_for_an_architecture_are_refused_before_anything_runs(store):
    small = {"name": "mobilenet_v3_large", "width": 0.25}
    with pytest.raises(ConfigError, match="expected images of 32 pixels or more"):
        check(plan(model=small, precision="bf16"))
    check(plan(model=small, precision="fp32"))


# -- what is hashed is what runs ------------------------------------------------------------------


def changed(method):
    """Yield the dotted name of every field, nested ones too, and the method with another value."""
    for name in type(method).model_fields:
        value = getattr(method, name)
        if isinstance(value, Settings):
            for inner, other in changed(value):
                yield f"{name}.{inner}", method.model_copy(update={name: other})
        else:
            other = [*value, 0] if isinstance(value, list) else f"not {value}"
            other = {**value, "poison_rate": 0.123} if isinstance(value, dict) else other
            yield name, method.model_copy(update={name: other})


@pytest.mark.filterwarnings("ignore:Pydantic")  # of values of another type
@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        (kind, cls)
        for kind, registry in (("backdoored", ATTACKS), ("purified", DEFENSES), ("x", MEASURES))
        for cls in registry.values()
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_changing_any_field_of_a_method_changes_its_stage(kind, cls):
    setting = plan().setting

    def key(method):
        return Stage(kind, Cell("badnet", "ft", 0), method, setting).key

    method = cls()
    keys = {name: key(other) for name, other in changed(method)}
    assert key(method) == key(cls()) not in keys.values()
    assert len(set(keys.values())) == len(keys)
    newer = type(cls.__name__, (cls,), {"version": 99, "__module__": cls.__module__})
    assert key(newer()) != key(method)


def test_a_stage_holds_the_method_that_the_study_describes():
    """Nothing is changed after planning: eq. 1 is one of the settings, and so is RA's count."""
    study = plan(measures={"query": {"width": 8}, "query_alone": {}, "clean_retuning": {}})
    cell = Cell("badnet", "ft", 0)
    alone = study.taken("query_alone", cell).method
    assert (alone.width, alone.form, alone.alpha) == (8, "paper", 0.0)
    assert study.taken("clean_retuning", cell).method.poisoned == 0
    assert study.taken("retuning", cell).method.poisoned == 3
    for stage in study.stages():
        assert not any(isinstance(value, Plan) for value in vars(stage).values())
        assert pickle.loads(pickle.dumps(stage)).key == stage.key


def test_the_code_of_a_users_own_method_is_part_of_its_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for number, body in enumerate(("pass", "return None")):
        code = f"from ppr_core.defenses import Defense\nclass Own(Defense):\n    def f(s): {body}\n"
        (tmp_path / f"own{number}.py").write_text(code)
        own = plan(defenses={"own": {"method": f"own{number}:Own"}})
        found.append(own.purified(Cell("badnet", "own", 0)).key)
    assert found[0] != found[1]


def test_no_label_is_read_back():
    """Labels are made for people; what a cell is stands in its fields."""
    odd = plan(attacks={"a@b/c": {"method": "badnet"}}, defenses={"pam rho 3": {"method": "ft"}})
    [cell] = odd.purified_cells("a@b/c", 0)
    assert (cell.attack, cell.defense, cell.variant) == ("a@b/c", "pam rho 3", None)
    assert odd.purified(cell).method == odd.defenses["pam rho 3", None]
