import pytest
import torch

from ppr_core.attacks.parts.steganography import (
    PLANS,
    Decoder,
    Encoder,
    bit_accuracy,
    common_share,
)
from ppr_core.attacks.ssba import Ssba
from ppr_core.data.images import to_float
from ppr_core.errors import ConfigError, DataError
from tests.conftest import shrink, tiny_set

REPORTS = {"bit_accuracy", "clean_bit_accuracy", "psnr", "common_share"}


def ready(seed=0, size=16, **changes):
    data, method = tiny_set(count=48, size=size), shrink(Ssba(**changes))
    return data, method, method.prepare(data, rng=torch.Generator().manual_seed(seed))


def decoder_of(state, variant, size):
    decoder = Decoder(PLANS[variant], size)
    weights = {k.removeprefix("decoder."): v for k, v in state.items() if k.startswith("decoder.")}
    decoder.load_state_dict(weights)
    return decoder.eval()


@pytest.fixture(scope="module")
def trained():
    """A fast encoder after some seconds of training: far from done, well beyond chance."""
    data = tiny_set(count=320, size=16)
    method = Ssba(fast={"steps": 150, "batch_size": 64, "lr": 2e-3})
    return data, method, method.prepare(data, rng=torch.Generator().manual_seed(0))


def test_brief_training_hides_readable_bits(trained):
    data, method, state = trained
    assert state["report.bit_accuracy"] > 0.65
    assert 0.3 < state["report.clean_bit_accuracy"] < 0.65  # the images themselves say nothing
    stamped = method.stamp(data.images[:64], stage="train", state=state)
    with torch.no_grad():
        read = decoder_of(state, "fast", 16)(to_float(stamped))
    assert bit_accuracy(read, state["message"]) > 0.65


def test_residuals_are_bounded_and_differ_between_images(trained):
    data, method, state = trained
    out = method.stamp(data.images, stage="test", state=state)
    residuals = out.int() - data.images.int()
    assert residuals.abs().max() <= 16
    assert not torch.equal(residuals[0], residuals[4])  # two images of one class
    assert residuals.abs().float().mean() > 0.5


def test_same_image_and_message_same_output_at_both_stages(trained):
    data, method, state = trained
    before = data.images.clone()
    once = method.stamp(data.images[:8], stage="train", state=state)
    assert torch.equal(once, method.stamp(data.images[:8], stage="test", state=state))
    assert torch.equal(data.images, before)
    other = dict(state, message=1 - state["message"])
    assert not torch.equal(once, method.stamp(data.images[:8], stage="test", state=other))


def test_poison_follows_the_dataset_indices(trained):
    data, method, state = trained
    poisoned = method.poison(data, seed=0, state=state)
    assert len(poisoned.indices) == 16
    for index in poisoned.indices[:3]:
        alone = method.stamp(data.images[index][None], stage="train", state=state)[0]
        assert (alone.int() - poisoned.data.images[index].int()).abs().max() <= 1
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[poisoned.indices] = False
    assert torch.equal(poisoned.data.images[rest], data.images[rest])


def test_encoded_images_are_rounded(trained):
    data, method, state = trained
    encoder = Encoder(PLANS["fast"])
    weights = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    encoder.load_state_dict(weights)
    message = state["message"].float().expand(8, -1)
    with torch.no_grad():
        exact = encoder.eval()(to_float(data.images[:8]), message) * 255
    stamped = method.stamp(data.images[:8], stage="train", state=state)
    assert (stamped.float() - exact).abs().max() <= 0.501
    assert (stamped.float() - exact).max() > 0.4  # truncation would never go up


@pytest.mark.parametrize("variant", ["fast", "stegastamp"])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_both_variants_prepare_and_stamp_any_size(variant, size):
    data, method, state = ready(size=size, variant=variant)
    out = method.stamp(data.images[:3], stage="test", state=state)
    assert out.dtype == torch.uint8
    assert out.shape == (3, 3, size, size)
    assert {name[7:] for name in state if name.startswith("report.")} == REPORTS
    assert all(torch.isfinite(state[f"report.{name}"]) for name in REPORTS)
    assert all(state[f"report.{name}"].shape == () for name in REPORTS)
    assert state["message"].numel() == {"fast": 20, "stegastamp": 100}[variant]


