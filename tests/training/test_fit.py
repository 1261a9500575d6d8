import contextlib
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses.finetune import keep_norm
from ppr_core.defenses.pam import path_gradient
from ppr_core.errors import ConfigError, StoreError
from ppr_core.method import measuring
from ppr_core.runtime import Cost, current, pick_device, session
from ppr_core.sharpness import sam_gradient
from ppr_core.training import capture, checkpoint
from ppr_core.training.fit import Schedule, fit
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


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"),
    [
        (40, False, [16, 16, 8]),
        (40, True, [16, 16]),
        (32, True, [16, 16]),
        (34, False, [16, 16, 2]),
        (33, False, [16, 16]),
        (33, True, [16, 16]),
        (5, True, [5]),
        (1, False, [1]),
        (1, True, [1]),
    ],
)
def test_which_last_batch_is_left_out(count, drop_last, sizes):
    seen = []

    def look(images, labels):
        seen.append(len(labels))
        return images, labels

    schedule = PLAIN.replace(epochs=1, drop_last=drop_last)
    fit(tiny_model(), tiny_set(count), schedule, rng=seeded(), on_batch=look)
    assert seen == sizes


def test_batch_norm_on_a_map_of_one_pixel_trains_on_any_count():
    """Torch takes no variance from one value: 17 images in batches of 16 leave one over."""
    net = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.BatchNorm2d(3),
        torch.nn.Flatten(),
        torch.nn.Linear(3, 10),
    )
    fit(net, tiny_set(17), PLAIN, rng=seeded())
    assert net[1].num_batches_tracked == 2


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
    monkeypatch.setattr("ppr_core.training.checkpoint.Checkpoint.interval_s", 0.0)
    schedule = PLAIN.replace(epochs=4, crop=1, decay="cosine")
    whole = tiny_model()
    expected = fit(whole, data, schedule, rng=seeded(), resume="train")

    class Killed(Exception):
        pass

    def kill(name, history, epochs):
        if len(history) == 2:
            raise Killed

    with pytest.raises(Killed), session(checkpoint=tmp_path, report=kill):
        fit(tiny_model(), data, schedule, rng=seeded(), resume="train")
    resumed = tiny_model(seed=9)  # whatever it starts from, the checkpoint replaces it
    seen = []
    with session(checkpoint=tmp_path, report=lambda n, h, e: seen.append(len(h))):
        history = fit(resumed, data, schedule, rng=seeded(), resume="train")
    assert seen == [3, 4]
    assert [r["loss"] for r in history] == [r["loss"] for r in expected]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


class Evil:
    def __reduce__(self):
        return (print, ("a pickle ran",))


def saved(folder, **changes):
    """The checkpoint of a training that ended, with other values in it."""
    with session(checkpoint=folder):
        fit(tiny_model(), tiny_set(), PLAIN, rng=seeded(), resume="train")
    return {**torch.load(folder / "train.pt"), **changes}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        {"model": Evil()},
        {"weights": torch.zeros(3)},
        [1, 2],
        {"optimizer": {}},
        {"rng": torch.zeros(3)},
        {"history": [{"loss": 0.5}]},
        {"history": 3},
        "another model",
    ],
    ids=lambda content: str(content)[:16],
)
def test_what_is_no_checkpoint_of_a_training_is_ignored_with_a_word(
    data, tmp_path, content, capsys, caplog
):
    path = tmp_path / "train.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "another model":
        torch.save(saved(tmp_path, model=tiny_model(classes=7).state_dict()), path)
    else:
        partly = isinstance(content, dict) and "weights" not in content
        torch.save(saved(tmp_path, **content) if partly else content, path)
    whole, begun = tiny_model(), tiny_model()
    expected = fit(whole, data, PLAIN, rng=seeded())
    with session(checkpoint=tmp_path):
        history = fit(begun, data, PLAIN, rng=seeded(), resume="train")
    assert [r["loss"] for r in history] == [r["loss"] for r in expected]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(begun.state_dict()[name], tensor), name
    assert "expected an epoch checkpoint" in caplog.text
    assert "begins anew" in caplog.text
    assert "a pickle ran" not in capsys.readouterr().out


