import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses.anp import Anp, disturb, fill_noise
from ppr_core.defenses.parts import masks as masks_module
from ppr_core.defenses.parts.masks import Masks, prune, try_thresholds
from ppr_core.errors import ConfigError, DataError
from ppr_core.method import fork
from ppr_core.models.base import batch_norms
from ppr_core.runtime import session
from ppr_core.training import capture
from ppr_core.training.fit import fit
from ppr_core.weights import snapshot

SHORT = {"steps": 4, "batch_size": 16, "lr": 0.5}


def gammas(model):
    return torch.cat([layer.weight.detach() for _, layer in batch_norms(model)])


@pytest.fixture
def ladder(model):
    """Masks of a tiny model that rise from 0 to 1 over all channels."""
    masks = Masks(model)
    masks.values = torch.linspace(0, 1, len(masks.values))
    return masks.by_layer()


# -- the masked network ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_masks_of_one_without_noise_change_nothing(training, model, data):
    images = to_float(data.images)
    model.train(training)
    before = snapshot(model)
    expected = model(images)
    model.load_state_dict(before)
    with Masks(model).on(model):
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    after = snapshot(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_mask_and_noise_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double().train()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        model[1].bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    images = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    maps = model[0](images)
    unit = F.batch_norm(maps, None, None, training=True, eps=model[1].eps)
    masks = Masks(model)
    masks.values = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    masks.noise = torch.tensor([[0.1, -0.2, 0.3], [0.4, 0.0, -1.0]], dtype=torch.float64)
    scale = torch.tensor([0.1, 0.6, 3.9], dtype=torch.float64).view(3, 1, 1)
    shift = torch.tensor([0.7, -1.0, 0.0], dtype=torch.float64).view(3, 1, 1)
    with masks.on(model):
        torch.testing.assert_close(model(images), unit * scale + shift)
        masks.noise = None
        off = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).view(3, 1, 1)
        bias = model[1].layer.bias.view(3, 1, 1)
        torch.testing.assert_close(model(images), unit * off + bias)


def test_masks_come_off_also_after_an_error(model):
    layers = dict(batch_norms(model))
    model.linear.weight.requires_grad_(False)
    masks = Masks(model)

    def stop():
        with masks.on(model):
            assert not any(p.requires_grad for p in model.parameters())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert dict(batch_norms(model)) == layers
    assert model.linear.bias.requires_grad
    assert not model.linear.weight.requires_grad


def test_the_ascent_by_hand(model, rng):
    """Where the loss rises with the first row and falls with the second, all signs are known."""
    masks = Masks(model)

    def loss():
        return masks.noise[0].sum() - masks.noise[1].sum()

    def moved(steps):
        return disturb(masks, loss, start, 0.4, steps)

    start = torch.empty(2, len(masks.values))
    fill_noise(start, 0.4, torch.Generator().manual_seed(3))
    drawn = start.clone()
    assert start.abs().max() <= 0.4
    assert start.abs().max() > 0.39
    assert torch.equal(moved(0), start)
    for steps in (1, 4):
        torch.testing.assert_close(moved(steps), start + torch.tensor([[0.4], [-0.4]]))
    assert moved(1).abs().max() <= 0.8
    assert not moved(1).requires_grad
    assert not start.requires_grad
    assert torch.equal(start, drawn)


def test_the_two_losses_are_mixed(model, rng):
    masks, seen = Masks(model), []

    def loss():
        noise = 0 if masks.noise is None else masks.noise[0]
        seen.append(noise)
        return ((masks.values + noise) ** 2).sum()

    start = torch.empty(2, len(masks.values))
    fill_noise(start, 0.4, rng)
    value = Anp(alpha=0.25)._gradient(masks, start)(loss)
    _, noise, off = seen
    assert off == 0
    torch.testing.assert_close(masks.values.grad, 0.25 * 2 + 0.75 * 2 * (1 + noise))
    disturbed = ((1 + noise) ** 2).sum()
    torch.testing.assert_close(value, 0.25 * len(noise) + 0.75 * disturbed)
    assert masks.noise is None


