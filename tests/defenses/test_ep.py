import pytest
import torch

from ppr_core.data.images import to_uint8
from ppr_core.defenses import ep
from ppr_core.defenses.ep import ExactPurification, mark
from ppr_core.errors import DataError
from ppr_core.metrics import attack_success_rate, clean_accuracy, triggered
from ppr_core.training.fit import Schedule, fit
from tests.conftest import batches, tiny_model, tiny_set

PLAIN = {"epochs": 1, "batch_size": 16, "crop": 0, "flip": False}
LEVEL = {"test": 255, "train": 200}


class Corner:
    """A trigger that notes what it is asked for: a patch, brighter at test time."""

    target = 0

    def __init__(self):
        self.calls = []

    def __call__(self, images, *, stage="test"):
        assert images.dtype == torch.uint8
        self.calls.append((stage, len(images)))
        images = images.clone()
        images[..., -4:, -4:] = LEVEL[stage]
        return images


@pytest.fixture
def epoch(monkeypatch, model, data, rng):
    """Run the method up to `fit`, and return a function that draws one epoch of its batches."""

    def start(**settings):
        caught = {}
        monkeypatch.setattr(ep, "fit", lambda *args, **named: caught.update(args=args, **named))
        method = ExactPurification(schedule=PLAIN).replace(**settings)
        method(model, data, rng=rng, trigger=Corner())
        _, numbered, schedule = caught["args"]

        def draw():
            shuffled = batches(numbered, schedule, rng=caught["rng"])
            parts = [
                (numbers, *caught["on_batch"](images, numbers)) for images, numbers in shuffled
            ]
            numbers, images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
            return numbers, to_uint8(images), labels

        draw.rng = caught["rng"]
        return draw

    return start


def stamped(images, level=255):
    return (images[..., -1, -1] == level).all(1)


@pytest.mark.parametrize(("share", "count"), [(0.1, 5), (0.5, 24), (0.0, 0), (1.0, 48)])
def test_exactly_the_share_is_triggered_and_all_labels_are_true(share, count, epoch, data):
    numbers, images, labels = epoch(share=share)()
    chosen = stamped(images)
    assert int(chosen.sum()) == count
    assert torch.equal(labels, data.labels[numbers])
    assert torch.equal(images[~chosen], data.images[numbers[~chosen]])
    assert torch.equal(images[chosen], Corner()(data.images[numbers[chosen]]))


def test_the_same_images_every_epoch_or_others(epoch):
    def chosen(draw):
        numbers, images, _ = draw()
        return set(numbers[stamped(images)].tolist())

    fixed = epoch()
    assert chosen(fixed) == chosen(fixed)
    redrawn = epoch(redraw=True)
    first, state = chosen(redrawn), redrawn.rng.get_state()
    second = chosen(redrawn)
    assert first != second
    assert len(first) == len(second) == 5
    redrawn.rng.set_state(state)  # a training that is resumed after the first epoch
    assert chosen(redrawn) == second


def test_both_strengths_share_the_triggered_images(epoch):
    _, images, _ = epoch(trigger_stage="both", share=0.5)()
    assert stamped(images, 255).sum() == stamped(images, 200).sum() == 12
    _, images, _ = epoch(trigger_stage="train")()
    assert stamped(images, 200).sum() == 5
    assert not stamped(images, 255).any()


def test_the_trigger_goes_on_after_crop_and_flip(epoch):
    _, images, _ = epoch(share=1.0, schedule={**PLAIN, "crop": 4, "flip": True})()
    assert stamped(images).all()


def test_the_target_class_can_be_left_alone(epoch, data):
    numbers, images, _ = epoch(exclude_target=True, share=0.7)()
    assert int(stamped(images).sum()) == round(0.7 * 48)
    assert (data.labels[numbers[stamped(images)]] != Corner.target).all()


def test_too_large_a_share_outside_the_target_is_refused(model, data, rng):
    with pytest.raises(DataError, match="at most 36 images to trigger, got 43"):
        ExactPurification(share=0.9, exclude_target=True)(model, data, rng=rng, trigger=Corner())


def test_mark_names_kinds_evenly(rng):
    allowed = torch.arange(20) % 2 == 0
    marks = mark(allowed, 6, 2, rng)
    assert marks.bincount().tolist() == [14, 3, 3]
    assert not marks[~allowed].any()


def test_it_is_an_oracle_and_asks_for_the_trigger(model, data, rng):
    assert ExactPurification().oracle
    with pytest.raises(TypeError, match="trigger"):
        ExactPurification()(model, data, rng=rng)


def test_it_removes_a_shortcut(rng):
    """A model that takes the corner for class 0 learns to look away."""
    train, trigger = tiny_set(96), Corner()
    tuning = Schedule(epochs=12, batch_size=16, lr=0.05, crop=0, flip=False)
    stamps = triggered(train, trigger, trigger.target)
    victim = tiny_model()
    fit(victim, train + stamps, tuning, rng=rng)
    assert attack_success_rate(victim, stamps) > 90
    method = ExactPurification(share=0.5, schedule=tuning)
    cured = method(victim, train, rng=rng, trigger=trigger).model
    assert attack_success_rate(cured, stamps) < 20
    assert clean_accuracy(cured, train) > 80
