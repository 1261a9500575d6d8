"""What every registered defense must keep, whatever its idea: a new one is tested by its line."""

import ast
import builtins
import copy
import inspect
import io
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torchvision.models as zoo
from torch import nn

from ppr_core import defenses as package
from ppr_core.attacks import ATTACKS, Trigger
from ppr_core.config import Settings
from ppr_core.defenses import DEFENSES, Defense
from ppr_core.defenses.base import TrainingDefense
from ppr_core.errors import ConfigError, DataError
from ppr_core.method import Method
from ppr_core.metrics import clean_accuracy
from ppr_core.models import build
from ppr_core.models.base import Classifier
from ppr_core.runtime import session
from ppr_core.training import capture, checkpoint
from tests.conftest import shrink, tiny_model, tiny_set

HONEST = {"validation", "state"}
ANEW = {"build"}  # a defense that trains anew has no clean images
ORACLE = {"trigger", "score"}
SCHEDULED = [name for name, cls in DEFENSES.items() if "schedule" in cls.model_fields]
ANY_MODEL = {"ep", "ft", "ft_sam", "ibau", "neural_cleanse", "mesa", "sau"}  # need no parts of it
ANY_MODEL |= {"wd", "dist_reg", "abl"}
PICKY = set(DEFENSES) - ANY_MODEL
SIZE = 32  # the trigger generator halves its input four times


def asked(cls):
    """The names that a defense's `run` asks for, besides model, reserve and generator."""
    parameters = inspect.signature(cls.run).parameters
    return set(parameters) - {"self", "model", "data", "rng"}


def rebuilt(model, seed):
    """A network of a model's architecture with weights of its own."""
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return fresh


def call(cls, model, data, seed=0, given=None, extra=None, **settings):
    """Run a shrunken defense with whatever it asks for."""
    method = shrink(cls()).replace(**settings)
    held = tiny_set(16, size=SIZE, seed=1)
    named = {
        "validation": held,
        "trigger": Trigger(ATTACKS["badnet"](), {}),
        "score": lambda model: {"c_acc": clean_accuracy(model, held), "asr": 50.0},
        "build": lambda seed: rebuilt(model, seed),
        **(given or {}),
    }
    if method.preparation() is not None and "state" not in named:
        rng = torch.Generator().manual_seed(seed)
        named["state"] = method.prepare(model, data, rng=rng) if len(data) else {}
    named = {name: value for name, value in named.items() if name in asked(cls)} | (extra or {})
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


def test_recording_its_steps_changes_nothing(ran, monkeypatch, recorder):
    """Who says that a step is capturable (see `fit`) has said the truth."""
    cls, model, _, _, outcome = ran
    monkeypatch.setattr(capture.Step, "worth", 1)
    recorded = call(cls, model, tiny_set(size=SIZE))
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, recorded.model.state_dict()[name]), name
    assert recorded.cost.passes == outcome.cost.passes


def test_the_same_seed_gives_the_same_result(ran):
    """Whatever the global generator did before."""
    cls, model, _, _, outcome = ran
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        again = call(cls, model, tiny_set(size=SIZE))
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert outcome.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(t, again.tensors[name]) for name, t in outcome.tensors.items())


@pytest.mark.parametrize("name", SCHEDULED)
def test_another_seed_gives_another_result(name):
    one, two = (call(DEFENSES[name], tiny_model(), tiny_set(size=SIZE), seed) for seed in (0, 1))
    pairs = [(t, two.model.state_dict()[key]) for key, t in one.model.state_dict().items()]
    pairs += [(tensor, two.tensors[key]) for key, tensor in one.tensors.items()]
    assert not all(torch.equal(a, b) for a, b in pairs)


# -- nothing but the clean reserve ---------------------------------------------------------------


class Guard:
    """Stands where the attacker's secrets would be, and raises when it is touched."""

    def __call__(self, *args, **named):
        raise AssertionError("a defense touched what is not its clean reserve")

    def __getattr__(self, name):
        raise AssertionError(f"a defense asked for the attacker's {name}")


