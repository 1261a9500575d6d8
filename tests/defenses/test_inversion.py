import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses import Bti, BtiSam, Mesa, NeuralCleanse, Pam
from ppr_core.defenses.parts.unlearning import triggered_first
from ppr_core.defenses.sources import decoupling, inversion
from ppr_core.defenses.sources.decoupling import (
    BestEpoch,
    Pass,
    decoupled,
    image_error,
    label_loss,
    passed,
    votes,
)
from ppr_core.defenses.sources.inversion import Inversion
from ppr_core.defenses.sources.residual import ResidualInversion
from ppr_core.defenses.sources.unet import UNet, fresh, load, load_slots, saved
from ppr_core.errors import ConfigError
from ppr_core.method import fork
from ppr_core.metrics import logits
from ppr_core.models.activations import soft_mask
from ppr_core.models.base import clone
from ppr_core.runtime import session
from ppr_core.training.fit import Schedule, make_optimizer
from tests.conftest import batches, shrink, tiny_model, tiny_set

ADAM = Schedule(steps=3, batch_size=16, optimizer="adam", lr=1e-2)
SMALL = Inversion(width=2, pretrain=ADAM, decouple=ADAM, generate=ADAM)
CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def generator_of(state):
    return {k: v for k, v in state.items() if k.startswith("generator.")}


@pytest.fixture
def found(model, data):
    return SMALL.invert(model, data, rng=seeded(), state={})


# -- the generator ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32, 48])
def test_the_generator_keeps_the_shape_and_knows_no_mode(size):
    net, images = UNet(2), torch.rand(2, 3, size, size)
    out = net.train()(images)
    assert out.shape == images.shape
    assert torch.equal(out, net.eval()(images))
    assert not list(net.buffers())


def test_the_generator_has_the_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet().parameters()) == 10_987_011


def test_the_generator_draws_its_weights_from_its_own_seed():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (fresh(2, 3, seeded(seed), CPU) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert equal(state_of(one), state_of(same))
    assert not equal(state_of(one), state_of(other))


def test_generator_and_optimizer_go_on_from_what_was_saved():
    images = torch.rand(4, 3, 16, 16)

    def steps(net, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (net(images) - images).square().mean().backward()
            optimizer.step()

    net = fresh(2, 3, seeded(), CPU)
    optimizer = make_optimizer(net.parameters(), ADAM)
    steps(net, optimizer, 2)
    state = saved(net, optimizer)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    other = fresh(2, 3, seeded(1), CPU)
    resumed = make_optimizer(other.parameters(), ADAM)
    load_slots(resumed, state)
    steps(load(other, state), resumed, 2)
    steps(net, optimizer, 2)
    assert equal(state_of(net), state_of(other))
    assert equal(state, kept)


# -- step 1: the mask ------------------------------------------------------------------------


def test_the_mask_lies_between_zero_and_one_for_all_images():
    benign = soft_mask(torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0]))
    assert benign.min() > 0
    assert benign.max() < 1
    assert benign[2] == 0.5
    torch.testing.assert_close(benign[1] + benign[3], torch.tensor(1.0))


def test_decoupling_learns_one_mask_and_changes_the_copy_s_statistics_only(model, data):
    frozen, before = clone(model).requires_grad_(False), state_of(model)
    theta = decoupled(frozen, data, ADAM, rng=seeded())
    features = model.features(to_float(data.images[:2]))
    assert theta.shape == (1, *features.shape[1:])
    assert not theta.requires_grad
    after = state_of(frozen)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, after[name])
    assert not torch.equal(after["backbone.1.running_mean"], before["backbone.1.running_mean"])
    assert equal(before, state_of(model))


