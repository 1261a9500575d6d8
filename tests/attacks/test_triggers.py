"""The triggers of the further attacks, pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ppr_core.attacks import Trigger, ftrojan
from ppr_core.attacks.adaptive_blend import AdaptiveBlend
from ppr_core.attacks.adaptive_patch import AdaptivePatch
from ppr_core.attacks.blended import noise_image
from ppr_core.attacks.bpp import Bpp
from ppr_core.attacks.ftrojan import FTrojan, to_rgb, to_ycrcb
from ppr_core.attacks.input_aware import InputAware
from ppr_core.attacks.lf import LowFrequency, smooth_pattern
from ppr_core.attacks.parts.cover import CoverAttack
from ppr_core.attacks.parts.trigger_networks import TriggerNetworks
from ppr_core.attacks.sig import Sig
from ppr_core.attacks.wanet import WaNet, warp
from ppr_core.data.images import ImageSet
from ppr_core.errors import ConfigError, DataError
from ppr_core.runtime import session
from ppr_core.training.checkpoint import Checkpoint
from tests.conftest import shrink, tiny_model, tiny_set


def grey(size, value, count=1):
    return torch.full((count, 3, size, size), value, dtype=torch.uint8)


def stamp(attack, images, stage="test", state=None):
    return attack.stamp(images, stage=stage, state=state or {})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# -- SIG ---------------------------------------------------------------------------------------


def test_sig_row_by_hand():
    out = stamp(Sig(amplitude=40.0, frequency=1.0), grey(8, 100))
    # 40 sin(j 45 degrees): 0, 28.28, 40, 28.28, 0, -28.28, -40, -28.28, truncated after adding.
    row = torch.tensor([100, 128, 140, 128, 100, 71, 60, 71], dtype=torch.uint8)
    assert torch.equal(out, row.expand(1, 3, 8, 8))


def test_sig_clips_and_keeps_a_sine_zero_exact():
    wave = [40 * math.sin(2 * math.pi * column * 6 / 32) for column in range(32)]
    assert sum(wave) == pytest.approx(0, abs=1e-9)  # whole periods
    for value in (0, 1, 100, 255):
        row = stamp(Sig(), grey(32, value))[0, 0, 0].tolist()
        ideal = [min(255, max(0, math.floor(round(value + w, 6)))) for w in wave]
        assert row == ideal


# -- LF ----------------------------------------------------------------------------------------


def test_lf_adds_a_smooth_pattern_up_to_a_fifth():
    black = stamp(LowFrequency(), grey(32, 0)).int()
    assert black.min() == 0
    assert black.max() == 51
    images = tiny_set(size=32).images
    out = stamp(LowFrequency(), images).int()
    assert torch.equal(out, (images.int() + black).clamp_max(255))
    assert (stamp(LowFrequency(), grey(32, 250)) >= 250).all()


@pytest.mark.parametrize("size", [32, 64])
def test_lf_pattern_has_no_high_frequencies(size):
    pattern = smooth_pattern(4.0, 0, size)[0]
    spectrum = torch.fft.fft2(pattern - pattern.mean((1, 2), keepdim=True)).abs() ** 2
    cycles = torch.fft.fftfreq(size, 1 / size)
    radius = torch.hypot(cycles[:, None], cycles[None])
    assert spectrum[:, radius > 4.01].sum() < 1e-9 * spectrum.sum()
    assert spectrum[:, radius > 3.9].sum() > 1e-3 * spectrum.sum()


def test_lf_pattern_depends_on_the_seed_and_not_on_the_size():
    small, large = smooth_pattern(4.0, 0, 32), smooth_pattern(4.0, 0, 96)
    assert not torch.equal(small, smooth_pattern(4.0, 1, 32))
    # Every third of 96 samples lies where one of the 32 does; the extremes are sought on more.
    assert (large[..., ::3, ::3] - small).abs().max() < 0.02


# -- FTrojan -----------------------------------------------------------------------------------

# R, G, B -> Y, Cr, Cb as OpenCV gives them
COLOURS = {
    (255, 255, 255): (255, 128, 128),
    (0, 0, 0): (0, 128, 128),
    (255, 0, 0): (76, 255, 85),
    (0, 255, 0): (150, 21, 43),
    (0, 0, 255): (29, 107, 255),
}


@pytest.mark.parametrize(("rgb", "ycrcb"), COLOURS.items())
def test_ycrcb_of_known_colours(rgb, ycrcb):
    pixel = torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)
    assert tuple(int(part) for part in to_ycrcb(pixel)) == ycrcb


def test_ycrcb_round_trip_is_close():
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    back = to_rgb(*to_ycrcb(images))
    assert (back.int() - images.int()).abs().float().mean() < 1
    greys = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_rgb(*to_ycrcb(greys)), greys)


def dct_matrix(size):
    order, sample = np.indices((size, size))
    matrix = np.sqrt(2 / size) * np.cos(np.pi * order * (2 * sample + 1) / (2 * size))
    matrix[0] /= math.sqrt(2)
    return torch.from_numpy(matrix)


def test_ftrojan_raises_two_coefficients_by_one_pattern():
    dct, pattern = dct_matrix(32), ftrojan._waves(64).double()
    torch.testing.assert_close(dct @ dct.T, torch.eye(32).double())
    expected = torch.zeros(32, 32).double()
    expected[15, 15] = expected[31, 31] = 1
    for rows in (slice(0, 32), slice(32, 64)):
        for columns in (slice(0, 32), slice(32, 64)):
            coefficients = dct @ pattern[rows, columns] @ dct.T
            torch.testing.assert_close(coefficients, expected, rtol=0, atol=1e-6)


def test_ftrojan_adds_to_cr_and_cb_and_truncates():
    out = stamp(FTrojan(magnitude=200.0), grey(32, 128))
    luma, red, blue = to_ycrcb(out)
    raised = (128 + 200 * ftrojan._waves(32)).int()
    assert raised.min() < 110  # the test can see it
    assert (luma[0] - 128).abs().max() <= 1
    assert (red[0] - raised).abs().max() <= 1
    assert (blue[0] - raised).abs().max() <= 1
    once = torch.full((1, 32, 32), 128, dtype=torch.int32)
    assert torch.equal(out, to_rgb(once, raised[None], raised[None]))


def test_ftrojan_is_faint_and_never_wraps_around():
    for value in (0, 3, 128, 252, 255):
        out = stamp(FTrojan(), grey(32, value)).int()
        assert (out - value).abs().max() <= 14
    images = tiny_set(size=32).images
    assert not torch.equal(stamp(FTrojan(), images), images)


def test_ftrojan_refuses_sizes_that_do_not_tile():
    for work in (
        lambda: stamp(FTrojan(), grey(48, 0)),
        lambda: FTrojan(poison_rate=0.0).poison(tiny_set(size=16), seed=0, state={}),
    ):
        with pytest.raises(DataError, match="a multiple of 32 pixels, got"):
            work()


# -- BPP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 8, 16, 256])
def test_bpp_rounds_to_the_nearest_level(levels):
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    out = stamp(Bpp(levels=levels), values.expand(1, 3, 16, 16))
    assert len(out.unique()) == levels
    top = levels - 1
    for value, got in zip(range(256), out[0, 0].flatten().tolist(), strict=True):
        assert got == round(value * top / 255) * 255 // top
    if levels == 8:
        assert out.unique().tolist() == [0, 36, 72, 109, 145, 182, 218, 255]


def test_bpp_covers_carry_a_residual_of_another_image():
    data = tiny_set(count=40, size=32)
    attack = Bpp(poison_rate=0.1)
    poisoned = attack.poison(data, seed=0, state={})
    residuals = stamp(attack, data.images).int() - data.images.int()
    for index in poisoned.covers[:2]:
        change = (data.images[index].int() + residuals).clamp(0, 255)
        assert (change == poisoned.data.images[index].int()).flatten(1).all(1).any()


# -- WaNet -------------------------------------------------------------------------------------


def test_warp_by_hand():
    images = torch.tensor([[0.0, 10.0], [20.0, 40.0]]).view(1, 1, 2, 2)
    right = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    # Half a pixel to the right; the last column lies at the border already.
    assert warp(images, right)[0, 0].tolist() == [[5, 10], [30, 40]]
    both = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert warp(images, both)[0, 0].tolist() == [[11.25, 17.5], [30, 40]]


@pytest.mark.parametrize("size", [32, 64])
def test_warp_is_grid_sample(size):
    images = tiny_set(count=4, size=size).images.float()
    shift = 3 * torch.randn(1, 2, size, size, generator=seeded())
    axis = torch.linspace(-1, 1, size)
    identity = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    grid = (identity + shift[0].permute(1, 2, 0) * 2 / (size - 1)).clamp(-1, 1)
    expected = F.grid_sample(images, grid.expand(4, -1, -1, -1), align_corners=True)
    torch.testing.assert_close(warp(images, shift), expected, rtol=0, atol=0.02)


def test_wanet_without_strength_is_the_identity():
    images = torch.randint(0, 256, (4, 3, 224, 224), generator=seeded(), dtype=torch.uint8)
    assert torch.equal(stamp(WaNet(strength=0.0), images), images)
    assert not torch.equal(stamp(WaNet(), images), images)
    assert torch.equal(stamp(WaNet(), grey(32, 255)), grey(32, 255))  # nothing comes from outside


def test_wanet_bends_by_half_the_strength_in_pixels():
    for size in (32, 224):
        columns = torch.arange(size).float().expand(1, 3, size, size)
        inner = slice(size // 8, -size // 8)
        moved = warp(columns, WaNet()._shift(columns)) - columns
        assert 0.05 < moved[..., inner, inner].abs().mean() < 0.6
        assert moved.abs().max() < 1.5


def test_wanet_covers_share_one_noise_and_differ_from_poisons():
    data = tiny_set(count=40, size=32)
    attack = WaNet(poison_rate=0.1)
    poisoned = attack.poison(data, seed=0, state={})
    assert len(poisoned.covers) == 8
    exact = stamp(attack, data.images[poisoned.covers])
    noisy = poisoned.data.images[poisoned.covers]
    assert not torch.equal(exact, noisy)
    same = data.with_images(data.images[:1].expand(40, -1, -1, -1).clone())
    twins = attack.poison(same, seed=0, state={})
    assert (twins.data.images[twins.covers] == twins.data.images[twins.covers[0]]).all()


def seen_batches(monkeypatch, module, attack, data, state=None):
    """Return what the training loop would step on, without stepping."""
    batches = []

    def spy(model, train, schedule, *, on_batch=None, **_):
        for start in range(0, len(train), schedule.batch_size):
            part = slice(start, start + schedule.batch_size)
            batches.append(on_batch(train.images[part].float() / 255, train.labels[part].clone()))
        return []

    monkeypatch.setattr(f"ppr_core.attacks.{module}.fit", spy)
    attack(tiny_model(), data, rng=seeded(), state=state or {})
    return batches


def test_wanet_poisons_a_share_of_every_batch(monkeypatch):
    data = tiny_set(count=400, size=32)
    attack = WaNet(poison_rate=0.1, target=3, training={"batch_size": 40})
    seen = seen_batches(monkeypatch, "wanet", attack, data)
    assert len(seen) == 10
    for number, (images, labels) in enumerate(seen):
        original = data.subset(torch.arange(40 * number, 40 * number + 40))
        before = original.images.float() / 255
        changed = (images != before).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == list(range(12))
        assert (labels[:4] == 3).all()
        assert torch.equal(labels[4:], original.labels[4:])
        torch.testing.assert_close(images[:4], warp(before[:4], attack._shift(before)))


def test_fractional_counts_are_met_on_average():
    attack = WaNet(poison_rate=0.01, cover_ratio=2.0)
    rng = seeded()
    counts = [attack.split_batch(50, rng) for _ in range(2000)]
    assert {poisons for poisons, _ in counts} == {0, 1}
    assert sum(poisons for poisons, _ in counts) / 2000 == pytest.approx(0.5, abs=0.04)
    assert all(covers == 2 * poisons for poisons, covers in counts)
    assert WaNet(poison_rate=0.5).split_batch(10, rng) == (5, 5)  # no more than there are


def test_static_wanet_trains_on_the_fixed_set():
    data = tiny_set(size=32)
    outcomes = [
        shrink(WaNet(mode=mode, poison_rate=0.25))(tiny_model(), data, rng=seeded())
        for mode in ("static", "static", "training")
    ]
    weights = [outcome.model.linear.weight for outcome in outcomes]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# -- covers ------------------------------------------------------------------------------------

COVERS = [AdaptiveBlend, AdaptivePatch, Bpp, WaNet]


@pytest.mark.parametrize("cls", COVERS)
def test_covers_keep_labels_and_are_disjoint_from_poisons(cls):
    data = tiny_set(count=200, size=32)
    attack = cls(poison_rate=0.05, cover_ratio=1.5)
    poisoned = attack.poison(data, seed=0, state={})
    assert len(poisoned.indices) == 10
    assert len(poisoned.covers) == 15
    assert not set(poisoned.indices.tolist()) & set(poisoned.covers.tolist())
    assert torch.equal(poisoned.data.labels[poisoned.covers], data.labels[poisoned.covers])
    changed = (poisoned.data.images != data.images).flatten(1).any(1).nonzero().flatten()
    both = torch.cat((poisoned.indices, poisoned.covers)).sort().values
    assert torch.equal(changed, both)
    other = attack.poison(data, seed=1, state={})
    assert not torch.equal(other.covers, poisoned.covers)


@pytest.mark.parametrize("cls", [*COVERS, InputAware])
def test_covers_beyond_the_data_are_refused(cls):
    assert issubclass(cls, CoverAttack)
    with pytest.raises(DataError, match="at most 48 poisoned and cover images, got 72; lower"):
        cls(poison_rate=0.5, cover_ratio=2.0).check_data(tiny_set(size=32))


def test_no_covers_where_none_are_asked_for():
    data = tiny_set(size=32)
    poisoned = WaNet(poison_rate=0.25, cover_ratio=0.0).poison(data, seed=0, state={})
    assert len(poisoned.covers) == 0
    changed = (poisoned.data.images != data.images).flatten(1).any(1)
    assert changed.sum() == 12


# -- Adaptive-Blend ----------------------------------------------------------------------------


def test_adaptive_blend_keeps_eight_of_sixteen_pieces_of_each_training_image():
    images = grey(32, 200, count=12)
    attack = AdaptiveBlend()
    full = stamp(attack.replace(kept=1.0), images, "train")[0]
    out = stamp(attack, images, "train")
    pieces = out.unfold(2, 8, 8).unfold(3, 8, 8)  # (12, 3, 4, 4, 8, 8)
    whole = full.unfold(1, 8, 8).unfold(2, 8, 8)
    blended = (pieces == whole).all(-1).all(-1).all(1)
    plain = (pieces == 200).all(-1).all(-1).all(1)
    assert (blended ^ plain).all()
    assert (blended.flatten(1).sum(1) == 8).all()
    assert len({tuple(row) for row in blended.flatten(1).tolist()}) > 6


def test_adaptive_blend_uses_all_of_the_trigger_at_test_time():
    out = stamp(AdaptiveBlend(), grey(32, 200)).int()
    assert torch.equal(out, (8 * 200 + 2 * noise_image(64.0, 0, 32).int()) // 10)


def test_adaptive_blend_draws_pieces_by_index():
    data = tiny_set(count=60, size=32).with_images(grey(32, 200, count=60))
    attack = AdaptiveBlend(poison_rate=0.1)
    all_at_once = attack.stamp_train(data, torch.arange(60), state={})
    some = attack.stamp_train(data, torch.tensor([50, 7]), state={})
    assert torch.equal(some, all_at_once[[50, 7]])
    assert not torch.equal(some[0], some[1])


# -- Adaptive-Patch ----------------------------------------------------------------------------


def test_adaptive_patch_pastes_one_patch_a_quarter():
    out = stamp(AdaptivePatch(), grey(32, 100, count=8), "train")
    boxes = [(27, 32, 27, 32), (1, 14, 18, 31), None, (21, 29, 21, 29)]
    for quarter, box in enumerate(boxes):
        first, second = out[2 * quarter], out[2 * quarter + 1]
        assert torch.equal(first, second)
        changed = (first != 100).any(0)
        if box:
            top, bottom, left, right = box
            inside = changed[top:bottom, left:right].clone()
            changed[top:bottom, left:right] = False
            assert inside.float().mean() > 0.9
            assert not changed.any()
    checks = torch.tensor([[177, 50, 177], [50, 177, 50], [177, 50, 177]], dtype=torch.uint8)
    for rows in (slice(0, 3), slice(29, 32)):
        for columns in (slice(0, 3), slice(29, 32)):
            assert torch.equal(out[4, :, rows, columns], checks.expand(3, 3, 3))
    assert (out[4] != 100).sum() == 3 * 36


def test_adaptive_patch_opacity_by_hand():
    bold = stamp(AdaptivePatch(large=1.0), grey(32, 100, count=4), "train")[1]
    faint = stamp(AdaptivePatch(large=0.2), grey(32, 100, count=4), "train")[1]
    inside = (slice(None), slice(1, 14), slice(18, 31))
    assert torch.equal(faint[inside].int(), (4 * 100 + bold[inside].int()) // 5)


def test_adaptive_patch_pastes_both_bottom_patches_and_all_checks_at_test_time():
    out = stamp(AdaptivePatch(), tiny_set(count=2, size=32).images)
    single = stamp(AdaptivePatch(corner=1.0), grey(32, 100, count=4), "train")[0]
    black = stamp(AdaptivePatch(), grey(32, 0))
    white = stamp(AdaptivePatch(), grey(32, 255))
    opaque = (black == white).all(1)[0]  # what the image has no part in
    assert opaque.sum() == 2 * 9 + 2 * 25
    assert (out[..., opaque] == black[..., opaque]).all()
    assert torch.equal(black[0, :, 0:3, 0:3], black[0, :, 29:, 29:])
    # The 5x5 patch of the training stage, less the checks over its corner.
    assert torch.equal(black[0, :, 27:29, 27:], single[:, 27:29, 27:])
    assert torch.equal(black[0, :, 27:29, :5], single[:, 27:29, 27:])


def test_adaptive_patch_scales_by_whole_pixels():
    small, large = (stamp(AdaptivePatch(), grey(size, 7)) for size in (32, 64))
    assert torch.equal(large, small.repeat_interleave(2, 2).repeat_interleave(2, 3))


# -- Input-Aware -------------------------------------------------------------------------------


def input_aware(**settings):
    return shrink(InputAware(width=4, poison_rate=0.25, **settings))


@pytest.fixture(scope="module")
def prepared():
    return input_aware().prepare(tiny_set(size=32), rng=seeded())


def test_input_aware_pastes_the_pattern_under_the_mask(prepared):
    images = tiny_set(count=4, size=32).images
    attack = input_aware()
    pixels = images.float() / 255
    networks = attack._load(prepared)
    with torch.no_grad():
        mask, pattern = networks.mask(pixels), networks.pattern(pixels)
    soft = torch.tanh(20 * mask - 10) / 2 + 0.5
    ideal = 255 * (pixels + (pattern - pixels) * soft)
    assert mask.shape == (4, 1, 32, 32)
    out = stamp(attack, images, state=prepared)
    assert (out - ideal).abs().max() <= 1.01
    assert (out - ideal).mean() < 0  # truncated
    changes = out.int() - images.int()
    assert not torch.equal(changes[0], changes[1])


def test_input_aware_applies_tanh_once():
    """0.5 + tanh(v) / 2; applied twice, it would end at 0.5 + tanh(1) / 2 = 0.88."""
    network = TriggerNetworks(4).pattern.eval()
    last = network.up[-1][-1][1]  # batch norm, its output set
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 1.0, 50.0]))
        out = network(torch.rand(1, 3, 32, 32))[0, :, 0, 0]
    torch.testing.assert_close(out, torch.tensor([0.5, 0.880797, 1.0]), rtol=0, atol=1e-6)


def test_input_aware_learns_its_trigger(prepared):
    data, attack = tiny_set(size=32), input_aware()
    before = {name: tensor.clone() for name, tensor in prepared.items()}
    outcome = attack(tiny_model(), data, rng=seeded(), state=prepared)
    assert all(torch.equal(before[name], prepared[name]) for name in before)
    learnt = {k.removeprefix("trigger."): v for k, v in outcome.tensors.items()}
    names = {name for name in prepared if name.startswith("pattern.")}
    assert names <= set(learnt)
    first = "pattern.down.0.0.0.weight"
    assert not torch.equal(learnt[first], prepared[first])
    trigger = Trigger(attack, prepared | learnt)
    assert not torch.equal(trigger(data.images), stamp(attack, data.images, state=prepared))


def test_input_aware_mask_becomes_sparse():
    data = tiny_set(count=64, size=32)
    schedule = {"epochs": 10, "batch_size": 16}
    attack = InputAware(width=4, mask_training=schedule, diversity=0.0)
    areas = []
    for epochs in (0, 10):
        state = attack.replace(mask_training={"epochs": epochs}).prepare(data, rng=seeded())
        with torch.no_grad():
            masks = attack._load(state).mask.train()(data.images.float() / 255)
        areas.append((masks > 0.5).float().mean().item())
    assert areas[1] < 0.5 * areas[0]


def test_input_aware_gives_covers_the_trigger_of_another(prepared):
    data, attack = tiny_set(size=32), input_aware()
    poisoned = attack.poison(data, seed=0, state=prepared)
    assert len(poisoned.covers) == 12
    own = stamp(attack, data.images[poisoned.covers], state=prepared)
    assert not torch.equal(own, poisoned.data.images[poisoned.covers])
    assert torch.equal(poisoned.data.labels[poisoned.covers], data.labels[poisoned.covers])


def test_input_aware_says_what_it_misses():
    with pytest.raises(ConfigError, match=r"expected InputAware's networks.*prepare"):
        stamp(InputAware(), grey(32, 0))


def test_input_aware_serves_sizes_that_halve_unevenly(prepared):
    assert stamp(input_aware(), grey(30, 9), state=prepared).shape == (1, 3, 30, 30)


# -- training-time attacks can be resumed ------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["wanet", "input_aware"])
def test_a_killed_training_resumes_to_the_same_result(monkeypatch, tmp_path, prepared, name):
    monkeypatch.setattr(Checkpoint, "interval_s", 0.0)
    data = tiny_set(size=32)
    training = {"epochs": 3, "batch_size": 16, "steps": None}
    attack = {"wanet": WaNet(poison_rate=0.25), "input_aware": input_aware()}[name]
    attack = attack.replace(training=training)

    def kill(name, history, epochs):
        if len(history) == 1:
            raise Killed

    def run(**settings):
        with session(precision="fp32", **settings):
            return attack(tiny_model(), data, rng=seeded(), state=prepared)

    whole = run()
    with pytest.raises(Killed):
        run(checkpoint=tmp_path, report=kill)
    resumed = run(checkpoint=tmp_path)
    assert len(resumed.history) == 3
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    for key, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[key]), key


def test_image_sets_of_one_colour_survive_every_trigger():
    white = ImageSet(grey(32, 255, 20), torch.zeros(20, dtype=torch.int64), ("a", "b"))
    for cls in (Sig, LowFrequency, FTrojan, Bpp, WaNet, AdaptiveBlend, AdaptivePatch):
        out = cls(poison_rate=0.1).poison(white, seed=0, state={}).data.images
        assert out.min() >= 100, cls  # nothing wrapped around to dark
