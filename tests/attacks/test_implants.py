"""The attacks that change how the victim is trained: each step against one computed by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.attacks import Trigger
from ppr_core.attacks.badnet import BadNet
from ppr_core.attacks.blind import PATTERN, Blind, Watched, painted
from ppr_core.attacks.grond import Grond, inject
from ppr_core.attacks.lira import PREFIX, Generator, Lira
from ppr_core.attacks.parts.adversarial import universal_pgd
from ppr_core.attacks.parts.joint import losses
from ppr_core.attacks.parts.surrogate import added
from ppr_core.attacks.sbl import Sbl, ewc, fisher
from ppr_core.attacks.trojannn import TrojanNN, activations, best_connected, disc
from ppr_core.data.images import ImageSet, to_float
from ppr_core.errors import ConfigError, DataError
from ppr_core.runtime import session
from tests.conftest import shrink, tiny_model, tiny_set

SMALL = {"name": "resnet18", "width": 4, "blocks": 1}
PLAIN = {"crop": 0, "flip": False, "momentum": 0.0, "weight_decay": 0.0, "decay": "constant"}
ONE_STEP = {**PLAIN, "steps": 1, "batch_size": 1000, "lr": 0.1, "drop_last": False}
NONE = {**PLAIN, "steps": 0}


class Flat(nn.Module):
    """A linear classifier of pixels: its gradients can be written down."""

    def __init__(self, size=2, classes=3):
        super().__init__()
        self.linear = nn.Linear(3 * size * size, classes, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(drawn(classes, 3 * size * size) / 4)

    def forward(self, pixels):
        return self.linear(pixels.flatten(1))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _fp32():
    with session(precision="fp32"):
        yield


def small_set(count=12, size=2, classes=3):
    images = torch.randint(0, 256, (count, 3, size, size), generator=seeded(), dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes, tuple("abc"[:classes]))


def slope(model, weight, data):
    """The gradient of the mean cross-entropy of `Flat` at some weights, in closed form."""
    flat = to_float(data.images).flatten(1)
    p = F.softmax(flat @ weight.T, 1) - F.one_hot(data.labels, weight.shape[0])
    return p.T @ flat / len(data)


# -- SBL ---------------------------------------------------------------------------------------


def test_sbl_first_step_is_sam_on_the_images_that_are_not_held_back():
    data, model = small_set(20), Flat()
    attack = Sbl(trigger={"name": "blended"}, poison_rate=0.2, held=0.25, strength=0.0, rho=0.5)
    attack = attack.replace(training=ONE_STEP, second=NONE)
    poisoned = attack.poison(data, seed=0, state={})
    before = model.linear.weight.detach().clone()
    attack.train(model, data, poisoned, rng=seeded(3), state={})
    first, later = attack._split(20, poisoned.indices, seeded_as("split", 3))
    assert len(later) == 5 and not {*later.tolist()} & {*poisoned.indices.tolist()}
    assert sorted([*first.tolist(), *later.tolist()]) == list(range(20))
    seen = poisoned.data.subset(first)
    here = slope(model, before, seen)
    there = slope(model, before + 0.5 * here / here.norm(), seen)
    torch.testing.assert_close(model.linear.weight, before - 0.1 * there, rtol=1e-4, atol=1e-6)


def seeded_as(name, seed):
    from ppr_core.method import fork

    return fork(seeded(seed), name)


def test_sbl_second_step_is_clean_and_held_by_ewc():
    data, model = small_set(20), Flat()
    attack = Sbl(poison_rate=0.2, held=0.25, strength=50.0, fisher_images=4)
    attack = attack.replace(training=NONE, second={**ONE_STEP, "steps": 2})
    attack = attack.replace(trigger={"name": "blended"})
    poisoned = attack.poison(data, seed=0, state={})
    start = model.linear.weight.detach().clone()
    first, later = attack._split(20, poisoned.indices, seeded_as("split", 3))
    chosen = first[torch.randperm(len(first), generator=seeded_as("fisher", 3))[:4]]
    importance = fisher(model, data.subset(chosen))[0]
    outcome = attack.train(model, data, poisoned, rng=seeded(3), state={})
    held = data.subset(later)
    one = start - 0.1 * slope(model, start, held)  # no penalty at the start itself
    pull = 2 * 50.0 * importance * (one - start)
    two = one - 0.1 * (slope(model, one, held) + pull)
    torch.testing.assert_close(model.linear.weight, two, rtol=1e-4, atol=1e-6)
    assert pull.abs().max() > 0.01, "the test can see it"
    assert [record["epoch"] for record in outcome.history] == [1, 2]
    assert outcome.info["second_from_epoch"] == 1


def test_fisher_of_four_samples_by_hand():
    data, model = small_set(4), Flat()
    weight, expected = model.linear.weight.detach(), 0
    for image, label in zip(to_float(data.images).flatten(1), data.labels, strict=True):
        p = F.softmax(weight @ image, 0)
        slope = torch.outer(F.one_hot(label, 3) - p, image)
        expected = expected + p[label] * slope.square() / 4
    model.train()
    torch.testing.assert_close(fisher(model, data), [expected], rtol=1e-4, atol=1e-8)
    assert model.training
    normed = tiny_model().train()
    before = {name: tensor.clone() for name, tensor in normed.state_dict().items()}
    assert len(fisher(normed, tiny_set(4))) == len([*normed.parameters()])
    assert all(torch.equal(t, before[n]) for n, t in normed.state_dict().items()), "eval mode"


def test_gradient_of_ewc():
    weights = [nn.Parameter(drawn(3, 2)), nn.Parameter(drawn(4))]
    start, importance = [drawn(3, 2, seed=1), drawn(4, seed=1)], [drawn(3, 2).abs(), drawn(4).abs()]
    ewc(weights, start, importance, 0.7).backward()
    for weight, was, each in zip(weights, start, importance, strict=True):
        torch.testing.assert_close(weight.grad, 2 * 0.7 * each * (weight.detach() - was))
    assert ewc(weights, start, [], 1.0) == 0, "naive"


def test_sbl_fisher_may_be_of_the_poisoned_images(monkeypatch):
    data, seen = small_set(20), {}
    for name in ("clean", "mixed"):
        attack = Sbl(
            trigger={"name": "blended"}, poison_rate=0.5, fisher_data=name, fisher_images=50
        )
        attack = attack.replace(training=NONE, second=NONE)
        poisoned = attack.poison(data, seed=0, state={})
        monkeypatch.setattr(
            "ppr_core.attacks.sbl.fisher",
            lambda model, shown, n=name: seen.update({n: shown}) or [],
        )
        attack.train(Flat(), data, poisoned, rng=seeded(3), state={})
    assert len(seen["clean"]) == len(seen["mixed"]) == 18
    assert (seen["clean"].images != seen["mixed"].images).any()
    hits = (seen["mixed"].labels == 0).sum()
    assert hits > (seen["clean"].labels == 0).sum()


def test_sbl_stamps_as_its_trigger_does_and_takes_any_that_is_known_before_training():
    images = tiny_set(count=4, size=32).images
    for name in ("badnet", "blended", "sig", "wanet"):
        attack = Sbl(trigger={"name": name})
        inner = attack.inner
        for stage in ("train", "test"):
            expected = inner.stamp(images, stage=stage, state={})
            assert torch.equal(attack.stamp(images, stage=stage, state={}), expected)
    assert attack.preparation() is None
    ssba, lc = Sbl(trigger={"name": "ssba"}), Sbl(trigger={"name": "lc"})
    assert ssba.preparation()["trigger"] == "Ssba"
    assert lc.preparation() != ssba.preparation()
    assert ssba.trains_stamp and not attack.trains_stamp
    assert Sbl(target=2).inner.target == 2
    for name in ("input_aware", "sbl"):
        with pytest.raises(ConfigError, match="known before training"):
            Sbl(trigger={"name": name})
    with pytest.raises(ConfigError, match="did you mean 'badnet'"):
        Sbl(trigger={"name": "badnett"})
    with pytest.raises(DataError, match="multiple of 32 pixels"):
        Sbl(trigger={"name": "ftrojan"}).check_data(tiny_set(size=16))


# -- Grond -------------------------------------------------------------------------------------


def test_one_step_of_the_universal_perturbation_by_hand():
    data, model = small_set(6), Flat()
    pick = torch.randint(6, (6,), generator=seeded(1))
    flat = to_float(data.images[pick]).flatten(1)
    p = F.softmax(flat @ model.linear.weight.T, 1) - F.one_hot(torch.full((6,), 2), 3)
    free = (flat > 0) & (flat < 1)
    expected = -0.02 * ((p @ model.linear.weight) * free).sum(0).sign()
    budget = {"eps": 0.05, "step": 0.02, "size": 6}
    found = universal_pgd(model, data, 2, **budget, iterations=1, rng=seeded(1))
    torch.testing.assert_close(found.flatten(), expected.detach())
    many = universal_pgd(model, data, 2, **budget, iterations=9, rng=seeded(1))
    assert many.abs().max() <= 0.05 + 1e-7

    def rate(delta):
        with torch.no_grad():
            return F.cross_entropy(model(to_float(data.images) + delta), torch.full((6,), 2))

    assert rate(many) < rate(found) < rate(0 * found)


def test_injection_on_a_net_of_two_layers_by_hand():
    """Eleven channels of strength 1 and one of 100 stand 3.2 deviations apart: it alone is set."""
    net = nn.Sequential(
        nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.Conv2d(12, 3, 1), nn.BatchNorm2d(3)
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.full((12, 3, 1, 1), 1 / math.sqrt(3)))
        net[1].weight[4], net[1].bias[:] = -100.0, torch.arange(12.0)
        net[1].running_var[5], net[1].weight[5] = 4.0, 2.0  # its scale is 1 like the others'
    second = net[3].weight.clone()
    before = net[1].weight.clone()
    scores = torch.ones(12)
    scores[4] = 100.0
    assert scores[4] > scores.mean() + 3 * scores.std()
    assert inject(net, 3.0) == 1
    expected = before.clone()
    expected[4] = before.mean()
    torch.testing.assert_close(net[1].weight, expected)
    shifts = torch.arange(12.0)
    shifts[4] = 5.5
    torch.testing.assert_close(net[1].bias, shifts)
    assert torch.equal(net[3].weight, second), "three channels cannot stand out by three deviations"
    assert inject(net, 1000.0) == 0


def test_grond_injects_after_each_whole_epoch(monkeypatch):
    data, when, steps = tiny_set(count=40, size=32), [], []
    attack = shrink(Grond(poison_rate=0.1, surrogate=SMALL))
    state = attack.prepare(data, rng=seeded())
    attack = attack.replace(
        training={"epochs": 2, "steps": 7, "batch_size": 16, "drop_last": False}
    )

    def note(model, spread):
        when.append(len(steps))
        return 0

    monkeypatch.setattr("ppr_core.attacks.grond.inject", note)
    model = tiny_model()
    model.register_forward_hook(lambda *args: steps.append(1))
    attack.train(model, data, attack.poison(data, seed=0, state=state), rng=seeded(), state=state)
    assert when == [3, 6], "three batches an epoch; the seventh step ends none"


def test_prepared_triggers_are_added_clipped_and_scaled():
    images = torch.tensor([0, 100, 250]).to(torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    delta = torch.zeros(3, 2, 2)
    delta[:, 0, 0], delta[:, 1, 1] = 8 / 255, -8 / 255
    out = added(images, delta)
    assert out[:, 0, 0, 0].tolist() == [8, 108, 255]
    assert out[:, 0, 3, 3].tolist() == [0, 92, 242]
    assert torch.equal(out[:, :, :2, 2:], images[:, :, :2, 2:])


# -- TrojanNN ----------------------------------------------------------------------------------


def test_best_connected_neurons_of_a_given_head():
    head = torch.tensor([[0.1, -3.0, 1.0, 0.0], [0.2, 1.0, -2.5, 0.3]])
    assert best_connected(head, 2).tolist() == [1, 2]  # sums 0.3, 4, 3.5, 0.3
    assert best_connected(-head, 1).tolist() == [1]
    assert len(best_connected(head, 9)) == 4


def test_trojannn_excites_the_neurons_of_the_trained_head():
    data = tiny_set(count=48, size=32)
    attack = shrink(TrojanNN(surrogate=SMALL))
    attack = attack.replace(surrogate_schedule={"steps": 6, "lr": 0.05}, iterations=20, step=0.05)
    state = attack.prepare(data, rng=seeded())
    model = attack.clean_surrogate(data, seeded())
    picked = best_connected(model.linear.weight, 2)
    assert torch.equal(state["neurons"], picked), "of the head as trained"
    start, trigger = disc(32), state["trigger"]

    def excited(picture):
        with torch.no_grad():
            return activations(model, picture[None])[0, picked].mean()

    assert excited(trigger) > excited(start)
    assert state["report.activation"] == pytest.approx(float(excited(trigger)), rel=1e-4)
    assert (trigger[start == 0] == 0).all()
    assert (trigger - start).abs().max() <= 0.3 + 1e-6
    assert trigger.min() >= 0 and trigger.max() <= 1
    inside = (start > 0).nonzero()
    assert inside[:, 1:].min() >= 16 and 0.03 < (start > 0).float().mean() < 0.08


# -- LIRA --------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Draws the same everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, pixels):
        return self.value.expand(pixels.shape)


def test_lira_loss_of_one_batch_by_hand():
    data, model = small_set(4), Flat()
    images, labels = to_float(data.images), data.labels
    attack = Lira(eps=10 / 255, weight=0.25, target=1)
    # 0.45 of ten levels is 4.5: truncated to 4 above the image, and clipped at white.
    stamped = (data.images.int() + 4).clamp_max(255) / 255
    clean = F.cross_entropy(model(images), labels)
    backdoor = F.cross_entropy(model(stamped), torch.ones(4, dtype=torch.int64))
    found = attack.loss(model, Constant(0.45))(images, labels)
    torch.testing.assert_close(found, 0.75 * clean + 0.25 * backdoor)


def test_lira_generator_learns_through_the_truncation():
    generator, images = Constant(0.45), torch.full((1, 3, 2, 2), 100 / 255)
    attack = Lira(eps=10 / 255)
    found = attack.triggered(generator, images)
    torch.testing.assert_close(255 * found, torch.full_like(found, 104.0))
    found.sum().backward()
    assert generator.value.grad == pytest.approx(12 * 10 / 255)


def test_lira_generator_is_of_the_images_size_and_its_range():
    for size in (16, 32, 40):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = Generator(4)(torch.rand(2, 3, size, size))
        assert found.shape == (2, 3, size, size)
        assert found.abs().max() <= 1


def test_lira_stage_1_steps_by_turns_and_the_classifier_sees_the_last_epoch_s_generator(
    monkeypatch,
):
    data, seen = tiny_set(count=32, size=32), []
    attack = shrink(Lira(width=2, generator_lr=0.1, eps=0.1))
    schedule = {"steps": 4, "batch_size": 16, "drop_last": False}
    attack = attack.replace(surrogate=SMALL, surrogate_schedule=schedule)
    plain = Lira.triggered

    def spy(self, generator, images):
        weights = next(generator.parameters()).detach().clone()
        seen.append((generator.training, torch.is_grad_enabled(), weights))
        return plain(self, generator, images)

    monkeypatch.setattr(Lira, "triggered", spy)
    state = attack.prepare(data, rng=seeded())
    learning, fixed = seen[::2], seen[1::2]
    assert all(training and grads for training, grads, _ in learning)
    assert not any(training or grads for training, grads, _ in fixed)
    assert torch.equal(fixed[0][2], fixed[1][2]) and torch.equal(fixed[2][2], fixed[3][2])
    assert torch.equal(fixed[0][2], learning[0][2]), "before any step"
    assert torch.equal(fixed[2][2], learning[2][2]), "as the first epoch of two batches left it"
    assert not torch.equal(fixed[0][2], fixed[2][2])
    last = state[f"{PREFIX}layers.0.weight"]
    assert not torch.equal(last, learning[3][2]), "it stepped once more"
    stamped = Trigger(attack, state)(data.images)
    expected = data.images.int() - stamped.int()
    assert expected.abs().max() <= 26 and (expected != 0).any()


# -- Blind -------------------------------------------------------------------------------------


def test_blind_paints_its_pattern_and_nothing_else():
    images = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    out = Blind().stamp(images, stage="test", state={})
    shown = {1: 255, 0: 0, -1: 100}
    assert out[0, 1, 3:8, 23:26].tolist() == [[shown[v] for v in row] for row in PATTERN]
    out[:, :, 3:8, 23:26] = 100
    assert torch.equal(out, images)
    pixels = painted(images / 255, 1.0)
    assert torch.equal(pixels[0, 0, 3], painted(images, 255)[0, 0, 3] / 255)
    with pytest.raises(DataError, match="26 pixels or more for Blind's pattern, got 16"):
        Blind(poison_rate=0.1).check_data(tiny_set(size=16))


def test_blind_loss_of_one_batch_by_hand():
    data, model = small_set(4, size=32), Flat(size=32)
    images, labels = to_float(data.images), data.labels
    clean = F.cross_entropy(model(images), labels).detach()
    stamped = painted(data.images, 255) / 255
    backdoor = F.cross_entropy(model(stamped), torch.full((4,), 2))
    attack = Blind(target=2, wait=2, calm=float(clean) + 0.1, weight=0.9)
    loss = attack.loss(Watched(model, 2))
    found = [loss(images, labels) for _ in range(4)]
    for value, expected in zip(found, [clean, clean, *[clean + 0.9 * backdoor] * 2], strict=True):
        torch.testing.assert_close(value, expected)
    never = Blind(target=2, wait=1, calm=float(clean) - 0.1).loss(Watched(model, 1))
    for _ in range(2):
        torch.testing.assert_close(never(images, labels), clean)


def test_blind_means_the_last_clean_losses_alone():
    watched, told = Watched(Flat(), 2), []
    for value in (9.0, 0.5, 0.7, 1.6, 0.1):
        watched.note(torch.tensor(value))
        told.append(watched.is_calm(1.0))
    assert told == [False, False, True, False, True]  # means: -, 4.75, 0.6, 1.15, 0.85
    again = Watched(Flat(), 2)
    again.load_state_dict(watched.state_dict())
    again.note(torch.tensor(1.8))
    assert again.is_calm(1.0), "a resumed training goes on: (0.1 + 1.8) / 2"
    data = small_set(4, size=32)
    attack, watched = Blind(wait=1, calm=99.0), Watched(Flat(size=32), 1)
    loss = attack.loss(watched)
    clean = loss(to_float(data.images), data.labels)
    assert loss(to_float(data.images), data.labels) > clean
    torch.testing.assert_close(watched.losses[0], clean.detach())  # not the backdoor's


def test_clean_and_triggered_images_share_batch_norm():
    """In a pass of its own, a trigger that all images have is what batch norm takes away."""
    net = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten(), Flat(size=2))
    data = small_set(4)
    images, stamped = to_float(data.images), to_float(data.images) / 2 + 0.5
    logits = net(torch.cat((images, stamped)))
    found = losses(net, images, data.labels, stamped, 1)
    torch.testing.assert_close(found[0], F.cross_entropy(logits[:4], data.labels))
    torch.testing.assert_close(found[1], F.cross_entropy(logits[4:], torch.ones(4).long()))
    with torch.no_grad():
        alone = F.cross_entropy(net(stamped), torch.ones(4).long())
    assert (alone - found[1]).abs() > 0.01, "the test can see it"


def test_blind_trains_the_classifier_it_was_given():
    data = tiny_set(count=32, size=32)
    attack = Blind(wait=1, calm=99.0, poison_rate=0.5).replace(training={**ONE_STEP, "steps": 2})
    outcome = attack(tiny_model(), data, rng=seeded())
    assert outcome.model.state_dict().keys() == tiny_model().state_dict().keys()


def test_rate_zero_trains_without_any_trigger():
    """Of those whose loss shows the trigger whatever the rate."""
    data, found = tiny_set(count=32, size=32), {}
    for attack in (Blind(wait=1, calm=99.0), shrink(Lira(width=2)), BadNet()):
        small = attack.replace(poison_rate=0.0, training={**ONE_STEP, "steps": 2})
        outcome = small(tiny_model(), data, rng=seeded(), state={})
        found[type(attack).__name__] = outcome.model.linear.weight
    assert torch.equal(found["Blind"], found["BadNet"])
    assert torch.equal(found["Lira"], found["BadNet"])