def test_a_checkpoint_without_room_is_one_line_and_the_last_one_stays(data, tmp_path, monkeypatch):
    def full(state, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    before = saved(tmp_path)
    monkeypatch.setattr(torch, "save", full)
    longer = PLAIN.replace(epochs=PLAIN.epochs + 1)
    with (
        session(checkpoint=tmp_path),
        pytest.raises(StoreError, match=r"expected room .* free some disk"),
    ):
        fit(tiny_model(), data, longer, rng=seeded(), resume="train")
    assert torch.load(tmp_path / "train.pt")["history"] == before["history"]
    assert [path.name for path in tmp_path.iterdir()] == ["train.pt"]


def test_two_resumable_trainings_of_one_name_are_an_error(data, tmp_path):
    with session(checkpoint=tmp_path):
        fit(tiny_model(), data, PLAIN, rng=seeded(), resume="train")
        fit(tiny_model(), data, PLAIN, rng=seeded())  # not resumable: it has no name to share
        fit(tiny_model(), data, PLAIN, rng=seeded(), resume="other")
        taken = []
        with pytest.raises(ConfigError, match="got 'train' a second time"):
            fit(
                tiny_model(),
                data,
                PLAIN.replace(epochs=9),
                rng=seeded(),
                resume="train",
                after_step=lambda: taken.append(1),
            )
        assert taken == [], "it is an error before any work is done"
    with session(checkpoint=tmp_path):  # after a kill, another session has the name again
        fit(tiny_model(), data, PLAIN, rng=seeded(), resume="train")
    for _ in range(2):  # without a folder nothing is resumed, so nothing can collide
        fit(tiny_model(), data, PLAIN, rng=seeded(), resume="train")


def test_a_training_is_evaluated_each_epoch_where_it_asks_for_that(data):
    with session(evaluate=lambda model: {"c_acc": 50.0}):
        asked = fit(tiny_model(), data, PLAIN, rng=seeded(), evaluate=True)
        other = fit(tiny_model(), data, PLAIN, rng=seeded(), resume="train")
    assert [record["c_acc"] for record in asked] == [50.0, 50.0]
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


def compute(captured, monkeypatch, seed=0, **hooks):
    """Train with crop, flip, momentum and a last, smaller batch; return what came of it."""
    schedule = PLAIN.replace(epochs=3, batch_size=20, crop=2, flip=True, decay="cosine")
    monkeypatch.setattr(capture.Step, "worth", 1)
    model, cost = tiny_model(), Cost()
    before = snapshot(model)
    named = {name: make(model) for name, make in hooks.items()}
    with session(capture=captured), measuring(model, cost):
        history = fit(model, tiny_set(), schedule, rng=seeded(seed), **named)
    assert not torch.equal(before["linear.weight"], model.linear.weight)
    return [r["loss"] for r in history], snapshot(model), cost.passes


HOOKS = {
    "plain": {},
    "adam": {"optimizer": lambda m: torch.optim.Adam(m.parameters(), 1e-3, amsgrad=True)},
    "half-done": {"optimizer": lambda m: stepped(m)},
    "on_batch apart": {"on_batch": lambda m: numbered_noise()},
    "on_batch captured": {"on_batch": lambda m: negated, "capturable": lambda m: True},
    "after_step": {"after_step": lambda m: keep_norm(m.linear.weight)},
    "sam": {
        "gradient": lambda m: sam_gradient(m.parameters(), 0.5, freeze_bn_model=m),
        "capturable": lambda m: True,
    },
    "pam": {"gradient": lambda m: path_gradient(m.parameters(), 0.5), "capturable": lambda m: True},
}


def stepped(model):
    """An optimizer that has momentum from before."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    model(torch.rand(8, 3, 16, 16, generator=seeded())).square().mean().backward()
    optimizer.step()
    return optimizer


def numbered_noise():
    rng = seeded(7)
    return lambda x, y: (x + 0.1 * torch.rand(x.shape, generator=rng), y)


def negated(images, labels):
    return 1 - images, labels


@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
def test_a_recorded_step_is_the_step(hooks, monkeypatch, recorder):
    """Warming up, static places of the batch, replays and the counts of passes, without CUDA."""
    eager = compute(False, monkeypatch, **hooks)
    assert recorder == []
    recorded = compute(True, monkeypatch, **hooks)
    assert recorder == [6]  # two full batches of three epochs; the last ones are smaller
    assert recorded[0] == eager[0]
    assert all(torch.equal(recorded[1][name], tensor) for name, tensor in eager[1].items())
    assert recorded[2] == eager[2] != (0, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x / float(x.max()), y),
        lambda x, y: (x + torch.rand_like(x), y),
        lambda x, y: (x * torch.tensor([0.5]), y),
        lambda x, y: (x[(y >= 0).nonzero().squeeze(1)], y),
    ],
)
def test_the_stand_in_refuses_what_cuda_would(change, monkeypatch, recorder):
    with pytest.raises(AssertionError, match="cannot be captured"):
        compute(True, monkeypatch, on_batch=lambda m: change, capturable=lambda m: True)


def test_hooks_that_say_nothing_are_not_recorded(monkeypatch, recorder):
    compute(True, monkeypatch, gradient=lambda m: sam_gradient(m.parameters(), 0.5))
    compute(True, monkeypatch, loss=lambda m: lambda x, y: F.cross_entropy(m(x), y))
    assert recorder == []


def test_a_few_steps_are_not_worth_recording(data, recorder):
    fit(tiny_model(), data, PLAIN, rng=seeded())
    assert recorder == []


def test_what_cannot_be_recorded_runs_as_it_stands_and_says_so(monkeypatch, caplog):
    eager = compute(False, monkeypatch)

    def refused(work, put_back):
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(capture, "_can_capture", lambda optimizer, batch: True)
    monkeypatch.setattr(capture, "_captured", refused)
    other = compute(True, monkeypatch)
    assert other[0] == eager[0] and other[2] == eager[2]
    assert all(torch.equal(other[1][name], tensor) for name, tensor in eager[1].items())
    assert "without a CUDA graph: operation not permitted" in caplog.text


class Streams:
    """Stands in for torch.cuda: notes what is current while something is done."""

    def __init__(self):
        self.now, self.made, self.captured = "here", 0, []

    def Stream(self):
        self.made += 1
        return Stream(f"side {self.made}")

    def current_stream(self):
        return Stream(self.now)

    def set_stream(self, stream):
        self.now = stream.name

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        yield
        self.now = before

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        self.captured.append(stream.name)
        with self.stream(stream):
            yield

    class CUDAGraph:
        def replay(self):
            pass


class Stream:
    def __init__(self, name):
        self.name = name

    def wait_stream(self, other):
        pass


def test_every_graph_is_recorded_on_the_stream_of_its_warm_up_and_on_no_other(monkeypatch):
    cuda, seen = Streams(), []
    for name in ("Stream", "current_stream", "set_stream", "stream", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    for _ in range(2):
        capture._captured(lambda: seen.append(cuda.now), lambda: seen.append("put back"))
    assert seen[:5] == ["side 1"] * 3 + ["put back", "side 1"]
    assert seen[5:] == ["side 2"] * 3 + ["put back", "side 2"]
    assert cuda.captured == ["side 1", "side 2"]
    assert cuda.now == "here"


def test_a_rate_that_a_replay_would_not_read_is_never_recorded():
    batch = (torch.zeros(1),)
    assert not capture._can_capture(torch.optim.SGD([torch.zeros(1)], 0.1), batch)


def test_models_of_one_shape_are_compiled_once(data, monkeypatch, recorder):
    graphs = []

    def backend(graph, example):
        graphs.append(1)
        return graph.forward

    compiled = torch.compile(lambda net, x: type(net).forward(net, x), backend=backend)
    monkeypatch.setattr(capture, "_compiler", lambda: compiled)
    monkeypatch.setattr(capture.Step, "worth", 1)
    losses = []
    for compiling in (False, True, True):
        for seed in (0, 1):
            model, cost = tiny_model(seed=seed), Cost()
            with session(compile=compiling, precision="fp32"), measuring(model, cost):
                losses.append(fit(model, data, PLAIN, rng=seeded())[-1]["loss"])
            assert "forward" not in vars(model.backbone)
            assert cost.forward == 6
    assert len(graphs) == 1
    assert losses[:2] * 2 == pytest.approx(losses[2:])


def test_on_a_cpu_whole_batches_are_compiled_where_it_is_asked_for(data, monkeypatch):
    """The last batch, smaller than the others, goes through the network as it stands."""
    sizes = []

    def compiled(network, maps):
        sizes.append(len(maps))
        return type(network).forward(network, maps)

    monkeypatch.setattr(capture, "_compiler", lambda: compiled)
    monkeypatch.setattr(capture.Step, "worth_compiling", 1)
    schedule, trained = PLAIN.replace(batch_size=len(data) // 2 - 1, epochs=2), []
    for compiling in (False, True):
        assert not sizes
        model = tiny_model()
        with session(compile=compiling, precision="fp32"):
            fit(model, data, schedule, rng=seeded())
        assert "forward" not in vars(model.backbone)
        trained.append(model.state_dict())
    assert sizes == [schedule.batch_size] * 4
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
    monkeypatch.setattr(capture.Step, "worth_compiling", 99)
    with session(compile=True):
        fit(tiny_model(), data, schedule, rng=seeded())
    assert len(sizes) == 4, "too short to be worth it"


def test_where_nothing_compiles_a_training_goes_on_as_it_stands(data, monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    def compiled(network, maps):
        raise TorchDynamoException("no C++ compiler")

    monkeypatch.setattr(capture, "_compiler", lambda: compiled)
    monkeypatch.setattr(capture.Step, "worth_compiling", 1)
    losses = []
    for compiling in (False, True):
        with session(compile=compiling, precision="fp32"):
            losses.append(fit(tiny_model(), data, PLAIN, rng=seeded())[-1]["loss"])
    assert losses[0] == losses[1]
    assert caplog.text.count("training without compiling") == 1


def test_a_slow_checkpoint_is_written_less_often(data, tmp_path, monkeypatch):
    written = []
    save = torch.save

    def slow(*given):
        written.append(1)
        time.sleep(0.05)
        save(*given)

    monkeypatch.setattr(torch, "save", slow)
    monkeypatch.setattr(checkpoint.Checkpoint, "interval_s", 1e-6)
    with session(checkpoint=tmp_path):
        fit(tiny_model(), data, PLAIN.replace(epochs=8), rng=seeded(), resume="train")
    assert len(written) == 2  # the first, and what is there at the end


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain", "on_batch captured", "after_step", "sam", "pam"])
def test_a_captured_step_trains_like_an_eager_one(name, monkeypatch):
    real, captures, runs = capture._captured, [], []
    monkeypatch.setattr(capture, "_captured", lambda *a: (real(*a), captures.append(name))[0])
    monkeypatch.setattr(capture.Step, "worth", 1)
    for captured in (False, True):
        model, cost = tiny_model().cuda(), Cost()
        hooks = {hook: make(model) for hook, make in HOOKS[name].items()}
        schedule = PLAIN.replace(epochs=3, batch_size=20, crop=2, flip=True, decay="cosine")
        with session(precision="fp32", capture=captured), measuring(model, cost):
            history = fit(model, tiny_set().to("cuda"), schedule, rng=seeded(), **hooks)
        runs.append(([r["loss"] for r in history], cost.passes))
    assert captures == [name]  # it did not fall back
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-3)
    assert runs[0][1] == runs[1][1]


@pytest.mark.gpu
def test_a_compiled_step_trains_like_an_eager_one(monkeypatch):
    monkeypatch.setattr(capture.Step, "worth", 1)
    losses = []
    for compiling in (False, True):
        model = tiny_model().cuda()
        with session(precision="fp32", compile=compiling):
            history = fit(model, tiny_set().to("cuda"), PLAIN, rng=seeded())
        losses.append([r["loss"] for r in history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
