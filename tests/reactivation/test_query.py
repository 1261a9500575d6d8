import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError, DataError
from ppr_core.models.base import Normalise
from ppr_core.reactivation import query
from ppr_core.reactivation.perturbation import EPS, aimed, along, success_rates
from ppr_core.reactivation.query import PAPER_ALPHAS, Generator, Query, generator_of
from ppr_core.runtime import session
from ppr_core.training import capture
from ppr_core.weights import snapshot
from tests.conftest import shrink, tiny_model, tiny_set

FAST = Query(clean=12, poisoned=8, width=8, schedule={"epochs": 3, "batch_size": 8})


def stamped(count=16):
    """Triggered images with their true labels, none of the target class 0."""
    data = tiny_set(64, seed=5)
    data = data.subset(data.labels != 0).subset(torch.arange(count))
    images = data.images.clone()
    images[..., -3:, -3:] = 255
    return data.with_images(images)


def run(method=FAST, model=None, retuned=None, surrogate=None, seed=0):
    model, retuned = model or tiny_model(seed=1), retuned or tiny_model(seed=2)
    return method(
        model,
        tiny_set(),
        rng=torch.Generator().manual_seed(seed),
        retuned=retuned,
        surrogate=surrogate or tiny_model(seed=3),
        triggered=stamped(),
    )


def test_defaults_are_the_published_ones():
    method = Query()
    generator = Generator(3 * 32 * 32, method.width, method.depth, torch.zeros(1), torch.ones(1))
    assert sum(p.numel() for p in generator.parameters()) == 8_394_752
    assert [type(layer).__name__ for layer in generator.layers] == ["Linear", "ReLU"] * 3 + [
        "Linear",
        "Tanh",
    ]
    assert method.eps == 16 / 255
    assert method.schedule.total_steps(1000) == 400
    assert (method.form, method.alpha, PAPER_ALPHAS) == ("code", 0.2, {"lc": 0.1})


@pytest.mark.parametrize("form", ["code", "paper"])
def test_recording_its_steps_changes_nothing(form, monkeypatch, recorder):
    """Its step is capturable (see `fit`), as it says."""
    method = FAST.replace(form=form)
    eager = run(method)
    monkeypatch.setattr(capture.Step, "worth", 1)
    recorded = run(method)
    assert recorder == [6]  # two full batches of three epochs; the last ones are smaller
    assert all(torch.equal(t, recorded.tensors[name]) for name, t in eager.tensors.items())
    assert recorded.cost.passes == eager.cost.passes


@pytest.mark.parametrize(("form", "alpha"), [("code", 0.2), ("code", 0.0), ("paper", 0.2)])
def test_no_gradient_reaches_the_three_models(form, alpha):
    models = [tiny_model(seed=seed).train() for seed in range(3)]
    before = [snapshot(model) for model in models]
    asked = []

    def check(model, args):
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())
        asked.append((wanted, any(module.training for module in model.modules())))

    hooks = [model.register_forward_pre_hook(check) for model in models]
    outcome = run(FAST.replace(form=form, alpha=alpha), *models)
    for hook in hooks:
        hook.remove()
    assert len(asked) == 9 + 9 + 1, "each step asks two models; the retuned one answers once"
    assert set(asked) == {(False, False)}, "weights wanted a gradient, or a model was in train mode"
    for model, saved in zip([*models, outcome.model], [*before, before[0]], strict=True):
        assert all(torch.equal(saved[name], t) for name, t in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training for model in models for module in model.modules())


def test_the_generator_learns_and_the_seed_decides():
    first, again, other = (run(seed=seed).tensors for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["generator.layers.0.weight"], other["generator.layers.0.weight"])
    still = run(FAST.replace(schedule={"epochs": 0})).tensors
    assert not torch.equal(first["generator.layers.6.bias"], still["generator.layers.6.bias"])


