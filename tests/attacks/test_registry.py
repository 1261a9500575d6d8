"""What every attack must hold; a new one is tested by being registered."""

import json
from functools import cache

import pytest
import torch

from ppr_core.attacks import ATTACKS, Clean, Trigger
from ppr_core.config import from_registry
from ppr_core.data.images import ImageSet
from ppr_core.errors import ConfigError, DataError
from ppr_core.metrics import attack_success_rate, clean_accuracy, logits, triggered
from ppr_core.models import MODELS
from ppr_core.models.base import Normalise
from tests.conftest import shrink, tiny_model, tiny_set

SMALL = {"name": "resnet18", "width": 4, "blocks": 1}
NAMES = sorted(ATTACKS)
DIRTY = [name for name in NAMES if not ATTACKS[name].clean_label]
CLEAN_LABEL = [name for name in NAMES if ATTACKS[name].clean_label]

every = pytest.mark.parametrize("name", NAMES)


def small(name, **settings):
    """The attack with budgets cut, and with small models where it trains any of its own."""
    fields = ATTACKS[name].model_fields.items()
    defaults = {key: field.default for key, field in fields if isinstance(field.default, dict)}
    models = {key: SMALL for key, value in defaults.items() if value.get("name") in MODELS}
    return shrink(ATTACKS[name](**{"poison_rate": 0.125, **models, **settings}))


@cache
def state_of(name):
    """What the attack prepares from `pictures()`; empty for most."""
    return small(name).prepare(pictures(), rng=seeded())


def pictures():
    return tiny_set(count=48, size=32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same(first, second):
    return torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


# -- stamping ----------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("stage", ["train", "test"])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_stamp_keeps_shape_type_and_input(name, stage, size):
    images = tiny_set(count=2, size=size).images
    before = images.clone()
    out = small(name).stamp(images, stage=stage, state=state_of(name))
    assert (out.shape, out.dtype, out.device) == (images.shape, torch.uint8, images.device)
    assert torch.equal(images, before)
    assert out.data_ptr() != images.data_ptr()
    changed = (out != images).flatten(1).any(1)
    assert changed.all()


@every
def test_test_images_are_stamped_one_by_one_as_together(name):
    trigger = Trigger(small(name), state_of(name))
    images = pictures().images[:5]
    alone = torch.cat([trigger(image[None]) for image in images]).int()
    # A network's sums may round otherwise in another batch: one level at most.
    assert (trigger(images).int() - alone).abs().max() <= 1
    assert trigger(images[:0]).shape == (0, 3, 32, 32)


@pytest.mark.gpu
@every
def test_stamp_is_the_same_on_a_gpu(name):
    images = pictures().images
    state = {key: tensor.cuda() for key, tensor in state_of(name).items()}
    for stage in ("train", "test"):
        here = small(name).stamp(images, stage=stage, state=state_of(name))
        there = small(name).stamp(images.cuda(), stage=stage, state=state)
        assert there.is_cuda
        assert (here.int() - there.cpu().int()).abs().max() <= 1


# -- selection and labels ----------------------------------------------------------------------


@every
@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1, 0.25])
def test_the_right_number_is_selected_labelled_and_stamped(name, rate):
    data, attack = pictures(), small(name, poison_rate=rate)
    before = data.images.clone(), data.labels.clone()
    poisoned = attack.poison(data, seed=3, state=state_of(name))
    assert torch.equal(data.images, before[0])
    assert torch.equal(data.labels, before[1])
    indices = poisoned.indices
    assert len(indices) == round(rate * 48)
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert torch.equal(poisoned.original, data.labels[indices])
    expected = data.labels.clone()
    expected[indices] = 0
    assert torch.equal(poisoned.data.labels, expected)
    touched = torch.zeros(48, dtype=torch.bool)
    touched[indices] = touched[poisoned.covers] = True
    changed = (poisoned.data.images != data.images).flatten(1).any(1)
    assert torch.equal(changed, touched)


@every
def test_reactivation_reads_the_draw_of_the_victims_training(name):
    """Pixel by pixel the poisons that the victim saw: those outside the target class."""
    data, attack, state = pictures(), small(name), state_of(name)
    outcome = attack(tiny_model(), data, rng=seeded(5), state=state)
    known, trigger = outcome.tensors["poison_indices"], Trigger(attack, state)
    seen = attack.poison(data, seed=5, state=state)
    assert torch.equal(seen.indices, known)
    others = seen.indices if attack.clean_label else known[data.labels[known] != attack.target]
    assert same(trigger.poisons(data, known), seen.data.subset(others))
    assert same(trigger.poisons(data, known, any_class=True), seen.data.subset(known))
    asked = trigger.query_images(data, known)
    assert (asked.labels != attack.target).all()
    if attack.clean_label:  # no poison of it is outside the target class
        rest = data.subset(data.labels != attack.target)
        assert same(asked, rest.with_images(trigger(rest.images)))
    else:
        assert same(asked, seen.data.subset(others).with_labels(data.labels[others]))


