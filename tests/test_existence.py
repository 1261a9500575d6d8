"""The backdoor existence coefficient, against cases computed by hand."""

import pytest
import torch
from torch import nn

from ppr_core.attacks.badnet import BadNet
from ppr_core.errors import ConfigError, DataError
from ppr_core.existence import Existence, cka, features, main_branch, min_max, trigger_changes
from ppr_core.models import MODELS, build, wrap
from tests.conftest import tiny_model, tiny_set


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stamped(images):
    return BadNet().stamp(images, stage="test", state={})


# -- CKA ---------------------------------------------------------------------------------------


def test_cka_ignores_rotation_scale_and_shift_and_nothing_else():
    x = drawn(40, 6)
    turn, _ = torch.linalg.qr(drawn(6, 6, seed=1))
    assert cka(x, x) == pytest.approx(1, abs=1e-6)
    assert cka(x, -3 * x @ turn + 5) == pytest.approx(1, abs=1e-5)
    stretched = x * torch.tensor([9.0, 1, 1, 1, 1, 1])
    assert cka(x, stretched) < 0.9
    assert cka(x, drawn(40, 6, seed=2)) < 0.5
    assert cka(x, x[torch.randperm(40, generator=torch.Generator().manual_seed(0))]) < 0.5


def test_cka_by_hand():
    """Centred: x = (-1, 0, 1), y = (-4, 2, 2)/3; (x.y)^2 / (|x|^2 |y|^2) = 4 / (2 * 8/3)."""
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [2.0]])
    assert cka(x, y) == pytest.approx(4 / (2 * 8 / 3))
    assert cka(x, torch.ones(3, 2)) == 0, "what does not vary is like nothing"


# -- coefficient -------------------------------------------------------------------------------


def test_coefficient_by_hand():
    """(0.6 - 0.2) / 0.8 = 0.5 and (0.1 - 0.6) / 0.4 = -1.25; the third layer tells nothing."""
    clean = {"a": 0.2, "b": 0.6, "c": 0.96}
    found = Existence().coefficient({"a": 0.6, "b": 0.1, "c": 0.0}, clean)
    assert found.value == pytest.approx((0.5 - 1.25) / 2)
    assert (found.layers, found.left_out) == (2, 1)
    assert Existence().coefficient(dict.fromkeys(clean, 1.0), clean).value == pytest.approx(1)
    assert Existence().coefficient(clean, clean).value == 0
    assert Existence().coefficient(clean, {"a": 0.96}).layers == 0
    kept = Existence(least=0.0).coefficient({"a": 0.96}, {"a": 0.96})
    assert (kept.value, kept.layers) == (0, 1)


def test_the_released_form_depends_on_who_is_listed():
    means = {"clean": 0.2, "ft": 0.6, "fst": 0.4}
    assert min_max("fst", means) == pytest.approx(0.5)
    assert min_max("fst", {**means, "anp": 1.0}) == pytest.approx(0.25)
    assert min_max("ft", {"clean": 0.3, "ft": 0.3}) == 0


# -- channels ----------------------------------------------------------------------------------


class Net(nn.Module):
    """Three convolutions in a row: no block, no shortcut, no batch norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 5, 3, padding=1, bias=False)
        self.third = nn.Conv2d(5, 6, 3, stride=2, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, pixels):
        maps = self.third(self.second(self.stem(pixels).relu()).relu()).relu()
        return self.head(maps.mean((2, 3)))


def test_changes_are_distances_of_maps_before_batch_norm():
    model, images = tiny_model().eval(), tiny_set(count=300).images
    name = "backbone.3.0.conv1"
    assert name in main_branch(model, images)
    layer, (clean, dirty) = model.get_submodule(name), (images, stamped(images))
    seen = []
    hook = layer.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model(clean / 255), model(dirty / 255)
    hook.remove()
    expected = (seen[0] - seen[1]).square().sum((2, 3)).sqrt().mean(0)
    found = trigger_changes(model, [name], clean, dirty)[name]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    kept = features(model, {name: torch.tensor([2, 0])}, dirty)[name]
    torch.testing.assert_close(kept, seen[1][:, [2, 0]].flatten(1), rtol=1e-4, atol=1e-5)
    best = Existence(share=0.5).channels(model, clean, dirty)[name]
    assert set(best.tolist()) == set(expected.topk(2).indices.tolist())
    with pytest.raises(DataError, match="as many triggered images as clean ones, got 299 and 300"):
        trigger_changes(model, [name], clean, dirty[:299])


def test_layers_are_the_convolutions_behind_the_stem():
    images = tiny_set(size=32).images
    residual = build({"name": "preactresnet18", "width": 4}, 4, seed=0)
    names = main_branch(residual, images)
    assert len(names) == 16
    assert not any("downsample" in name for name in names)
    assert main_branch(Net(), images) == ["second", "third"]
    assert set(main_branch(wrap(Net()), images)) and len(main_branch(wrap(Net()), images)) == 2


def test_every_registered_model_has_layers_or_says_why():
    images = tiny_set(count=2, size=32).images
    assert set(MODELS) >= {"vit_b_16", "vgg19_bn"}
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4))
    bare(images / 255)
    with pytest.raises(ConfigError, match="expected convolutions behind the first one"):
        Existence().channels(bare, images, stamped(images))
    missing = {"backbone.7": torch.tensor([0])}
    with pytest.raises(ConfigError, match=r"without \['backbone.7'\]"):
        Existence().similarities(tiny_model(), tiny_model(), missing, images)


@pytest.mark.parametrize("make", [tiny_model, lambda seed=0: wrap(seeded_net(seed))])
def test_the_backdoored_model_has_1_and_the_clean_one_0(make):
    images = tiny_set(count=60).images
    victim, clean, about = make(), make(seed=1), Existence(share=0.5, images=60)
    kept = about.channels(victim, images, stamped(images))

    def similar(model):
        return about.similarities(victim, model, kept, stamped(images))

    zero = similar(clean)
    assert about.coefficient(similar(victim), zero).value == pytest.approx(1, abs=1e-6)
    assert about.coefficient(similar(clean), zero).value == 0
    assert about.coefficient(zero, zero).layers >= 2
    victim.train()
    assert similar(victim) == pytest.approx(dict.fromkeys(kept, 1.0), abs=1e-6), "in eval mode"
    assert victim.training


def seeded_net(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()