def test_perturbations_stay_within_the_budget_in_training_and_in_evaluation():
    """What the models are shown in training differs from a pool image by eps at most."""
    model, surrogate = tiny_model(seed=1), tiny_model(seed=3)
    seen = []
    surrogate.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    big = FAST.replace(schedule={"lr": 5.0})  # saturates the generator
    outcome = run(big, model, surrogate=surrogate)
    shown = torch.cat(seen)
    pool = to_float((tiny_set() + stamped()).images)
    nearest = (shown[:, None] - pool[None]).abs().flatten(2).amax(2).amin(1)
    assert nearest.max() <= EPS + 1e-6
    assert nearest.max() > EPS / 2, "the test saw no perturbation"
    assert shown.min() >= 0 and shown.max() <= 1
    generator = generator_of(outcome.tensors)
    images = to_float(tiny_set().images)
    moved = along(generator)(images, torch.tensor([0.0, EPS]))
    assert torch.equal(moved[0], images)
    assert (moved[1] - images).abs().max() <= EPS + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1


def test_no_budget_leaves_the_plain_divergence():
    """eps = 0: the loss is KL(retuned || purified) on the plain images, and constant."""
    model, retuned = tiny_model(seed=1).eval(), tiny_model(seed=2).eval()
    method = FAST.replace(eps=0.0, form="paper", alpha=0.0, schedule={"batch_size": 64})
    with session(precision="fp32"):
        losses = [record["loss"] for record in run(method, model, retuned).history]
        pool = caught_pool(method)
        with torch.no_grad():
            images = to_float(pool.images)
            student, teacher = model(images), retuned(images)
        weights = teacher.softmax(1)
        expected = (weights * (weights.log() - student.log_softmax(1))).sum(1).mean()
    assert losses == pytest.approx([float(expected)] * 3, rel=1e-4)
    assert float(expected) > 1e-3
    with session(precision="fp32"):
        same = run(method, model, model).history
    assert [record["loss"] for record in same] == pytest.approx([0.0] * 3, abs=1e-6)


def caught_pool(method):
    """The pool that QRA trains on."""
    caught = {}

    def catch(generator, model, surrogate, retuned, pool, rng):
        caught["pool"] = pool
        return []

    patch = pytest.MonkeyPatch()
    patch.setattr(Query, "_train", lambda self, *args: catch(*args))
    run(method)
    patch.undo()
    return caught["pool"]


def test_the_pool_is_half_triggered_with_true_labels():
    pool = caught_pool(FAST)
    marked = (pool.images[..., -3:, -3:] == 255).flatten(1).all(1)
    assert (len(pool), int(marked.sum())) == (20, 8)
    assert (pool.labels[marked] != 0).all()
    truth = {i.numpy().tobytes(): int(y) for s in (tiny_set(), stamped()) for i, y in pairs(s)}
    assert all(truth[image.numpy().tobytes()] == int(label) for image, label in pairs(pool))


def pairs(data):
    return zip(data.images, data.labels, strict=True)


def test_images_are_never_augmented_and_the_teacher_matches_its_image(monkeypatch):
    """Each batch's teacher answers are those of the very images of the batch."""
    model = tiny_model(seed=1).eval()
    seen = []
    monkeypatch.setattr(
        Query,
        "objective",
        lambda self, student, teacher, surrogate, labels: (
            seen.append((student.detach(), teacher, labels)) or student.sum()
        ),
    )
    with session(precision="fp32"):
        run(FAST.replace(eps=0.0, schedule={"crop": 4, "flip": True}), model, retuned=model)
    for student, teacher, labels in seen:
        assert torch.allclose(student, teacher, atol=1e-5)
        assert labels.dtype == torch.int64 and labels.max() < 4


def test_the_two_forms_differ_by_a_factor():
    student, teacher, surrogate = torch.randn(3, 5, 4)
    labels = torch.tensor([0, 1, 2, 3, 0])
    for alpha in (0.1, 0.2, 3.0):
        code = Query(form="code", alpha=alpha).objective(student, teacher, surrogate, labels)
        paper = Query(form="paper", alpha=1 / alpha).objective(student, teacher, surrogate, labels)
        assert float(code) == pytest.approx(alpha * float(paper), rel=1e-5)