@every
def test_rate_zero_is_the_clean_set(name):
    data = pictures()
    poisoned = small(name, poison_rate=0.0).poison(data, seed=0, state={})
    assert same(poisoned.data, data)
    assert len(poisoned.indices) == len(poisoned.covers) == 0


@pytest.mark.parametrize("name", CLEAN_LABEL)
def test_clean_label_attacks_poison_the_target_class_only(name):
    data, attack = pictures(), small(name)
    poisoned = attack.poison(data, seed=0, state=state_of(name))
    assert (poisoned.original == 0).all()
    assert torch.equal(poisoned.data.labels, data.labels)
    many = torch.arange(50_000) % 10
    whole = attack.replace(poison_rate=0.1).select(many, seed=0)
    assert torch.equal(whole, torch.arange(0, 50_000, 10))
    with pytest.raises(DataError, match=r"only the 12 images of class 0.*at most 0\.25"):
        attack.replace(poison_rate=0.3).check_data(data)


CHECKSUMS = [
    (50_000, 0.01, 500, 12_671_404),
    (50_000, 0.05, 2500, 63_054_358),
    (50_000, 0.1, 5000, 126_459_119),
    (100_000, 0.01, 1000, None),
    (100_000, 0.05, 5000, 249_375_928),
    (100_000, 0.1, 10_000, None),
]


@pytest.mark.parametrize("name", DIRTY)
def test_seed_0_selects_the_published_images(name):
    for count, rate, selected, checksum in CHECKSUMS:
        labels = torch.arange(count) % 10
        indices = small(name, poison_rate=rate).select(labels, seed=0)
        assert len(indices.unique()) == selected
        assert checksum is None or indices.sum() == checksum
        first = {
            (50_000, 0.05): {11841, 19602, 45519, 25747, 42642},
            (100_000, 0.05): {3582, 60498, 53227},
        }.get((count, rate), set())
        assert first <= set(indices.tolist())
        if (count, rate) == (50_000, 0.1):  # a tenth had the target label already
            assert abs(int((labels[indices] == 0).sum()) - 500) <= 60


@every
def test_same_seed_same_poisoned_set(name):
    data, attack, state = pictures(), small(name), state_of(name)
    first = attack.poison(data, seed=1, state=state)
    torch.rand(3)  # global generators have no part in it
    again = attack.poison(data, seed=1, state=state)
    other = attack.poison(data, seed=2, state=state)
    assert same(first.data, again.data)
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.covers, again.covers)
    assert not torch.equal(first.indices, other.indices)


@every
@pytest.mark.parametrize("classes", [1, 1000])
def test_any_number_of_classes_and_any_target(name, classes):
    images, target = pictures().images, classes - 1
    labels = torch.full((48,), target)
    data = ImageSet(images, labels, tuple(map(str, range(classes))))
    attack = small(name, target=target)
    state = attack.prepare(data, rng=seeded())
    poisoned = attack.poison(data, seed=0, state=state)
    assert len(poisoned.indices) == 6
    assert (poisoned.data.labels == target).all()


# -- training ----------------------------------------------------------------------------------


@every
def test_a_brief_training_leaves_the_model_alone(name):
    data, attack, state = pictures(), small(name), state_of(name)
    model = tiny_model().eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    outcome = attack(model, data, rng=seeded(5), state=state)
    again = attack(model, data, rng=seeded(5), state=state)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    weights = outcome.model.state_dict()
    assert not torch.equal(weights["linear.weight"], before["linear.weight"])
    for key, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
    assert not any(module.training for module in outcome.model.modules())
    epochs = [record["epoch"] for record in outcome.history]
    assert epochs == [*range(1, 1 + len(epochs))], "one numbering for all steps of a training"
    assert epochs
    assert outcome.info["poisoned"] == 6
    expected = attack.select(data.labels, seed=5)
    assert torch.equal(outcome.tensors["poison_indices"], expected)
    assert torch.equal(outcome.tensors["poison_original"], data.labels[expected])
    learnt = any(key.startswith("trigger.") for key in outcome.tensors)
    assert learnt == attack.learns_trigger


@every
def test_rate_zero_trains_the_clean_model(name):
    if ATTACKS[name].learns_trigger:
        pytest.skip("its trigger learns beside the classifier, even unused")
    data = pictures()
    first = small(name, poison_rate=0.0)(tiny_model(), data, rng=seeded(), state=state_of(name))
    clean = shrink(Clean())(tiny_model(), data, rng=seeded())
    assert len(first.tensors["poison_indices"]) == 0
    if type(small(name)).train is Clean.train:  # the others draw from the loop's generator
        for key, tensor in clean.model.state_dict().items():
            assert torch.equal(tensor, first.model.state_dict()[key]), key