@pytest.mark.parametrize("name", DEFENSES)
def test_nothing_but_the_clean_reserve_is_touched(name, monkeypatch):
    cls, data, held = DEFENSES[name], tiny_set(size=SIZE), tiny_set(16, size=SIZE, seed=1)
    images, labels = data.images.clone(), data.labels.clone()
    named = {"validation": held}
    if not cls().oracle:  # the names may stand in `run` for other settings; as it is, no use
        named |= {"trigger": Guard(), "score": Guard()}
    for owner in (builtins, io):
        monkeypatch.setattr(owner, "open", Guard())
    outcome = call(cls, tiny_model().eval(), data, given=named)
    monkeypatch.undo()
    assert outcome.model is not None
    assert torch.equal(data.images, images)
    assert torch.equal(data.labels, labels)
    assert torch.equal(held.images, tiny_set(16, size=SIZE, seed=1).images)


@pytest.mark.parametrize("name", ["ep", "anp", "rnp", "fine_pruning", "pam"])
def test_the_guard_raises_where_an_oracle_touches_it(name):
    settings = {
        "anp": {"select": "oracle_asr"},
        "rnp": {"select": "oracle_asr"},
        "fine_pruning": {"select": "oracle_c_acc"},
        "pam": {"inversion": "real"},
    }.get(name, {})
    assert DEFENSES[name](**settings).oracle
    guards = {"trigger": Guard(), "score": Guard()}
    with pytest.raises(AssertionError, match="a defense (touched|asked)"):
        call(DEFENSES[name], tiny_model(), tiny_set(size=SIZE), given=guards, **settings)


@pytest.mark.parametrize("name", DEFENSES)
def test_what_is_not_named_cannot_be_handed_over(name, data):
    for secret in {"test", "poisoned", "target", *ORACLE} - asked(DEFENSES[name]):
        with pytest.raises(TypeError, match=f"'{secret}'"):
            call(DEFENSES[name], tiny_model(), data, given={"state": {}}, extra={secret: Guard()})


def test_no_defense_imports_a_way_to_load_data():
    for path in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("ppr_core.data") or (
                    node.module == "ppr_core.data.images"
                ), f"{path.name} imports {node.module}"
                if node.module.startswith("ppr_core.attacks"):  # the type of an argument
                    assert path.name == "ep.py"
                    assert [alias.name for alias in node.names] == ["Trigger"]


# -- reserves and models of other kinds ----------------------------------------------------------


ROUNDS = {"rounds": 2, "tuning": {"steps": 6, "batch_size": 16}}
SEARCH = {"decouple": {"steps": 6}, "generate": {"steps": 6}, "width": 2}
LONG = {name: {"schedule": {"steps": 6}} for name in SCHEDULED}
LONG["ep"]["redraw"] = True
LONG |= {name: {**ROUNDS, "inversion": SEARCH} for name in ("bti", "bti_p", "bti_sam", "pam")}
LONG["fst, a grid"] = {"schedule": {"steps": 6}, "alpha_grid": [0.1, 0.2], "c_acc_drop": 0}
WHOLE = {"rnp", "npd", "mesa", "neural_cleanse", "tsbd", "dist_reg"}  # repeat what may end early


SHARES = {name: (0.2, 0.5, 0.8) if "rounds" in LONG[name] else (0.5,) for name in LONG}


@pytest.mark.parametrize(
    ("name", "share"), [(n, share) for n in LONG if n not in WHOLE for share in SHARES[n]]
)
def test_a_run_that_is_killed_goes_on_to_the_same_result(name, share, tmp_path, monkeypatch):
    """Wherever that is, the search for a trigger included, no epoch done is done again."""
    cls, seen = DEFENSES[name.partition(",")[0]], []

    def run():
        seen.clear()
        return call(cls, tiny_model().eval(), tiny_set(size=SIZE), **LONG[name])

    with session(report=lambda *_: seen.append(0)):
        straight = run()
    epochs = len(seen)
    last = int(share * epochs) + 1

    def kill(*_):
        seen.append(0)
        if len(seen) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "interval_s", 0.0)
    with pytest.raises(KeyboardInterrupt), session(checkpoint=tmp_path, report=kill):
        run()
    with session(checkpoint=tmp_path, report=lambda *_: seen.append(0)):
        resumed = run()
    inner = name == "ibau"  # its perturbation is part of an epoch, which is made anew
    assert len(seen) == epochs - last + inner
    for key, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    assert len(resumed.history) == len(straight.history)


