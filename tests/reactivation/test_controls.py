import itertools

import pytest
import torch
from torch import nn

from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError, DataError
from ppr_core.reactivation.perturbation import aimed, success_rates
from ppr_core.reactivation.triggers import Square, Triggers, Universal, universal
from ppr_core.runtime import session
from ppr_core.weights import snapshot
from tests.conftest import tiny_model, tiny_set

WHITE = Universal(eps=0.2, images=20, schedule={"steps": 15, "batch_size": 10})
QUERIES = Square(eps=0.2, images=20, iterations=40)
METHODS = [WHITE, QUERIES]


def search(method, model=None, data=None, seed=0, **named):
    data = data or aimed(tiny_set(), 1)
    rng = torch.Generator().manual_seed(seed)
    return method(model or tiny_model(seed=1), data, rng=rng, **named)


def target_loss(model, data, perturb, eps):
    with torch.no_grad():
        moved = perturb(to_float(data.images), torch.tensor([eps]))[0]
        return float(nn.functional.cross_entropy(model.eval()(moved), data.labels))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_one_direction_lowers_the_targets_loss_on_other_images(method):
    with session(precision="fp32"):
        model = tiny_model(seed=1)
        outcome = search(method, model)
        perturb = universal(outcome.tensors)
        other = aimed(tiny_set(40, seed=8), 1)
        assert target_loss(model, other, perturb, 0.2) < target_loss(model, other, perturb, 0)
    direction = outcome.tensors["direction"]
    assert direction.shape == (1, 3, 16, 16)
    assert 0 < direction.abs().max() <= 1


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_models_are_left_alone_and_the_seed_decides(method):
    model = tiny_model(seed=1).train()
    before, state = snapshot(model), torch.random.get_rng_state()
    outcome, again, other = (search(method, model, seed=seed) for seed in (0, 0, 1))
    for candidate in (model, outcome.model):
        assert all(torch.equal(before[n], t) for n, t in candidate.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in candidate.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(outcome.tensors["direction"], again.tensors["direction"])
    assert not torch.equal(outcome.tensors["direction"], other.tensors["direction"])


def test_signed_steps_by_hand():
    """One step of lr 0.25 moves every pixel by a quarter of the budget; more stop at the edge."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images):
            total = self.weight * images.flatten(1).sum(1) / 1000
            return torch.stack([total, -total], 1)

    data = tiny_set(8, classes=2).with_labels(torch.zeros(8, dtype=torch.int64))
    for steps, expected in ((1, 0.25), (3, 0.75), (9, 1.0)):
        schedule = {"steps": steps, "lr": 0.25}
        outcome = search(WHITE.replace(images=8, schedule=schedule), Sum(), data)
        assert torch.allclose(outcome.tensors["direction"], torch.tensor(expected))


def test_the_transfer_attack_never_touches_the_model():
    class Unseen(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images):
            raise AssertionError("the attacked model was queried")

    surrogates = [tiny_model(seed=1).train(), tiny_model(seed=2)]
    before = [snapshot(model) for model in surrogates]
    outcome = search(WHITE, Unseen(), surrogates=surrogates)
    assert outcome.info["transferred"] is True
    for model, saved in zip(surrogates, before, strict=True):
        assert all(torch.equal(saved[n], t) for n, t in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert model.training
    alone = search(WHITE, surrogates[0])
    assert not torch.equal(outcome.tensors["direction"], alone.tensors["direction"])


def test_the_transferred_trigger_is_none_of_the_others_where_epochs_are_saved(tmp_path):
    """All searches of a stage share one folder of checkpoints; none goes on from another's."""
    settings = Triggers(white_box=WHITE, queries=QUERIES, transfer=WHITE)
    model, others = tiny_model(seed=1), [tiny_model(seed=2)]

    def searched():
        white = search(settings.white_box, model)
        queries = search(settings.queries, model)
        transferred = search(settings.transfer, model, surrogates=others)
        return [outcome.tensors["direction"] for outcome in (white, queries, transferred)]

    plain = searched()
    with session(checkpoint=tmp_path):
        saved = searched()
    with session(checkpoint=tmp_path):
        resumed = searched()
    for one, two in itertools.combinations(plain, 2):
        assert not torch.equal(one, two)
    for expected, first, again in zip(plain, saved, resumed, strict=True):
        assert torch.equal(expected, first)
        assert torch.equal(expected, again)
    assert {path.stem for path in tmp_path.iterdir()} == {"white_box", "transfer"}


def test_square_search_uses_answers_only_and_counts_them():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.images = tiny_model(seed=1), 0

        def forward(self, images):
            assert not torch.is_grad_enabled()
            assert images.min() >= 0 and images.max() <= 1
            self.images += len(images)
            return self.inner(images)

    outcome = search(QUERIES, Counted())
    assert outcome.info["queries"] == outcome.model.images == 41 * 20
    assert outcome.history[-1]["queries"] == 41 * 20
    losses = [record["loss"] for record in outcome.history]
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True), "a worse square was kept"
    assert (outcome.tensors["direction"].abs() == 1).all()


def test_squares_shrink():
    start, rng = torch.zeros(1, 3, 32, 32), torch.Generator().manual_seed(0)
    sides = []
    for done in (0.0, 0.05, 0.5, 0.9):
        changed = QUERIES._with_square(start, done, rng)[0, 0] != 0
        sides.append(int(changed.any(0).sum()))
        assert int(changed.sum()) == sides[-1] ** 2, "not a square"
    assert sides == [29, 10, 4, 2]  # 0.8 of the area, then an eighth, 1/64, 1/256 of that
    assert not start.any(), "the direction was changed in place"


def test_no_iterations_leave_the_stripes():
    outcome = search(QUERIES.replace(iterations=0))
    direction = outcome.tensors["direction"]
    assert torch.equal(direction, direction[:, :, :1].expand_as(direction))
    assert outcome.history == []


def test_budgets_scale_one_direction():
    perturb = universal({"direction": torch.full((1, 3, 16, 16), -1.0)})
    images = torch.full((2, 3, 16, 16), 0.5)
    moved = perturb(images, torch.tensor([0.0, 0.1, 0.9]))
    assert [round(float(m.mean()), 4) for m in moved] == [0.5, 0.4, 0.0]
    with pytest.raises(CheckpointError, match="tensor 'direction'"):
        universal({})


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_errors(method, model):
    with pytest.raises(DataError, match="at most 12 images"):
        search(method, model, aimed(tiny_set(16), 1))
    with pytest.raises(DataError, match="labelled with one target"):
        search(method, model, tiny_set())


def test_the_control_reaches_a_target_from_clean_images():
    """A universal perturbation of a large budget fools a model that has no backdoor."""
    model = tiny_model(seed=1)
    outcome = search(WHITE.replace(eps=0.5), model)
    before, after = success_rates(
        {"m": model}, aimed(tiny_set(), 1), universal(outcome.tensors), [0, 0.5]
    )["m"]
    assert after > before