@every
def test_preparation_names_what_prepare_depends_on(name):
    attack = small(name)
    key = attack.preparation()
    if key is None:
        assert state_of(name) == {}
        return
    json.dumps(key, allow_nan=False)
    assert state_of(name)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state_of(name).values())
    assert attack.replace(poison_rate=0.0, training={"epochs": 7}).preparation() == key
    again = attack.prepare(pictures(), rng=seeded())
    for entry, tensor in state_of(name).items():
        assert torch.equal(tensor, again[entry]), entry


def test_a_trained_trigger_works_and_no_other_does():
    data, test = tiny_set(count=240, size=16), tiny_set(count=80, size=16, seed=1)
    training = {"epochs": 8, "batch_size": 16, "crop": 0, "flip": False, "lr": 0.05}
    ratios = {"train_ratio": 0.4, "test_ratio": 0.4}
    attack = ATTACKS["blended"](poison_rate=0.2, target=1, training=training, **ratios)

    def success(victim, trigger):
        return attack_success_rate(victim, triggered(test, Trigger(trigger, {}), 1))

    model = attack(tiny_model(), data, rng=seeded()).model
    assert clean_accuracy(model, test) > 95
    assert success(model, attack) > 95
    assert success(model, attack.replace(test_ratio=0.1)) < success(model, attack)
    assert success(model, ATTACKS["badnet"]()) < 5
    assert success(model, ATTACKS["bpp"]()) < 5
    clean = Clean(training=training)(tiny_model(), data, rng=seeded()).model
    assert success(clean, attack) < 5


# -- evaluation --------------------------------------------------------------------------------


@every
def test_triggered_test_set_leaves_the_target_class_out(name):
    data, attack = pictures(), small(name)
    stamped = triggered(data, Trigger(attack, state_of(name)), attack.target)
    assert len(stamped) == 36
    assert (stamped.labels == 0).all()
    kept = data.images[data.labels != 0]
    assert torch.equal(stamped.images, attack.stamp(kept, stage="test", state=state_of(name)))


@every
def test_success_rate_ignores_order_and_batches(name, model):
    stamped = triggered(pictures(), Trigger(small(name), state_of(name)), 0)
    order = torch.randperm(len(stamped), generator=seeded())
    rate = attack_success_rate(model, stamped)
    assert attack_success_rate(model, stamped.subset(order)) == rate
    hits = torch.cat([logits(model, part).argmax(1) == 0 for part in stamped.images.split(7)])
    assert 100 * hits.double().mean().item() == rate


def test_normalisation_is_undone():
    pixels = torch.rand(2, 3, 4, 4, generator=seeded())
    layer = Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    torch.testing.assert_close(layer.inverse(layer(pixels)), pixels)


# -- settings and errors -----------------------------------------------------------------------


@every
def test_every_setting_is_described_and_the_source_is_named(name):
    assert ATTACKS[name].source.strip()
    assert ATTACKS[name].__doc__.strip()
    rows = ATTACKS[name].describe()
    assert {"poison_rate", "target", "training.epochs"} <= {row["name"] for row in rows}
    assert [row["name"] for row in rows if not row["meaning"].strip()] == []


def test_every_class_is_registered_once():
    assert len(set(ATTACKS.values())) == len(ATTACKS)
    assert all(name == name.lower() for name in ATTACKS)


@every
def test_target_out_of_range_is_refused(name):
    attack = small(name, target=4)
    for work in (
        lambda: attack.check_data(pictures()),
        lambda: attack.poison(pictures(), seed=0, state=state_of(name)),
        lambda: attack(tiny_model(), pictures(), rng=seeded(), state=state_of(name)),
    ):
        with pytest.raises(DataError, match="expected a target label below 4, got 4"):
            work()


@every
def test_unknown_and_wrong_settings_are_refused(name):
    def make(**settings):
        return from_registry(ATTACKS, {"name": name, **settings}, "attack")

    assert make() == ATTACKS[name]()
    with pytest.raises(ConfigError, match="did you mean 'poison_rate'"):
        make(poison_rat=0.1)
    with pytest.raises(ConfigError, match=r"poison_rate: expected .* 1, got 1\.5"):
        make(poison_rate=1.5)
    with pytest.raises(ConfigError, match="target: expected a valid integer, got '0'"):
        make(target="0")
    with pytest.raises(ConfigError, match=r"training: unknown setting: 'epoch'"):
        make(training={"epoch": 1})


def test_unknown_attack_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'badnet'"):
        from_registry(ATTACKS, "badnets", "attack")
