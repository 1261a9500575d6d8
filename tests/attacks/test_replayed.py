import pytest
import torch

from ppr_core.attacks import Trigger
from ppr_core.attacks.replayed import PairTrigger, Replayed
from ppr_core.errors import DataError
from ppr_core.metrics import triggered
from tests.attacks.test_foreign import picture, stamp
from tests.conftest import tiny_set


@pytest.fixture
def pairs(tmp_path):
    data = tiny_set(16, size=8)
    for folder in ("clean", "marked"):
        (tmp_path / folder).mkdir()
    for index in range(0, 16, 2):
        pixels = data.images[index].permute(1, 2, 0).numpy()
        picture(tmp_path / "clean" / f"{index}.png", pixels)
        picture(tmp_path / "marked" / f"{index}.png", 255 - pixels)
    given = {"clean": str(tmp_path / "clean"), "triggered": str(tmp_path / "marked")}
    return data, given, tmp_path


def test_pairs_are_replayed_by_what_they_show(pairs, rng):
    data, given, _ = pairs
    attack = PairTrigger(**given, poison_rate=0.25, target=1)
    state = attack.prepare(data, rng=rng)
    shuffled = data.subset(torch.tensor([6, 0, 14]))
    assert torch.equal(stamp(attack, shuffled.images, state), 255 - shuffled.images)
    trigger = Trigger(attack, state)
    stored = data.subset(torch.arange(0, 16, 2))
    found = triggered(stored, trigger, 1)
    assert torch.equal(found.images, 255 - stored.images[stored.labels != 1])
    poisoned = attack.poison(data, seed=0, state=state)
    assert len(poisoned.indices) == 4
    assert (poisoned.indices % 2 == 0).all()
    assert torch.equal(poisoned.original, data.labels[poisoned.indices])
    chosen = poisoned.data.subset(poisoned.indices)
    assert torch.equal(chosen.images, 255 - data.images[poisoned.indices])
    assert (chosen.labels == 1).all()
    again = attack.poison(data, seed=0, state=state)
    assert torch.equal(again.indices, poisoned.indices)


def test_what_pairs_cannot_serve_is_said(pairs, rng):
    data, given, folder = pairs
    attack = PairTrigger(**given, poison_rate=0.75)
    state = attack.prepare(data, rng=rng)
    with pytest.raises(DataError, match="got 1 of 2 without one"):
        stamp(attack, data.images[:2], state)
    with pytest.raises(DataError, match="expected 12 stored poisons .* got 8; lower poison_rate"):
        attack.poison(data, seed=0, state=state)
    with pytest.raises(DataError, match="expected pairs of clean and triggered images, got none"):
        stamp(Replayed(), data.images)
    with pytest.raises(DataError, match=r"expected images \(3, 16, 16\) as the data have"):
        attack.prepare(tiny_set(8, size=16), rng=rng)
    (folder / "marked" / "4.png").unlink()
    with pytest.raises(DataError, match=r"got \['4'\] in only one of them"):
        attack.prepare(data, rng=rng)
    with pytest.raises(DataError, match="expected a folder of images"):
        PairTrigger(clean="none", triggered="none").prepare(data, rng=rng)