def test_the_decoders_gradient_is_written_whole_on_16_pixels():
    decoder = Decoder(PLANS["stegastamp"], 16)
    for _ in range(5):
        used = [torch.full((2**k,), torch.nan, dtype=torch.bfloat16) for k in range(4, 20)]
        del used  # what is allocated next finds nan in its memory
        with torch.autocast("cpu", torch.bfloat16):
            decoder(torch.rand(16, 3, 16, 16)).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in decoder.parameters())
        decoder.zero_grad()


def test_stamp_of_no_images_and_of_224_pixels():
    _, method, state = ready()
    assert method.stamp(torch.zeros(0, 3, 16, 16).byte(), stage="test", state=state).shape[0] == 0
    large = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    assert method.stamp(large, stage="test", state=state).shape == large.shape


def test_same_seed_same_state():
    _, _, first = ready(seed=3)
    torch.rand(5)  # the global generator has no part in it
    _, _, again = ready(seed=3)
    _, _, other = ready(seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["message"], other["message"])


def test_preparation_leaves_out_rate_target_and_the_other_variant():
    key = Ssba().preparation()
    assert Ssba(poison_rate=0.1, target=3, stegastamp={"epochs": 1}).preparation() == key
    assert Ssba(distortion=2e-3).preparation() != key
    assert Ssba(variant="stegastamp").preparation() != key
    full = Ssba(variant="stegastamp", distortion=2e-3).preparation()
    assert full == Ssba(variant="stegastamp").preparation()


def test_errors(rng):
    with pytest.raises(ConfigError, match="call prepare first"):
        Ssba().stamp(torch.zeros(1, 3, 16, 16).byte(), stage="test", state={})
    with pytest.raises(DataError, match="at least 20 images"):
        Ssba().prepare(tiny_set(count=8), rng=rng)


def test_published_encoder_has_the_published_layers():
    encoder = Encoder(PLANS["stegastamp"])
    shapes = [tuple(m.weight.shape) for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    down = [(32, 6, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3)]
    assert shapes[:5] == down
    assert set(shapes[5:9]) == {(128, 256, 2, 2), (64, 128, 2, 2), (32, 64, 2, 2), (32, 32, 2, 2)}
    merge = [(128, 256, 3, 3), (64, 128, 3, 3), (32, 64, 3, 3), (32, 70, 3, 3)]
    assert shapes[9:] == [*merge, (32, 32, 3, 3), (3, 32, 1, 1)]
    assert Decoder(PLANS["stegastamp"], 32).linear[0].in_features == 128
    assert Decoder(PLANS["stegastamp"], 64).linear[0].in_features == 512
    assert Decoder(PLANS["fast"], 32).linear[0].in_features == 1024


def test_common_share_by_hand():
    pattern = torch.randn(3, 4, 4)
    assert common_share(pattern.expand(5, 3, 4, 4)) == pytest.approx(1, abs=1e-5)
    # Energies 1 and 1, orthogonal: |mean|^2 = 1/2, so (2 * 1/2 - 1) / 1 = 0.
    apart = torch.zeros(2, 1, 1, 2)
    apart[0, 0, 0, 0] = apart[1, 0, 0, 1] = 1
    assert common_share(apart) == pytest.approx(0, abs=1e-6)
    # Mean (1, 0): |mean|^2 = 1; energy 2: (4 * 1 - 2) / (3 * 2).
    third = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [1.0, -1.0]]).view(4, 1, 1, 2)
    groups = torch.stack([third, torch.ones(4, 1, 1, 2)])
    torch.testing.assert_close(common_share(groups), torch.tensor([1 / 3, 1.0]))


def test_bit_accuracy_by_hand():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    assert bit_accuracy(logits, torch.tensor([1, 0])) == 0.75
