"""What every registered defense must keep, whatever its idea: a new one is tested by its line."""

import inspect
from contextlib import suppress

import pytest
import torch

from ppr_core import training
from ppr_core.attacks import ATTACKS, Trigger
from ppr_core.config import Settings
from ppr_core.defenses import DEFENSES, Defense
from ppr_core.errors import ConfigError, DataError
from ppr_core.method import Method
from ppr_core.metrics import clean_accuracy
from ppr_core.runtime import session
from tests.conftest import shrink, tiny_model, tiny_set

HONEST = {"validation", "state"}
ORACLE = {"trigger", "score"}
SCHEDULED = [name for name, cls in DEFENSES.items() if "schedule" in cls.model_fields]
SIZE = 32  # the trigger generator halves its input four times


def asked(cls):
    """The names that a defense's `run` asks for, besides model, reserve and generator."""
    parameters = inspect.signature(cls.run).parameters
    return set(parameters) - {"self", "model", "data", "rng"}


def call(cls, model, data, seed=0, **settings):
    """Run a shrunken defense with whatever it asks for."""
    method = shrink(cls()).replace(**settings)
    held = tiny_set(16, size=SIZE, seed=1)
    named = {
        "validation": held,
        "trigger": Trigger(ATTACKS["badnet"](), {}),
        "score": lambda model: {"c_acc": clean_accuracy(model, held), "asr": 50.0},
    }
    if method.preparation() is not None:
        rng = torch.Generator().manual_seed(seed)
        named["state"] = method.prepare(model, data, rng=rng) if len(data) else {}
    named = {name: value for name, value in named.items() if name in asked(cls)}
    return method(model, data, rng=torch.Generator().manual_seed(seed), **named)


@pytest.fixture(scope="module", params=DEFENSES)
def ran(request):
    """One defense, run once: (class, model, its state and modes before, outcome)."""
    model = tiny_model().eval()
    model.backbone.train()  # modes that differ, so that a careless restoring shows
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    cls = DEFENSES[request.param]
    return cls, model, before, modes, call(cls, model, tiny_set(size=SIZE))


def test_the_model_passed_in_is_left_alone(ran):
    _, model, before, modes, outcome = ran
    assert outcome.model is not model
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_model_returned_is_ready_for_use(ran):
    _, model, _, _, outcome = ran
    assert not any(module.training for module in outcome.model.modules())
    assert all(p.requires_grad for p in outcome.model.parameters())
    assert not any(module._forward_hooks for module in outcome.model.modules())
    assert all(tensor.isfinite().all() for tensor in outcome.model.state_dict().values())
    theirs = {p.data_ptr() for p in outcome.model.parameters()}
    assert not theirs & {p.data_ptr() for p in model.parameters()}


def test_what_it_took_is_counted(ran):
    cost = ran[-1].cost
    assert cost.seconds > 0
    assert cost.images >= cost.forward >= 0


def test_the_same_seed_gives_the_same_result(ran):
    cls, model, _, _, outcome = ran
    again = call(cls, model, tiny_set(size=SIZE))
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert outcome.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(t, again.tensors[name]) for name, t in outcome.tensors.items())


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_run_that_is_killed_goes_on_to_the_same_result(name, tmp_path, monkeypatch):
    settings = {"schedule": {"steps": 6}}
    if name == "ep":
        settings["redraw"] = True

    def run():
        return call(DEFENSES[name], tiny_model().eval(), tiny_set(size=SIZE), **settings)

    def kill(name, history, epochs):
        if name and len(history) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._Checkpoint, "interval_s", 0.0)
    with suppress(KeyboardInterrupt), session(checkpoint=tmp_path, report=kill):
        run()
    with session(checkpoint=tmp_path):
        resumed = run()
    straight = run()
    for key, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    assert len(resumed.history) == len(straight.history)


@pytest.mark.parametrize("name", DEFENSES)
def test_a_reserve_smaller_than_a_batch(name):
    outcome = call(DEFENSES[name], tiny_model().eval(), tiny_set(10, size=SIZE))
    assert all(tensor.isfinite().all() for tensor in outcome.model.state_dict().values())


@pytest.mark.parametrize("name", DEFENSES)
def test_a_class_missing_from_the_reserve(name):
    data = tiny_set(24, size=SIZE)
    outcome = call(DEFENSES[name], tiny_model().eval(), data.subset(data.labels != 1))
    assert outcome.model(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 4)
    assert all(tensor.isfinite().all() for tensor in outcome.model.state_dict().values())


@pytest.mark.parametrize("name", DEFENSES)
def test_an_empty_reserve_is_refused(name, data):
    with pytest.raises(DataError, match="expected images, got an empty set"):
        call(DEFENSES[name], tiny_model(), data.subset(torch.arange(0)))


@pytest.mark.parametrize("name", DEFENSES)
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(ConfigError, match="unknown setting"):
        DEFENSES[name](nonsense=1)


@pytest.mark.parametrize("name", DEFENSES)
def test_the_signature_is_the_threat_model(name):
    cls = DEFENSES[name]
    may_be_oracle = cls.oracle is not Method.oracle
    assert asked(cls) <= (HONEST | ORACLE if may_be_oracle else HONEST)
    assert not any(
        parameter.kind is parameter.VAR_KEYWORD
        for parameter in inspect.signature(cls.run).parameters.values()
    )


@pytest.mark.parametrize("name", DEFENSES)
def test_it_tells_what_it_is(name):
    cls = DEFENSES[name]
    assert issubclass(cls, Defense)
    assert cls.source
    assert cls.privileges
    assert inspect.getdoc(cls).strip()

    def check(settings: type[Settings]):
        for key, field in settings.model_fields.items():
            assert field.description, f"{settings.__name__}.{key} has no description"
            if isinstance(field.default, Settings):
                check(type(field.default))

    check(cls)


def test_every_defense_class_is_registered_once():
    assert len(set(DEFENSES.values())) == len(DEFENSES)
