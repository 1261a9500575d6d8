import pytest
import torch
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError, ConfigError
from ppr_core.runtime import current, pick_device, session
from ppr_core.training import Schedule, fit
from ppr_core.weights import snapshot
from tests.conftest import tiny_model, tiny_set

PLAIN = Schedule(epochs=2, batch_size=16, lr=0.05, crop=0, flip=False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_is_sgd_written_out(data):
    """Two epochs of `fit` equal the textbook loop on the same batches."""
    schedule = PLAIN.replace(momentum=0.0, weight_decay=0.01)
    with session(precision="fp32"):
        model, by_hand = tiny_model(), tiny_model()
        fit(model, data, schedule, rng=seeded())
    rng = seeded()
    by_hand.train()
    for _ in range(2):
        for chosen in torch.randperm(len(data), generator=rng).split(16):
            by_hand.zero_grad()
            F.cross_entropy(by_hand(to_float(data.images[chosen])), data.labels[chosen]).backward()
            with torch.no_grad():
                for p in by_hand.parameters():
                    p -= 0.05 * (p.grad + 0.01 * p)
    for name, tensor in by_hand.state_dict().items():
        assert torch.allclose(model.state_dict()[name].float(), tensor.float(), atol=1e-5), name


def test_the_same_seed_gives_the_same_weights():
    runs = []
    for seed in (3, 3, 4):
        model = tiny_model()
        fit(model, tiny_set(), PLAIN.replace(crop=2, flip=True), rng=seeded(seed))
        runs.append(snapshot(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["linear.weight"], runs[2]["linear.weight"])


def test_it_learns(data):
    history = fit(tiny_model(), data, PLAIN.replace(epochs=8), rng=seeded())
    assert [record["epoch"] for record in history] == list(range(1, 9))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (PLAIN, 6),
        (PLAIN.replace(steps=4), 4),
        (PLAIN.replace(epochs=0), 0),
        (PLAIN.replace(batch_size=20), 6),
        (PLAIN.replace(batch_size=20, drop_last=True), 4),
        (PLAIN.replace(batch_size=500, drop_last=True), 2),
    ],
)
def test_the_budget_is_kept(data, schedule, steps):
    taken = []
    fit(tiny_model(), data, schedule, rng=seeded(), after_step=lambda: taken.append(1))
    assert len(taken) == steps == schedule.total_steps(len(data))


def test_cosine_goes_to_zero_over_the_actual_budget():
    schedule = Schedule(epochs=4, lr=0.1, decay="cosine")
    assert schedule.rate(0, 10, 40) == pytest.approx(0.1)
    assert schedule.rate(29, 10, 40) == pytest.approx(0.05)  # by epoch: epoch 2 of 4
    by_step = schedule.replace(decay_by="step")
    assert by_step.rate(20, 10, 40) == pytest.approx(0.05)
    assert by_step.rate(40, 10, 40) == pytest.approx(0.0, abs=1e-12)


def test_only_the_parameters_named_are_stepped(data):
    model = tiny_model()
    before = snapshot(model)
    fit(model, data, PLAIN, rng=seeded(), parameters=model.linear.parameters())
    changed = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {"linear.weight", "linear.bias"}


def test_eval_mode_leaves_the_buffers_alone(data):
    model = tiny_model()
    before = {name: b.clone() for name, b in model.named_buffers()}
    fit(model, data, PLAIN, rng=seeded(), train_mode=False)
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())


def test_a_killed_training_goes_on_to_the_same_weights(data, tmp_path, monkeypatch):
    monkeypatch.setattr("ppr_core.training._Checkpoint.interval_s", 0.0)
    schedule = PLAIN.replace(epochs=4, crop=1, decay="cosine")
    whole = tiny_model()
    expected = fit(whole, data, schedule, rng=seeded(), name="train")

    class Killed(Exception):
        pass

    def kill(name, history, epochs):
        if len(history) == 2:
            raise Killed

    with pytest.raises(Killed), session(checkpoint=tmp_path, report=kill):
        fit(tiny_model(), data, schedule, rng=seeded(), name="train")
    resumed = tiny_model(seed=9)  # whatever it starts from, the checkpoint replaces it
    seen = []
    with session(checkpoint=tmp_path, report=lambda n, h, e: seen.append(len(h))):
        history = fit(resumed, data, schedule, rng=seeded(), name="train")
    assert seen == [3, 4]
    assert [r["loss"] for r in history] == [r["loss"] for r in expected]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


class Evil:
    def __reduce__(self):
        return (print, ("a pickle ran",))


@pytest.mark.parametrize("content", [b"", b"garbage", "pickle"])
def test_a_damaged_or_unsafe_checkpoint_is_refused(data, tmp_path, content, capsys):
    path = tmp_path / "train.pt"
    if content == "pickle":
        torch.save({"model": Evil()}, path)
    else:
        path.write_bytes(content)
    with session(checkpoint=tmp_path), pytest.raises(CheckpointError, match="delete that file"):
        fit(tiny_model(), data, PLAIN, rng=seeded(), name="train")
    assert "a pickle ran" not in capsys.readouterr().out


def test_a_checkpoint_of_other_shapes_is_refused(data, tmp_path):
    with session(checkpoint=tmp_path):
        fit(tiny_model(classes=4), data, PLAIN, rng=seeded(), name="train")
        with pytest.raises(CheckpointError, match=r"expected linear.weight of shape \(7"):
            fit(tiny_model(classes=7), data, PLAIN, rng=seeded(), name="train")


def test_named_trainings_are_evaluated_each_epoch_and_others_never(data):
    with session(evaluate=lambda model: {"c_acc": 50.0}):
        named = fit(tiny_model(), data, PLAIN, rng=seeded(), name="train")
        other = fit(tiny_model(), data, PLAIN, rng=seeded())
    assert [record["c_acc"] for record in named] == [50.0, 50.0]
    assert all("c_acc" not in record for record in other)


def test_a_loss_that_is_not_finite_is_an_error(data):
    model = tiny_model()
    with pytest.raises(ConfigError, match="expected a finite loss"):
        fit(model, data, PLAIN, rng=seeded(), loss=lambda x, y: model(x).sum() * float("nan"))


def test_nothing_to_train_on_is_an_error(data):
    with pytest.raises(ConfigError, match="got an empty set"):
        fit(tiny_model(), data.subset(torch.tensor([], dtype=torch.int64)), PLAIN, rng=seeded())
    with pytest.raises(ConfigError, match="at least one trainable parameter"):
        fit(tiny_model(), data, PLAIN, rng=seeded(), parameters=[])


def test_the_session_is_put_back_even_after_an_error():
    before = current()
    with pytest.raises(ZeroDivisionError), session(precision="fp32", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        raise ZeroDivisionError
    assert current() is before
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_no_gpu_where_one_is_asked_for():
    with pytest.raises(ConfigError, match="expected a CUDA device"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


@pytest.mark.gpu
def test_a_captured_step_trains_like_an_eager_one():
    data = tiny_set(200).to("cuda")
    graphed, eager = tiny_model().cuda(), tiny_model().cuda()
    schedule = PLAIN.replace(epochs=3)
    with session(precision="fp32"):
        one = fit(graphed, data, schedule, rng=seeded())
        two = fit(eager, data, schedule, rng=seeded(), after_step=lambda: None)
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-3)