# -- learning ------------------------------------------------------------------------------------


def test_only_masks_are_learnt_and_they_stay_within_bounds(model, data, rng):
    before = snapshot(model)
    state = Anp(schedule=SHORT).prepare(model, data, rng=rng)
    values = torch.cat(list(state.values()))
    assert 0 <= values.min() < values.max() <= 1
    assert list(state) == [name for name, _ in batch_norms(model)]
    after = snapshot(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_learning_masks_leaves_the_network_itself_alone(model, data, rng):
    """Not by working on a copy: weights, statistics and modes of this very network stay."""
    before, modes = snapshot(model), {m: m.training for m in model.modules()}
    masks = Anp(schedule=SHORT).learn(model, data, rng=rng)
    assert masks.values.min() < 1
    after = snapshot(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(module.training == modes[module] for module in model.modules())
    assert masks.noise is None


def test_three_passes_a_step(model, data, rng):
    method = Anp(schedule=SHORT, select="fixed")
    cost = method(model, data, rng=rng).cost
    assert (cost.forward, cost.backward) == (12, 12)


def learnt_by_drawing_within_the_step(method, model, data, rng):
    """Masks as they are learnt where each step draws its own noise, which nothing can record."""
    masks, noise_rng = Masks(model), fork(rng, "noise")

    def gradient(loss):
        noise = method.eps * (2 * torch.rand((2, len(masks.values)), generator=noise_rng) - 1)
        for _ in range(method.ascent_steps):
            masks.noise = noise.requires_grad_()
            (slope,) = torch.autograd.grad(loss(), noise)
            noise = noise.detach() + method.eps / method.ascent_steps * slope.sign()
        masks.noise = noise
        disturbed = (1 - method.alpha) * loss()
        disturbed.backward()
        masks.noise = None
        plain = method.alpha * loss()
        plain.backward()
        return (disturbed + plain).detach()

    hooks = {"gradient": gradient, "after_step": masks.clamp, "parameters": [masks.values]}
    with masks.on(model):
        fit(model, data, method.schedule, rng=fork(rng, "batches"), **hooks)
    return masks


@pytest.mark.parametrize("ascent", [0, 1, 3])
def test_steps_are_recorded_and_each_reads_noise_of_its_own(
    ascent, model, data, monkeypatch, recorder
):
    """Bit for bit what comes of drawing within the step, a last, smaller batch included."""
    method = Anp(ascent_steps=ascent, schedule={"steps": 8, "batch_size": 20, "lr": 0.1})
    monkeypatch.setattr(capture.Step, "worth", 1)

    def seeded():
        return torch.Generator().manual_seed(5)

    expected = learnt_by_drawing_within_the_step(method, model, data, seeded()).values
    with session(capture=False):
        eager = method.learn(model, data, rng=seeded()).values
    assert recorder == []
    recorded = method.learn(model, data, rng=seeded()).values
    assert recorder == [6]  # batches of 20, 20 and 8 images: the small ones run as they stand
    assert 0 < expected.min() < expected.max()
    assert torch.equal(eager, expected)
    assert torch.equal(recorded, expected)
    other = method.replace(eps=0.3).learn(model, data, rng=seeded()).values
    assert not torch.equal(other, expected)


def test_masks_are_shared_by_all_thresholds(model, data, rng):
    method = Anp(schedule=SHORT, select="fixed", tau=0.9)
    assert method.preparation() == method.replace(tau=0.1, select="oracle_asr").preparation()
    assert method.preparation() != method.replace(eps=0.1).preparation()
    assert method.preparation() != method.replace(schedule={"lr": 0.1}).preparation()
    alone = method(model, data, rng=rng)
    given = method(model, data, rng=rng, state=method.prepare(model, data, rng=rng))
    assert torch.equal(gammas(alone.model), gammas(given.model))
    assert alone.tensors.keys() == given.tensors.keys()


# -- pruning ---------------------------------------------------------------------------------------


def test_pruned_sets_are_nested_and_only_gamma_changes(model, ladder):
    before, seen = snapshot(model), set()
    for tau in (-0.1, 0.0, 0.3, 0.6, 1.0):
        model.load_state_dict(before)
        count = prune(model, ladder, tau)
        gone = set(torch.nonzero(gammas(model) == 0).flatten().tolist())
        assert len(gone) == count
        assert seen <= gone
        seen = gone
        allowed = {f"{name}.weight" for name, _ in batch_norms(model)}
        after = snapshot(model)
        odd = {name for name in before if not torch.equal(before[name], after[name])}
        assert odd <= allowed
        expected = {-0.1: 0, 0.0: 1, 1.0: len(gammas(model))}
        assert count == expected.get(tau, count)


def test_sweep_leaves_the_model_alone(model, ladder):
    before = snapshot(model)
    rows = try_thresholds(
        model, ladder, [0.5, 0.0], lambda m: {"zeros": int((gammas(m) == 0).sum())}
    )
    assert [row["tau"] for row in rows] == [-1.0, 0.0, 0.5]
    assert [row["pruned"] for row in rows] == [row["zeros"] for row in rows]
    assert rows[0]["pruned"] == 0
    after = snapshot(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


# -- choosing the threshold ------------------------------------------------------------------------


def falling(model):
    """Figures that fall with the share of pruned channels, the ASR much faster."""
    share = float((gammas(model) == 0).double().mean())
    return {"c_acc": 90 - 20 * share, "asr": max(0.0, 100 - 250 * share)}


def test_the_honest_rule_takes_the_largest_threshold_that_costs_little(
    model, data, rng, ladder, monkeypatch
):
    monkeypatch.setattr(masks_module, "clean_accuracy", lambda m, held: falling(m)["c_acc"])
    method = Anp(tau_grid=[0.3, 0.11, 0.05, 0.09])
    outcome = method(model, data, rng=rng, state=ladder, validation=data)
    assert outcome.info["tau"] == 0.09  # 0.11 prunes more than a tenth: over 2 points
    assert not method.oracle
    assert outcome.info["pruned"] == int((gammas(outcome.model) == 0).sum())
    assert all("asr" not in row for row in outcome.info["sweep"])
    none = method.replace(c_acc_drop=0.0)(model, data, rng=rng, state=ladder, validation=data)
    assert none.info["pruned"] == 0
    assert none.info["warnings"]


def test_the_oracle_takes_the_least_asr(model, data, rng, ladder):
    method = Anp(select="oracle_asr", tau_grid=[0.1, 0.3, 0.42, 0.44, 0.6])
    outcome = method(model, data, rng=rng, state=ladder, score=falling)
    assert method.oracle
    assert outcome.info["tau"] == 0.42  # the first with ASR 0; 0.6 costs more than a tenth
    assert outcome.info["sweep"][0]["tau"] == -1
    strict = method.replace(max_loss=0.05)(model, data, rng=rng, state=ladder, score=falling)
    assert strict.info["tau"] == 0.1


def test_a_fixed_threshold_needs_nothing(model, data, rng, ladder):
    outcome = Anp(select="fixed", tau=0.5)(model, data, rng=rng, state=ladder)
    assert outcome.info["pruned"] == sum(int((m <= 0.5).sum()) for m in ladder.values())
    assert torch.equal(outcome.tensors["mask.backbone.1"], ladder["backbone.1"])


def test_a_rule_without_what_it_needs_is_refused(model, data, rng):
    with pytest.raises(DataError, match="expected validation images to choose tau by, got none"):
        Anp()(model, data, rng=rng)
    with pytest.raises(ConfigError, match="expected score= for select: oracle_asr, got none"):
        Anp(select="oracle_asr")(model, data, rng=rng)


def test_a_model_without_batch_norm_is_refused(data, rng):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ConfigError, match="expected a model with batch norm"):
        Anp()(plain, data, rng=rng)


def test_thresholds_out_of_range_are_refused():
    for taus in ([0.4, 1.2], []):
        with pytest.raises(ConfigError, match="tau_grid"):
            Anp(tau_grid=taus)
