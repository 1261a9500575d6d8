import json

import pytest
import torch

from ppr_core.errors import DataError
from ppr_core.metrics import attack_success_rate, clean_accuracy, triggered
from ppr_core.reactivation.battery import Battery
from ppr_core.reactivation.cells import Cell, Setting, dump, load, weakened
from ppr_core.weights import snapshot
from tests.conftest import tiny_model, tiny_set

SCHEDULE = {"epochs": 2, "batch_size": 8, "crop": 0, "flip": False}
SMALL = Battery(
    retuning={"share": 0.5, "poisoned": 4, "schedule": SCHEDULE},
    counts=[1, 4],
    draws=2,
    fresh=2,
    factors=[1.0, 3.0],
    epochs=[1, 2, 4],
    relearn_factors=[1.0],
    relearn_epochs=[2],
    images=40,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stamp(images):
    marked = images.clone()
    marked[..., -4:, -4:] = 255
    return marked


def bench_of(battery, count=48, seed=0):
    data, test = tiny_set(count), tiny_set(80, seed=5)
    others = data.subset(data.labels != 0)
    poisons = others.with_images(stamp(others.images)).with_labels(torch.zeros_like(others.labels))
    return battery.bench(
        data,
        poisons=poisons,
        test=test,
        stamped=triggered(test, stamp, 0),
        rng=seeded(seed),
        originals=others.images,
    )


@pytest.fixture(scope="module")
def grid():
    """A model, its bench and its cells."""
    torch.set_num_threads(1)
    bench, model = bench_of(SMALL), tiny_model().eval()
    return bench, model, SMALL.grid(bench, model)


def alone(bench, model, setting):
    """The stand-alone RA of a setting."""
    pool, method = bench.pools[setting.trigger], SMALL.tuning(setting)
    return method(model, bench.data, rng=bench.stream(setting.draw), poisons=pool).model


def test_the_arms_are_those_of_the_specification():
    battery = Battery()
    assert battery.counts == [1, 2, 5, 10, 20, 50] and battery.draws == 3
    assert battery.factors == [0.3, 1.0, 3.0] and battery.epochs == [1, 5, 20]
    assert battery.optimizers == ["sgd", "adam"] and battery.fresh == 3
    assert (battery.relearn_factors, battery.relearn_epochs) == ([1.0, 3.0], [5, 20])
    assert battery.weak == 0.5 and battery.retuning.schedule.momentum == 0.9


def test_a_grid_has_every_cell_once_an_arm(grid):
    cells = grid[2]
    number = {arm: sum(cell.arm == arm for cell in cells) for arm in ("relearn", "count")}
    assert number == {"relearn": 1, "count": 4}
    strength = [cell.setting for cell in cells if cell.arm == "strength"]
    assert len(strength) == len(set(strength)) == 2 * 2 * 3
    assert cells[0].arm == "start" and cells[0].setting.epochs == 0


def test_what_implants_is_not_run_again(grid):
    """But the paper's own rate goes to the end, and the epochs before one that counts."""
    bench, model, cells = grid
    sgd, adam = Setting(poisons=4, factor=3.0), Setting(poisons=4, optimizer="adam")
    implants = {sgd.replace(epochs=2), sgd.replace(epochs=4), Setting(poisons=4, epochs=4)}
    implants |= {adam.replace(epochs=epochs) for epochs in (1, 2, 4)}
    fewer = {cell.setting: cell for cell in SMALL.grid(bench, model, implants)}
    whole = {cell.setting: cell for cell in cells}
    assert fewer.keys() == whole.keys(), "a setting is missing from the map"
    left_out = {setting for setting, cell in fewer.items() if cell.p_asr is None}
    assert left_out == implants - {Setting(poisons=4, epochs=4)}
    assert all(fewer[s].p_asr == whole[s].p_asr for s in fewer.keys() - left_out)
    every = SMALL.complete(bench, model, list(fewer.values()))
    assert {c.setting: c.p_asr for c in every} == {s: c.p_asr for s, c in whole.items()}


@pytest.mark.parametrize(
    "setting",
    [
        Setting(poisons=4, epochs=1),
        Setting(poisons=4, epochs=4, factor=3.0),
        Setting(poisons=4, epochs=2, optimizer="adam"),
        Setting(poisons=1, epochs=2, draw=1),
        Setting(poisons=0, epochs=2),
    ],
    ids=str,
)
def test_a_cell_is_the_stand_alone_attack(grid, setting):
    bench, model, cells = grid
    retuned = alone(bench, model, setting)
    cell = next(cell for cell in cells if cell.setting == setting)
    assert cell.p_asr == attack_success_rate(retuned, bench.stamped)
    assert cell.c_acc == clean_accuracy(retuned, bench.test)


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_checkpoint_has_the_weights_of_its_own_run(grid, monkeypatch, epochs):
    """Bit for bit: one long run and the stand-alone attack of so many epochs."""
    bench, model, _ = grid
    seen = {}
    monkeypatch.setattr(
        bench,
        "_rates",
        lambda copy: seen.update({len(seen): snapshot(copy)}) or {"p_asr": 0.0, "c_acc": 0.0},
    )
    setting = Setting(poisons=4)
    bench.run(model, "strength", setting, [1, 2, 4])
    after = snapshot(alone(bench, model, setting.replace(epochs=epochs)))
    kept = seen[[1, 2, 4].index(epochs)]
    assert all(torch.equal(kept[name], after[name]) for name in after)
    assert not torch.equal(after["linear.weight"], model.state_dict()["linear.weight"])


def test_rate_zero_leaves_every_parameter(grid, monkeypatch):
    bench, model, _ = grid
    seen = []
    monkeypatch.setattr(
        bench, "_rates", lambda copy: seen.append(copy) or {"p_asr": 0.0, "c_acc": 0.0}
    )
    for optimizer in ("sgd", "adam"):
        still = Setting(poisons=4, factor=0.0, optimizer=optimizer, epochs=2, batch_norm="frozen")
        (cell,) = bench.run(model, "strength", still, [2])
        assert cell.moved == 0.0
    for copy in seen:
        for name, tensor in copy.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_every_model_sees_the_same_samples_in_every_arm():
    benches = [bench_of(SMALL) for _ in range(2)]
    few, many = Setting(poisons=1), Setting(poisons=4)
    for setting in (few, many):
        first, second = (bench.samples(setting) for bench in benches)
        assert torch.equal(first.images, second.images)
    bench = benches[0]
    again = bench.samples(many.replace(optimizer="adam", factor=3.0, batch_norm="frozen"))
    assert again is bench.samples(many), "made anew for another rate"
    assert torch.equal(bench.samples(many).images[:20], bench.samples(few).images[:20])
    assert not torch.equal(bench.samples(many).images, bench.samples(many.replace(draw=1)).images)


def test_draws_are_streams_of_their_own():
    bench, other = bench_of(SMALL), bench_of(SMALL, seed=1)
    seeds = [bench.stream(draw).initial_seed() for draw in range(4)]
    seeds += [other.stream(0).initial_seed(), seeded().initial_seed()]
    assert len(set(seeds)) == len(seeds)
    assert bench.stream(2).initial_seed() == bench_of(SMALL).stream(2).initial_seed()


def test_the_model_is_left_alone(grid):
    bench, model, _ = grid
    before = snapshot(model)
    for mode in ("kept", "recalibrated", "frozen"):
        bench.run(model, "batch norm", Setting(poisons=4, batch_norm=mode), [1])
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_batch_norm_modes_do_what_they_say(grid, monkeypatch):
    bench, model, _ = grid
    seen = []
    monkeypatch.setattr(
        bench, "_rates", lambda copy: seen.append(copy) or {"p_asr": 0.0, "c_acc": 0.0}
    )
    for mode in ("kept", "recalibrated", "frozen"):
        bench.run(model, "batch norm", Setting(poisons=4, factor=0.0, batch_norm=mode), [1])
    name = "backbone.1.running_mean"
    own = model.state_dict()[name]
    kept, recalibrated, frozen = (copy.state_dict()[name] for copy in seen)
    assert torch.equal(frozen, own)
    assert not torch.equal(kept, own) and not torch.equal(recalibrated, kept)


def test_a_weak_trigger_lies_between_both_images():
    plain = tiny_set(4)
    stamped = plain.with_images(stamp(plain.images))
    half = weakened(stamped, plain.images, 0.5).images.float()
    middle = (plain.images.float() + stamped.images.float()) / 2
    assert (half - middle).abs().max() <= 0.5
    assert torch.equal(weakened(stamped, plain.images, 0.0).images, plain.images)


def test_a_tuning_that_diverges_has_no_numbers(grid):
    """Its logits are no numbers, and the first class, often the target, would win."""
    bench, model, _ = grid
    cells = bench.run(model, "strength", Setting(poisons=4, factor=1e30), [1, 2, 4])
    assert [cell.setting.epochs for cell in cells] == [1, 2, 4]
    assert all(cell.p_asr is None and cell.c_acc is None for cell in cells[1:])


def test_cells_come_back_from_json_as_they_were(grid):
    _, _, cells = grid
    void = Cell(arm="count", setting=Setting(poisons=3))
    assert load(json.loads(json.dumps(dump([*cells, void])))) == [*cells, void]


def test_more_poisons_than_there_are_is_an_error_at_once():
    with pytest.raises(DataError, match="expected poisons and samples for a count of 50, got 24"):
        bench_of(SMALL.replace(counts=[1, 50]))