@pytest.mark.parametrize("fill", [40.0, -40.0, 0.3])
def test_the_loss_of_the_mask_by_hand(fill, model, data, monkeypatch):
    """A mask of ones keeps all that predicts the label, and leaves the head nothing else."""
    caught = {}
    monkeypatch.setattr(decoupling, "fit", lambda *args, **named: caught.update(named))
    frozen = clone(model).requires_grad_(False)
    with session(precision="fp32"):
        decoupled(frozen, data, ADAM, rng=seeded())
        caught["parameters"][0].data.fill_(fill)
        images = to_float(data.images)
        got = caught["loss"](images, data.labels)
        share = soft_mask(torch.tensor(fill))
        maps = frozen.features(images)
        kept, gone = (frozen.head(part * maps) for part in (share, 1 - share))
        expected = F.cross_entropy(kept, data.labels) - F.cross_entropy(gone, data.labels)
        torch.testing.assert_close(got, expected)
        if fill == 40:
            whole, nothing = model(images), model.head(0 * maps)
            limit = F.cross_entropy(whole, data.labels) - F.cross_entropy(nothing, data.labels)
            torch.testing.assert_close(got, limit)


def test_decoupling_parts_what_predicts_the_label_from_the_rest():
    class Two(nn.Module):
        """Features: channel 0 says the label, channel 1 says another one."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def normalise(self, pixels):
            return pixels

        def features_of(self, images):
            label = images[:, :1, :1, :1] * 255
            return torch.cat([label, 1 - label], 1)

        def head(self, features):
            evidence = features.sum((1, 2, 3))
            return torch.stack([1 - evidence, evidence], 1) * 4

    images = torch.zeros(32, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(32) % 2
    images[:, 0] = labels.view(-1, 1, 1).to(torch.uint8)
    data = tiny_set(32, classes=2).with_images(images).with_labels(labels)
    schedule = ADAM.replace(steps=60, lr=0.1, crop=0, flip=False)
    with session(precision="fp32"):
        benign = soft_mask(decoupled(Two().requires_grad_(False), data, schedule, rng=seeded()))
    assert benign[0, 0].item() > 0.9
    assert benign[0, 1].item() < 0.1


# -- step 0 and step 2: the losses -----------------------------------------------------------


def test_the_published_label_loss_is_a_double_softmax_with_swapped_arguments():
    before, after = torch.randn(5, 4, generator=seeded()), torch.randn(5, 4, generator=seeded(1))
    by_hand = -(after.softmax(1) * before.softmax(1).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(label_loss(before, after, double=True), by_hand)
    p, q = before.softmax(1), after.softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(label_loss(before, after, double=False), divergence)
    assert label_loss(before, before, double=False).abs() < 1e-6


def batch(image_change=0.1, feature_change=1.0):
    images, features = torch.rand(4, 3, 16, 16), torch.rand(4, 6, 2, 2)
    return Pass(images, images + image_change, features, features + feature_change)


def test_within_both_bounds_the_generator_moves_what_is_not_benign():
    benign = torch.full((1, 6, 2, 2), 0.25)
    value, moved, far = SMALL.search_loss(batch(0.1, 2.0), benign)
    assert not far
    torch.testing.assert_close(moved, torch.tensor(0.75**2 * 4))
    torch.testing.assert_close(value, -moved + 0.01 * 0.25**2 * 4)


@pytest.mark.parametrize(("image", "feature"), [(0.6, 1.0), (0.1, 8.0), (0.6, 8.0)])
def test_beyond_a_bound_the_loss_is_the_image_error_alone(image, feature):
    # 0.6^2 > 0.3; (0.25 * 8)^2 > 3.
    value, _, far = SMALL.search_loss(batch(image, feature), torch.full((1, 6, 2, 2), 0.25))
    assert far == (image == 0.6), "features at their bound are what the search is for"
    torch.testing.assert_close(value, torch.tensor(image**2))


def test_a_pass_gives_gradients_to_the_generator_only(model, data):
    frozen, net = clone(model).requires_grad_(False), fresh(2, 3, seeded(), CPU)
    one = passed(net, frozen, to_float(data.images[:4]))
    torch.testing.assert_close(one.features, frozen.features(to_float(data.images[:4])))
    torch.testing.assert_close(one.reversed_features, frozen.features_of(net(one.images)))
    assert not one.features.requires_grad
    one.reversed_features.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad is None for p in frozen.parameters())


def test_pretraining_and_a_bound_of_zero_leave_images_alone(model, data):
    method = SMALL.replace(width=4, pretrain={"steps": 12}, generate={"steps": 12})
    pixels = to_float(data.images)

    def change(**settings):
        state = method.replace(**settings).invert(model, data, rng=seeded(), state={})
        with torch.no_grad():
            moved = method.trigger(model, state, None)(pixels) - pixels
        return (moved / model.normalise.std).square().mean()

    untrained = change(pretrain={"steps": 0}, generate={"steps": 0})
    pretrained = change(generate={"steps": 0})
    assert pretrained < 0.6 * untrained
    assert change(norm_bound=0.0) < pretrained < change(norm_bound=1e6)


def test_clamped_pixels_are_valid_pixels(model, data, found):
    pixels = to_float(data.images)
    with torch.no_grad():
        loose = SMALL.trigger(model, found, None)(pixels)
        tight = SMALL.replace(clamp_pixels=True).trigger(model, found, None)(pixels)
    assert loose.min() < 0
    torch.testing.assert_close(tight, loose.clamp(0, 1))


def test_the_best_epoch_is_kept():
    net = nn.Linear(1, 1, bias=False)
    best = BestEpoch(net, epoch_steps=2)
    for step, moved in enumerate([1.0, 2.0, 5.0, 0.5, 1.0, 1.0]):
        with torch.no_grad():
            net.weight.fill_(step)
        best.add(torch.tensor(moved))
        best.after_step()
    assert best.weights["weight"].item() == 3  # the end of the second epoch, 5.5 in all


def test_the_generator_of_the_best_epoch_is_kept(model, data):
    epochs = {"steps": None, "epochs": 3, "batch_size": 48, "lr": 0.1}
    method = SMALL.replace(pretrain={"steps": 0}, generate=epochs, use_max_bd_feat=True)

    def weights(method):
        return generator_of(method.invert(model, data, rng=seeded(), state={}))

    ends = [
        method.replace(generate={"epochs": count}, use_max_bd_feat=False) for count in (1, 2, 3)
    ]
    assert [equal(weights(method), weights(end)) for end in ends].count(True) == 1


# -- the generator that adds a change ---------------------------------------------------------

ADDING = ResidualInversion(width=2, decouple=ADAM, generate=ADAM)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_change_keeps_to_its_bound_image_by_image(scale):
    net, images = fresh(2, 3, seeded(), CPU, bound=0.2), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        net.out.weight.mul_(scale), net.out.bias.mul_(scale)
        raw = UNet.forward(net, images)
        change = net(images) - images
    size = change.square().mean((1, 2, 3))
    if scale < 1:
        torch.testing.assert_close(change, raw)
    else:
        torch.testing.assert_close(size, torch.full((4,), 0.2))
        angles = F.cosine_similarity(change.flatten(1), raw.flatten(1))
        torch.testing.assert_close(angles, torch.ones(4))


def test_the_identity_is_no_place_to_start(model, data):
    """What the search enlarges is the square of a move: without a move it has no slope."""
    frozen, slopes = clone(model).requires_grad_(False), []
    for at_identity in (True, False):
        net = fresh(2, 3, seeded(), CPU, bound=0.3)
        if at_identity:
            nn.init.zeros_(net.out.weight), nn.init.zeros_(net.out.bias)
        one = passed(net, frozen, to_float(data.images))
        ADDING.search_loss(one, torch.full((1, 1, 1, 1), 0.5))[0].backward()
        slopes.append(float(net.out.weight.grad.abs().max()))
    assert slopes[0] == 0
    assert slopes[1] > 0


def test_no_step_of_an_added_change_is_spent_on_the_image(model, data):
    long = {"steps": 12, "lr": 0.1}
    adding = ADDING.replace(generate=long, norm_bound=0.01, feat_bound=1e6)
    state = adding.invert(model, data, rng=seeded(), state={})
    assert state["norm_share"] == 0
    writing = SMALL.replace(generate=long, norm_bound=0.01, feat_bound=1e6)
    assert writing.invert(model, data, rng=seeded(), state={})["norm_share"] > 0.5
    images = model.normalise(to_float(data.images))
    with torch.no_grad():
        found = model.normalise(adding.trigger(model, state, None)(to_float(data.images)))
    size = (found - images).square().mean((1, 2, 3))
    torch.testing.assert_close(size, torch.full((48,), 0.01), rtol=0.01, atol=0)


def test_both_generators_are_sources_by_name():
    assert type(Pam(inversion="bti").inversion) is Inversion
    assert type(Pam(inversion="bti_residual").inversion) is ResidualInversion
    assert Pam().preparation() != Pam(inversion="bti_residual").preparation()


# -- the label -------------------------------------------------------------------------------


def rigged(model, label):
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(F.one_hot(torch.tensor(label), 4) * 9.0)
    return model


@pytest.mark.parametrize("label", [0, 2])
def test_the_label_is_what_the_model_always_answers(label, model, data):
    state = SMALL.invert(rigged(model, label), data, rng=seeded(), state={})
    assert int(state["label"]) == label
    assert state["votes"].tolist() == [48 * (c == label) for c in range(4)]
    assert SMALL.findings(state)["label_votes"] == 1


def test_without_noise_the_votes_are_the_predictions(model, data):
    counts = votes(lambda images: images, model, data, noise=0.0, rng=seeded())
    assert torch.equal(counts, logits(model, data.images).argmax(1).bincount(minlength=4))


def test_doubts_are_reported(found):
    near = {"start_error": torch.tensor(0.25), "norm_share": torch.tensor(0.5)}
    votes, theta, found = torch.tensor([3, 2, 2, 2]), found["mask_logits"], found | near
    assert SMALL.findings({**found, "votes": votes})["warnings"] == [
        "uncertain label: it has only 33% of the votes"
    ]
    sure = {**found, "votes": torch.tensor([0, 9, 0, 0]), "mask_logits": 0 * theta}
    numbers = {"label": int(found["label"]), "label_votes": 1, "mask_mean": 0.5}
    assert SMALL.findings(sure) == numbers | {"start_error": 0.25, "norm_share": 0.5}
    before = {k: v for k, v in sure.items() if k not in near}
    assert SMALL.findings(before) == numbers, "saved before these two were measured"
    for extreme, mean in ((9.0, "1.00"), (-9.0, "0.00")):
        report = SMALL.findings({**sure, "mask_logits": theta * 0 + extreme})
        assert report["warnings"] == [
            f"saturated mask: its mean is {mean}; use fewer decouple.steps"
        ]


def test_a_search_that_had_to_make_up_for_the_pretraining_is_reported(found):
    state = found | {"votes": torch.tensor([9, 0, 0, 0]), "mask_logits": 0 * found["mask_logits"]}
    start = "before the search its image MSE is 0.40, above the norm_bound of 0.3"
    wasted = state | {"start_error": torch.tensor(0.4), "norm_share": torch.tensor(0.67)}
    assert SMALL.findings(wasted)["warnings"] == [
        f"unready generator: {start}; use more pretrain.steps",
        "short search: 67% of its steps only lowered the image MSE; use more pretrain.steps or "
        "generate.steps",
    ]


def test_the_error_before_the_search_is_that_of_the_pretrained_generator(model, data):
    method = SMALL.replace(generate={"steps": 0})  # so that what was pretrained is what is kept
    state = method.invert(model, data, rng=seeded(), state={})
    net = load(fresh(2, 3, seeded(), CPU), state)
    images = model.normalise(to_float(data.images))
    with session(precision="fp32"):
        expected = image_error(net, model, data)
    with torch.no_grad():
        torch.testing.assert_close(expected, F.mse_loss(net(images), images))
    torch.testing.assert_close(state["start_error"], expected, rtol=0.05, atol=0)
    assert state["norm_share"] == 0, "no step was made"


@pytest.mark.parametrize(("bound", "share"), [(0.0, 1.0), (1e6, 0.0)])
def test_the_share_of_steps_spent_on_the_image_is_counted(bound, share, model, data):
    method = SMALL.replace(norm_bound=bound, feat_bound=1e6)
    first = method.invert(model, data, rng=seeded(), state={})
    assert float(first["norm_share"]) == share
    again = method.replace(norm_bound=1e6).invert(model, data, rng=seeded(1), state=first)
    assert float(again["norm_share"]) == share, "of the first round, as the votes are"


@pytest.mark.parametrize("cls", [Bti, BtiSam, Pam, Mesa, NeuralCleanse])
def test_every_defense_that_inverts_hands_out_its_warnings(cls):
    outcome = shrink(cls())(tiny_model(), tiny_set(size=32), rng=seeded())
    assert all(isinstance(doubt, str) and doubt for doubt in outcome.info["warnings"])
    real = shrink(cls(inversion="real"))
    sure = real(tiny_model(), tiny_set(), rng=seeded(), trigger=lambda images: 255 - images)
    assert sure.info["warnings"] == []
    doubtful = shrink(cls(inversion=SMALL.replace(norm_bound=0.0)))
    outcome = doubtful(tiny_model(), tiny_set(), rng=seeded())
    assert [doubt.partition(":")[0] for doubt in outcome.info["warnings"]][-2:] == [
        "unready generator",
        "short search",
    ]


# -- rounds ----------------------------------------------------------------------------------


def test_inversion_leaves_the_model_alone(model, data):
    model.backbone.train()
    before, modes = state_of(model), [m.training for m in model.modules()]
    SMALL.invert(model, data, rng=seeded(), state={})
    assert equal(before, state_of(model))
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_every_round_trains_the_generator_further(model, data, found):
    kept = {name: tensor.clone() for name, tensor in found.items()}
    again = SMALL.invert(model, data, rng=seeded(1), state=found)
    assert equal(found, kept)
    assert not equal(generator_of(found), generator_of(again))
    assert not torch.equal(found["mask_logits"], again["mask_logits"])
    assert again["optimizer.0.step"] == 6  # the optimizer goes on
    assert again["label"] == found["label"]


def test_the_generator_of_the_first_round_can_be_kept(model, data, found):
    kept = SMALL.replace(regenerate_each_round=False)
    again = kept.invert(model, data, rng=seeded(1), state=found)
    same = {k: v for k, v in found.items() if k != "votes"}
    assert equal(same, {k: v for k, v in again.items() if k != "votes"})
    assert equal(found, kept.invert(model, data, rng=seeded(), state={}))


def test_later_rounds_ask_for_the_label(model, data, found):
    # With bounds that leave only image error and label, the label asked for grows likelier.
    method = SMALL.replace(decouple={"steps": 0}, generate={"steps": 10}, feat_bound=0.0)
    likely = {}
    with torch.no_grad():
        model.linear.weight.mul_(30)  # so that answers depend on images at all
    for label in (1, 3):
        asked = {**found, "label": torch.tensor(label)}
        state = method.invert(model, data, rng=seeded(1), state=asked)
        assert int(state["label"]) == label
        with torch.no_grad():
            answers = model(method.trigger(model, state, None)(to_float(data.images)))
        likely[label] = answers.softmax(1).mean(0)
    assert likely[1][1] > likely[3][1]
    assert likely[3][3] > likely[1][3]


@pytest.mark.parametrize("label", [None, 2])
def test_beyond_a_bound_later_rounds_add_the_label_s_loss_and_nothing_else(
    label, model, data, monkeypatch
):
    caught, net = {}, fresh(2, 3, seeded(), CPU)
    monkeypatch.setattr(inversion, "fit", lambda *args, **named: caught.update(named))
    state = {} if label is None else {"label": torch.tensor(label)}
    method, frozen = SMALL.replace(norm_bound=0.0), clone(model).requires_grad_(False)
    benign = torch.full((1, 1, 1, 1), 0.25)
    method._generate(net, frozen, data, benign, state, make_optimizer(net.parameters(), ADAM), None)
    images = frozen.normalise(to_float(data.images))
    expected = F.mse_loss(net(images), images)
    if label is not None:
        answers = frozen.head(frozen.features_of(net(images)))
        expected = expected + F.cross_entropy(answers, torch.full((48,), label))
    torch.testing.assert_close(caught["loss"](to_float(data.images), data.labels), expected)


def test_another_label_in_a_later_round_stops_the_defense(data, model, rng):
    careful = SMALL.replace(early_stop=True)
    first = careful.invert(rigged(model, 1), data, rng=seeded(), state={})
    assert "stop" not in first
    changed = careful.invert(rigged(model, 3), data, rng=seeded(1), state=first)
    assert int(changed["label"]) == 1
    assert int(changed["votes"].argmax()) == 1, "the first round's votes are what is reported"
    assert "stop" in changed
    assert "stop" not in SMALL.invert(model, data, rng=seeded(1), state=first)
    method = Bti(inversion=careful, tuning=ADAM, rounds=3)
    # The model now answers 3, the prepared label is 1: one round of tuning, then it stops.
    outcome = method(model, data, rng=rng, state=first)
    assert outcome.info["rounds"] == 1
    assert len(outcome.history) == 1
    assert (
        Bti(inversion=SMALL, tuning=ADAM, rounds=3)(model, data, rng=rng, state=first).info[
            "rounds"
        ]
        == 3
    )


# -- step 3: the tuning that bti, bti_sam and pam share --------------------------------------


@pytest.mark.parametrize(
    ("share", "size", "count"),
    [(0.2, 128, 26), (0.1, 128, 13), (0.2, 68, 14), (0.0, 8, 1), (1.0, 3, 3)],
)
def test_exactly_so_many_images_of_a_batch_are_triggered(share, size, count):
    images = torch.rand(size, 3, 16, 16)
    mixed = triggered_first(images, lambda pixels: pixels + 1, share)
    differ = (mixed != images).flatten(1).any(1)
    assert mixed.shape == images.shape
    assert int(differ.sum()) == count
    assert torch.equal(mixed[differ], images[differ] + 1)


@pytest.mark.parametrize("cls", [Bti, BtiSam, Pam])
def test_labels_stay_and_the_generator_stays(cls, model, data, found, monkeypatch):
    mixes, kept = [], {name: tensor.clone() for name, tensor in found.items()}
    nets = []
    monkeypatch.setattr(inversion, "fresh", lambda *args: nets.append(fresh(*args)) or nets[-1])

    class Noting(cls):
        def hooks(self, model, mix, rng):
            def noting(images, labels):
                mixed = mix(images, labels)
                mixes.append((images, labels, *mixed))
                return mixed

            return super().hooks(model, noting, rng)

    method = Noting(inversion=SMALL, tuning={"steps": 3, "batch_size": 16}, rounds=1)
    outcome = method(model, data, rng=seeded(), state=found)
    assert len(mixes) == 3
    (net,) = nets
    assert all(torch.equal(t, found[f"generator.{name}"]) for name, t in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    reverse = SMALL.trigger(model, found, None)
    for images, labels, mixed, after in mixes:
        assert torch.equal(labels, after)
        count = int(method.reversed_share * 16 + 1)
        assert torch.equal(mixed[count:], images[count:])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(mixed[:count], images[:count])
            torch.testing.assert_close(mixed[:count], reverse(images[:count]), rtol=0.1, atol=0.1)
    assert equal(found, kept)
    assert outcome.info["label"] == int(found["label"])


def test_bti_tunes_for_labels_and_for_features_that_stay(model, data, found):
    tuning = Schedule(steps=1, batch_size=48, lr=0.0, crop=0, flip=False)
    method = Bti(inversion=SMALL, tuning=tuning, rounds=1)
    with session(precision="fp32"), torch.no_grad():
        with torch.enable_grad():
            outcome = method(model, data, rng=seeded(), state=found)
        images, labels = next(batches(data, tuning, rng=fork(seeded(), "tune", 1)))
        reverse, twin = SMALL.trigger(model, found, None), clone(model).train()
        moved = twin.features(torch.cat([reverse(images[:5]), images[5:]]))
        expected = F.cross_entropy(twin.head(moved), labels)
        expected += (moved - twin.features(images)).square().mean()
    assert outcome.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert int(outcome.model.backbone[1].num_batches_tracked) == 2


def test_bti_passes_plain_images_first_as_its_statistics_tell(model, data):
    """Two updates of rate 0.1, from m: 0.81 m + 0.09 plain + 0.1 mixed."""
    model.double().train()
    images, layer = to_float(data.images).double(), model.backbone[1]
    layer.running_mean.fill_(1.0)
    brighter = 1 - images
    means = [model.backbone[0](model.normalise(x)).mean((0, 2, 3)) for x in (images, brighter)]
    Bti().hooks(model, lambda x, y: (1 - x, y), seeded())["loss"](images, data.labels)
    expected = 0.81 + 0.09 * means[0] + 0.1 * means[1]
    torch.testing.assert_close(layer.running_mean, expected)


def test_one_preparation_serves_all_three(model, data):
    methods = [cls(inversion=SMALL) for cls in (Bti, BtiSam, Pam)]
    methods += [Pam(inversion=SMALL, rho=0.9), Pam(inversion=SMALL, rounds=1, bn="recalibrate")]
    later = SMALL.replace(regenerate_each_round=False, early_stop=True)
    methods.append(Pam(inversion=later))
    states = [method.prepare(model, data, rng=seeded()) for method in methods]
    for method, state in zip(methods, states, strict=True):
        assert method.preparation() == methods[0].preparation()
        assert equal(state, states[0])
    other = Pam(inversion=SMALL.replace(norm_bound=0.2))
    assert other.preparation() != methods[0].preparation()


def test_a_prepared_state_gives_what_the_call_would_have_computed(model, data):
    method = shrink(Pam(inversion={"width": 2}))
    prepared = method.prepare(model, data, rng=fork(seeded(), "prepare"))
    on_its_own = method(model, data, rng=seeded())
    served = method(model, data, rng=seeded(), state=prepared)
    assert equal(state_of(on_its_own.model), state_of(served.model))
    assert on_its_own.info == served.info
    assert served.cost.images < on_its_own.cost.images
    other = method(model, data, rng=seeded(5), state=prepared)
    assert not equal(state_of(other.model), state_of(served.model))


@pytest.mark.parametrize("cls", [Bti, BtiSam, Pam])
def test_a_reserve_smaller_than_a_batch(cls):
    outcome = shrink(cls())(tiny_model(), tiny_set(5), rng=seeded())
    assert all(t.isfinite().all() for t in outcome.model.state_dict().values())


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Bti, BtiSam, Pam])
def test_images_that_cannot_be_halved_four_times_are_refused(cls, model):
    with pytest.raises(ConfigError, match="divisible by 16.* got 24x24"):
        cls()(model, tiny_set(size=24), rng=seeded())
    with pytest.raises(ConfigError, match="divisible by 16"):
        cls().prepare(model, tiny_set(size=24), rng=seeded())


def test_a_model_in_one_piece_is_refused(data):
    lump = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ConfigError, match="a model with features and head, got a Sequential"):
        Pam()(lump, data, rng=seeded())
    with pytest.raises(ConfigError, match="expected a model with features and head"):
        Bti(inversion="real")(lump, data, rng=seeded())
    real = shrink(Pam(inversion="real"))  # PAM itself asks nothing of a model
    assert real(lump, data, rng=seeded(), trigger=lambda images: 255 - images).history