def test_objective_by_hand():
    teacher = torch.tensor([[0.0, 0.0]])
    student = torch.tensor([[3.0, 0.0]]).log()[:, :1].repeat(1, 2) * torch.tensor([1.0, 0.0])
    # Teacher (1/2, 1/2), student (3/4, 1/4): KL = 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3).
    expected = 0.5 * torch.tensor(4 / 3).log()
    surrogate, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    right = F.cross_entropy(surrogate, labels)
    arguments = (student, teacher, surrogate, labels)
    assert torch.allclose(Query(alpha=0.0).objective(*arguments), right)
    assert torch.allclose(Query(form="paper", alpha=0.0).objective(*arguments), expected)
    assert torch.allclose(Query(alpha=0.5).objective(*arguments), 0.5 * expected + right)


@pytest.mark.parametrize(("width", "depth"), [(8, 1), (5, 4)])
def test_the_generator_comes_back_from_its_tensors(width, depth):
    outcome = run(FAST.replace(width=width, depth=depth))
    tensors = dict(sorted(outcome.tensors.items())) | {"model.linear.weight": torch.zeros(1)}
    generator = generator_of(tensors)
    images = to_float(tiny_set(6).images)
    whole = Generator(
        images[0].numel(), width, depth, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    )
    whole.load_state_dict({k.removeprefix("generator."): t for k, t in outcome.tensors.items()})
    assert torch.equal(generator(images), whole(images))
    assert not any(p.requires_grad for p in generator.parameters())
    with pytest.raises(CheckpointError, match="tensors of a generator"):
        generator_of({"mask": torch.zeros(1)})


class Bright(nn.Module):
    """Answers class 0 where the mean pixel is above a level, class 1 elsewhere."""

    def __init__(self, level):
        super().__init__()
        self.normalise = Normalise((0.5,) * 3, (0.2,) * 3)
        self.level = nn.Parameter(torch.tensor(float(level)))

    def forward(self, images):
        above = 20 * (images.flatten(1).mean(1) - self.level)
        return torch.stack([above, -above, above - 99, above - 99], 1)


def test_it_carries_the_retuned_answers_over():
    """The retuned model finds 0 where the purified one needs brighter images: QRA brightens."""
    purified, retuned = Bright(0.45), Bright(0.1)
    schedule = {"epochs": 15, "lr": 0.05}
    method = FAST.replace(form="paper", alpha=0.0, eps=0.3, width=32, clean=24, schedule=schedule)
    with session(precision="fp32"):
        outcome = run(method, purified, retuned, Bright(0.3))
        perturb = along(generator_of(outcome.tensors))
        unseen = aimed(tiny_set(40, seed=9), 0)
        rates = success_rates({"purified": purified}, unseen, perturb, [0, 0.3])["purified"]
    assert outcome.history[-1]["loss"] < 0.1 * outcome.history[0]["loss"]
    assert rates == [0.0, 100.0]


def test_the_surrogate_holds_it_back():
    """Where the surrogate is the purified model itself, waking it would make its answers wrong."""
    purified, retuned, truth = Bright(0.45), Bright(0.1), Bright(0.45)
    data = tiny_set(48).with_labels(torch.ones(48, dtype=torch.int64))
    schedule = {"epochs": 15, "lr": 0.05}
    method = FAST.replace(eps=0.3, width=32, clean=24, poisoned=0, schedule=schedule)
    with session(precision="fp32"):
        outcome = method(
            purified,
            data,
            rng=torch.Generator().manual_seed(0),
            retuned=retuned,
            surrogate=truth,
            triggered=data,
        )
        perturb = along(generator_of(outcome.tensors))
        unseen = aimed(tiny_set(40, seed=9), 0)
        rates = success_rates({"purified": purified}, unseen, perturb, [0.3])["purified"]
    assert rates == [0.0]


def test_cost_counts_the_purified_model():
    cost = run().cost
    assert (cost.forward, cost.backward, cost.images) == (9, 9, 60)


def test_errors(data):
    for method, message in (
        (FAST.replace(clean=49), "at most 48 clean images"),
        (FAST.replace(poisoned=17), "at most 16 poisoned images"),
    ):
        with pytest.raises(DataError, match=message):
            run(method)
    assert shrink(Query()).width == 2
    assert query.PREFIX == "generator."
