import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError
from ppr_core.reactivation import retuning
from ppr_core.reactivation.retuning import Retuning
from ppr_core.weights import snapshot
from tests.conftest import tiny_model, tiny_set

FAST = Retuning(share=0.5, poisoned=3, schedule={"epochs": 2, "batch_size": 8, "crop": 1})


def poisons(count=6, value=255):
    data = tiny_set(count, seed=7)
    images = torch.full_like(data.images, value)
    return data.with_images(images).with_labels(torch.zeros(count, dtype=torch.int64))


def mixture(monkeypatch, method, data, pool, seed=0):
    """Catch what RA hands to `fit`."""
    seen = {}

    def catch(model, given, schedule, **named):
        seen.update(data=given, schedule=schedule)
        return []

    monkeypatch.setattr(retuning, "fit", catch)
    method(tiny_model(), data, rng=torch.Generator().manual_seed(seed), poisons=pool)
    return seen["data"], seen["schedule"]


def test_size_and_share_of_poisons(monkeypatch, data):
    mixed, schedule = mixture(monkeypatch, FAST, data, poisons())
    assert len(mixed) == 24  # half of 48, the poisons included
    white = (mixed.images == 255).flatten(1).all(1)
    assert white.sum() == 3, "poisoned samples are augmented, or not as many as asked for"
    assert (mixed.labels[white] == 0).all()
    assert (schedule.crop, schedule.flip) == (0, False), "augmentation is drawn once, and frozen"


def test_poisons_are_the_stored_pixels(monkeypatch, data):
    """Images that any crop or flip would change come through as they are."""
    pool = tiny_set(6, seed=7).with_labels(torch.zeros(6, dtype=torch.int64))
    mixed, _ = mixture(monkeypatch, FAST.replace(schedule={"crop": 4}), data, pool)
    stored = {image.numpy().tobytes() for image in pool.images}
    kept = [image.numpy().tobytes() in stored for image in mixed.images]
    assert sum(kept) == 3
    assert (mixed.labels[torch.tensor(kept)] == 0).all()


def test_clean_samples_are_augmented_once(monkeypatch, data):
    plain = FAST.replace(schedule={"crop": 0, "flip": False})
    moved, _ = mixture(monkeypatch, FAST, data, poisons())
    still, _ = mixture(monkeypatch, plain, data, poisons())
    assert torch.equal(moved.labels, still.labels)
    assert not torch.equal(moved.images, still.images)
    originals = {image.numpy().tobytes() for image in data.images}
    assert sum(image.numpy().tobytes() in originals for image in still.images) == 21


def test_zero_poisons_is_clean_tuning(monkeypatch, data):
    mixed, _ = mixture(monkeypatch, FAST.replace(poisoned=0), data, poisons())
    assert len(mixed) == 24
    assert not (mixed.images == 255).flatten(1).all(1).any()


def test_unfrozen_augments_in_every_epoch(monkeypatch, data):
    _, schedule = mixture(monkeypatch, FAST.replace(frozen=False), data, poisons())
    assert (schedule.crop, schedule.flip) == (1, True)


def test_forty_steps_on_two_percent_of_fifty_thousand():
    """As published: 1000 samples in all, batches of 128, five epochs at one rate."""
    method = Retuning(schedule={"crop": 0, "flip": False})
    images = torch.zeros(50_000, 3, 2, 2, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(50_000) % 4, ("a", "b", "c", "d"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    rates = []
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: rates.append(float(optimizer.param_groups[0]["lr"]))
    )
    outcome = method(model, data, rng=torch.Generator().manual_seed(0), poisons=data)
    hook.remove()
    assert rates == pytest.approx([0.01] * 40)
    assert outcome.info == {"samples": 1000, "poisoned": 5}
    schedule = method.schedule
    assert (schedule.momentum, schedule.weight_decay, schedule.batch_size) == (0.9, 0.0, 128)


def test_the_model_is_left_alone_and_the_seed_decides(data):
    model = tiny_model()
    before = snapshot(model)
    runs = [
        FAST(model, data, rng=torch.Generator().manual_seed(seed), poisons=poisons())
        for seed in (1, 1, 2)
    ]
    after = [snapshot(outcome.model) for outcome in runs]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(after[0][name], after[1][name]) for name in before)
    assert not torch.equal(after[0]["linear.weight"], after[2]["linear.weight"])
    assert not torch.equal(after[0]["linear.weight"], before["linear.weight"])


def test_more_poisons_than_there_are_is_an_error(data):
    with pytest.raises(DataError, match="expected at most 6 poisoned samples"):
        FAST.replace(poisoned=7)(
            tiny_model(), data, rng=torch.Generator().manual_seed(0), poisons=poisons()
        )
