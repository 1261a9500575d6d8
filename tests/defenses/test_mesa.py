import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses import Mesa, Pam
from ppr_core.defenses.sources import patches
from ppr_core.defenses.sources.patch_networks import Critic, Generator, paste
from ppr_core.defenses.sources.patches import PatchDistribution, share_turned
from ppr_core.errors import ConfigError, DataError
from ppr_core.training.fit import fit
from ppr_core.weights import snapshot
from tests.conftest import tiny_set

QUICK = {"steps": 60, "batch_size": 24, "lr": 5e-3}
SHORT = {"width": 8, "schedule": {"steps": 2, "batch_size": 16}}
TUNING = {"steps": 3, "batch_size": 16}


class Patchy(nn.Module):
    """Answer 2 where a 3x3 patch is bright somewhere, else 0, 1 or 3 as the dice fall."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, pixels):
        bright = F.avg_pool2d(pixels.mean(1, keepdim=True), 3, 1).amax((1, 2, 3))
        dice = (pixels.detach().mean((1, 2, 3)) * 1e5).long() % 3
        scores = 0.1 + 0.5 * F.one_hot(torch.tensor([0, 1, 3])[dice], 4).to(pixels)
        scores[:, 2] = bright
        return self.scale * scores


@pytest.fixture
def source():
    return PatchDistribution(width=16, schedule=QUICK)


# -- pasting -------------------------------------------------------------------------------------


def test_paste_by_hand():
    images = torch.zeros(2, 2, 3, 4)
    made = torch.arange(1.0, 17.0).view(2, 8)
    out = paste(images, made, torch.tensor([[0, 0], [1, 2]]))
    assert out[0, 0].tolist() == [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0]]
    assert out[1, 1].tolist() == [[0, 0, 0, 0], [0, 0, 13, 14], [0, 0, 15, 16]]
    assert not images.any()


def test_a_gradient_reaches_the_patch_and_nothing_else():
    made = torch.rand(1, 12, requires_grad=True)
    out = paste(torch.rand(1, 3, 5, 5), made, torch.tensor([[1, 2]]))
    (slope,) = torch.autograd.grad(out[..., 1:3, 2:4].sum(), made)
    assert slope.tolist() == [[1.0] * 12]


@pytest.mark.parametrize(("corner", "rows"), [(None, set(range(14))), (0, {13}), (2, {11})])
def test_places(corner, rows, rng):
    places = PatchDistribution(corner=corner).places(500, 16, rng)
    assert places.shape == (500, 2)
    assert set(places[:, 0].tolist()) == set(places[:, 1].tolist()) == rows


# -- the distribution ----------------------------------------------------------------------------


def test_patches_are_pixels_and_each_layer_has_its_noise(rng):
    net = Generator(27, 8).eval()
    z = torch.rand(6, 64, generator=rng)
    assert net(100 * z).min() >= 0 and net(100 * z).max() <= 1
    for chunk in range(4):
        other = z.clone()
        other[:, 16 * chunk : 16 * (chunk + 1)] += 1
        assert (net(other) != net(z)).any(1).all()
    assert Critic(27, 8)(z, net(z)).shape == (6, 1)


def test_the_class_that_patches_reach_is_found(source, data, rng):
    model = Patchy()
    before = snapshot(model)
    state = source.invert(model, data, rng=rng, state={})
    assert int(state["label"]) == 2
    assert state["success"].argmax() == 2
    assert state["success"][2] > 0.95 and state["success"][[0, 1, 3]].max() < 0.6
    assert "stop" not in state
    assert torch.equal(model.scale.detach(), before["scale"]) and model.scale.grad is None
    change = source.trigger(model, state, None)
    assert share_turned(model, data, change, 2) > 0.95
    pixels = to_float(data.images)
    out = change(pixels)
    assert out.min() >= 0 and out.max() <= 1
    changed = (out != pixels).any(1).flatten(1).sum(1)
    assert changed.max() <= 9
    spots = {tuple(spot) for spot in (out != pixels).any(1).nonzero()[:, 1:].tolist()}
    assert len(spots) > 60  # all over the image
    assert source.findings(state) == {"label": 2, "label_success": float(state["success"][2])}


def test_one_generator_a_threshold_and_the_scan_serves_for_the_middle_one(
    source, data, rng, monkeypatch
):
    trained = []
    original = PatchDistribution.train

    def noting(self, frozen, data, label, threshold, rng):
        trained.append((label, threshold))
        return original(self, frozen, data, label, threshold, rng)

    monkeypatch.setattr(PatchDistribution, "train", noting)
    source = source.replace(thresholds=[0.9, 0.3, 0.5])
    state = source.invert(Patchy(), data, rng=rng, state={})
    assert trained == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5), (2, 0.9), (2, 0.3)]
    trained.clear()
    again = source.invert(Patchy(), data, rng=rng, state=state)
    assert trained == [(2, 0.9), (2, 0.3), (2, 0.5)]
    assert torch.equal(again["success"], state["success"])


def test_the_losses_by_hand(data, rng, monkeypatch):
    """The generator's loss, and gradients of both networks, at one batch."""
    source = PatchDistribution(width=4, noise=0.0, alpha=0.5, average=1.0, corner=0)
    model, caught = Patchy(), {}

    def one_batch(net, data, schedule, *, rng, loss, gradient, parameters, optimizer):
        net.train()
        caught["value"] = gradient(lambda: loss(to_float(data.images), data.labels))
        caught["net"] = net
        caught["grads"] = [parameter.grad for parameter in parameters]

    monkeypatch.setattr(patches, "fit", one_batch)
    source.train(model, data, 2, 0.4, rng)
    net = caught["net"].requires_grad_(True)
    net.zero_grad()
    with patches.seeded(patches.seed_of(rng)):
        critic = (Generator(27, 4), Critic(27, 4))[1]
    draws = patches.fork(rng, "draws")
    z, z2 = torch.rand(48, 64, generator=draws), torch.rand(48, 64, generator=draws)
    made = net(z)
    pasted = to_float(data.images)
    pasted = torch.cat(
        [pasted[..., :13, :], torch.cat([pasted[..., 13:, :13], made.view(48, 3, 3, 3)], 3)], 2
    )
    reached = model(pasted).softmax(1)[:, 2].clamp(max=0.4).mean()
    mutual = critic(z, made).mean() - critic(z2, made).exp().mean().log()
    torch.testing.assert_close(caught["value"], (-reached - 0.5 * mutual).detach())
    (-reached - 0.5 * mutual).backward(retain_graph=True)
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    critic.zero_grad()
    (-mutual).backward()  # with an average of one batch alone the correction changes nothing
    expected += [parameter.grad for parameter in critic.parameters()]
    for got, wanted in zip(caught["grads"], expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_no_class_within_reach_leaves_the_model_alone(model, data, rng, monkeypatch):
    monkeypatch.setattr(patches, "share_turned", lambda *_: 0.49)
    method = Mesa(inversion=SHORT, tuning=TUNING)
    outcome = method(model, data, rng=rng)
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert outcome.info["rounds"] == 0
    doubt = "patches turn only 49% of the images: the model is left as it is"
    assert outcome.info["warnings"] == [doubt]


# -- as a defense and as a source ------------------------------------------------------------------


def test_removal_keeps_labels_and_patches_few_images(data, rng, model, monkeypatch):
    source = PatchDistribution(**SHORT, limit=0.0)
    seen = []

    def noting(model, images, schedule, *, on_batch, **named):
        batch = to_float(images.images), images.labels
        seen.append((batch, on_batch(*batch)))
        return fit(model, images, schedule, on_batch=on_batch, **named)

    monkeypatch.setattr("ppr_core.defenses.parts.unlearning.fit", noting)
    outcome = Mesa(inversion=source, tuning=TUNING)(model, data, rng=rng)
    ((images, labels), (mixed, kept)) = seen[0]
    assert torch.equal(kept, labels)
    assert (mixed != images).flatten(1).any(1).sum() == int(0.01 * 48 + 1)
    assert outcome.info["rounds"] == 1
    assert not torch.equal(outcome.model.linear.weight, model.linear.weight)


def test_pam_takes_it_as_a_source(model, data, rng):
    source = {"name": "mesa", "limit": 0.0, **SHORT}
    outcome = Pam(inversion=source, tuning=TUNING, rounds=2)(model, data, rng=rng)
    assert outcome.info["rounds"] == 2
    assert outcome.info["label"] in range(4)


def test_what_cannot_be_served_is_refused(model, rng):
    with pytest.raises(ConfigError, match="expected a patch within 16 pixels, got 18"):
        Mesa(inversion={"size": 5, "corner": 13})(model, tiny_set(), rng=rng)
    with pytest.raises(DataError, match="expected at least 2 images, got 1"):
        Mesa()(model, tiny_set(1), rng=rng)


def test_what_it_is_told_follows_from_its_settings():
    assert Mesa().uses == "the patch's size (3); the target label is estimated"
    cornered = Mesa(inversion={"corner": 0, "size": 5})
    assert cornered.uses.startswith("the patch's size (5) and its place, 0 from the corner;")
    assert Pam(inversion={"name": "mesa"}).uses == Mesa().uses
    assert Pam().uses == "none; the target label is estimated"
    assert Pam(inversion={"name": "real"}).uses.startswith("the attacker's trigger")
