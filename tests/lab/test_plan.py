import pytest

from ppr_core.errors import ConfigError, DataError
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
    assert list(grid.defenses) == ["pam@0", "pam", "pam@1"]
    assert [grid.defenses[name].rho for name in grid.defenses] == [0.0, 0.5, 1.0]
    kinds = [stage.kind for stage in grid.stages()]
    assert kinds.count("inverted") == 1
    assert kinds.count("purified") == 3


def test_one_method_under_two_labels():
    twice = plan(defenses={"ft": {}, "ft_slow": {"method": "ft", "schedule": {"lr": 0.001}}})
    assert type(twice.defenses["ft"]) is type(twice.defenses["ft_slow"])
    assert twice.defenses["ft_slow"].schedule.lr == 0.001


def test_poison_counts_are_the_papers_unless_set():
    both = {"badnet": {}, "blended": {}}
    assert plan(attacks=both, retuning={}).retuning["blended"].poisoned == 1
    set_one = plan(attacks=both, retuning={"poisoned": {"badnet": 9}})
    assert (set_one.retuning["badnet"].poisoned, set_one.retuning["blended"].poisoned) == (9, 5)


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
    ],
)
def test_what_the_data_cannot_serve_is_found_before_anything_runs(overrides, message, store):
    with pytest.raises(DataError, match=message):
        plan(**overrides).check()