@pytest.mark.parametrize("name", DEFENSES)
def test_a_class_missing_from_the_reserve(name):
    data = tiny_set(24, size=SIZE)
    outcome = call(DEFENSES[name], tiny_model().eval(), data.subset(data.labels != 1))
    assert outcome.model(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 4)
    assert all(tensor.isfinite().all() for tensor in outcome.model.state_dict().values())


def small_densenet():
    """Batch norm before convolution, and a ReLU in the head: one layer a block."""
    net = zoo.DenseNet(4, (1, 1, 1, 1), 8, num_classes=4)
    return Classifier(net.features, net.classifier, relu_head=True)


ARCHITECTURES = {
    "resnet18": tiny_model,
    "resnet50": lambda: build({"name": "resnet50", "width": 2}, 4, seed=0),
    "densenet": small_densenet,
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", DEFENSES)
def test_a_reserve_smaller_than_a_batch_on_every_architecture(name, architecture):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ARCHITECTURES[architecture]().eval()
    outcome = call(DEFENSES[name], model, tiny_set(10, size=SIZE))
    assert outcome.model(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 4)
    assert all(tensor.isfinite().all() for tensor in outcome.model.state_dict().values())


@pytest.mark.parametrize("name", DEFENSES)
def test_a_model_in_one_piece_is_served_or_refused_clearly(name):
    lump = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))
    refused = pytest.raises(ConfigError, match="expected a model with")
    with refused if name in PICKY else nullcontext():
        outcome = call(DEFENSES[name], lump, tiny_set(size=SIZE))
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
    honest = ANEW if issubclass(cls, TrainingDefense) else HONEST
    assert asked(cls) <= (honest | ORACLE if may_be_oracle else honest)
    assert not any(
        parameter.kind is parameter.VAR_KEYWORD
        for parameter in inspect.signature(cls.run).parameters.values()
    )


SGD = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9}
ADAM = {"optimizer": "adam", "lr": 1e-4, "batch_size": 128, "decay": "constant"}
STEPPING = {**SGD, "momentum": 0.1, "weight_decay": 0.0, "batch_size": 128, "decay": "constant"}
PUBLISHED = {
    "ep": {"share": 0.1, "schedule": {**SGD, "epochs": 20, "decay": "cosine", "batch_size": 128}},
    "anp": {
        "eps": 0.4,
        "ascent_steps": 1,
        "alpha": 0.2,
        "tau_grid": [0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9],
        "schedule": {**SGD, "steps": 2000, "batch_size": 256},
    },
    "ibau": {
        "iterations": 5,
        "inner_lr": 0.1,
        "perturbation_lr": 10.0,
        "penalty": 0.001,
        "portion": 0.01,
        "at_least_one": True,
        "schedule": {**ADAM, "amsgrad": True, "epochs": 20, "batch_size": 256},
    },
    "ft_sam": {
        "rho": 1.0,
        "adaptive": True,
        "smoothing": 0.1,
        "schedule": {**SGD, "weight_decay": 5e-4, "epochs": 20, "batch_size": 256},
    },
    "fst": {
        "alpha": 0.1,
        "schedule": {**SGD, "weight_decay": 0.0, "epochs": 10, "decay": "cosine"},
    },
    "bti": {
        "rounds": 5,
        "reversed_share": 0.1,
        "tuning": {**ADAM, "epochs": 30},
        "inversion": {
            "width": 32,
            "norm_bound": 0.3,
            "feat_bound": 3.0,
            "pretrain": {**ADAM, "lr": 1e-3, "epochs": 50},
            "decouple": {**ADAM, "lr": 0.01},
            "generate": {**ADAM, "lr": 1e-3, "epochs": 30},
        },
    },
    "bti_sam": {"rounds": 3, "reversed_share": 0.2, "tuning": {**STEPPING, "epochs": 30}},
    "pam": {
        "rho": 0.5,
        "rounds": 3,
        "reversed_share": 0.2,
        "bn": "track_probe",
        "clip_to_segment": False,
        "per_layer_norm": False,
        "tuning": {**STEPPING, "epochs": 30},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name):
    method = DEFENSES[name]()
    assert method.replace(**PUBLISHED[name]) == method


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
