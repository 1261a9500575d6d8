import pytest
import torch
import torchvision.models as zoo

from ppr_core.errors import CheckpointError
from ppr_core.models import MODELS, build
from ppr_core.models.nearest import fitting, proposal
from ppr_core.weights import read


def state_of(name, **settings):
    return MODELS[name](**settings).skeleton(6).state_dict()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("preactresnet18", {"width": 4, "blocks": 1}),
        ("densenet161", {"width": 2}),
        ("mobilenet_v3_large", {"width": 0.5}),
        ("vit_b_16", {"width": 24, "pretrained": False}),
        ("convnext_tiny", {"width": 8, "pretrained": False}),
    ],
)
def test_the_settings_of_weights_are_found(name, settings):
    best, second = fitting(MODELS, state_of(name, **settings))[:2]
    assert (best.name, best.odd) == (name, [])
    assert best.settings == {k: v for k, v in settings.items() if k != "pretrained"}
    assert second.odd


def test_a_mismatch_proposes_the_setting_that_fits(tmp_path):
    small = build({"name": "resnet18", "blocks": 1, "width": 4}, 6, seed=0)
    torch.save(small.state_dict(), tmp_path / "small.pt")
    model = build({"name": "resnet18", "width": 4}, 6, seed=0)
    with pytest.raises(CheckpointError, match="fits resnet18 with width=4 and blocks=1, of 6"):
        read(tmp_path / "small.pt", model)
    other = build({"name": "resnet18", "width": 4, "blocks": 1}, 5, seed=0)
    with pytest.raises(CheckpointError, match="fits resnet18 with .* of 6 classes"):
        read(tmp_path / "small.pt", other)


def test_twins_by_name_and_shape_are_both_named():
    """A max-pool has no weights: these tensors cannot tell whether there is one."""
    with torch.device("meta"):
        theirs = zoo.resnet18(num_classes=6)
        theirs.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    told = proposal(MODELS, theirs.state_dict())
    assert told.startswith("fits resnet18, and resnet18_pooled with stem=3, of 6 classes")
    assert "C-Acc" in told


def test_what_is_nothing_like_it_says_what_is_nearest():
    with torch.device("meta"):
        theirs = zoo.squeezenet1_0(num_classes=6)
        odd = torch.nn.Sequential(torch.nn.Linear(3, 2))
    assert proposal(MODELS, theirs.state_dict()) == "no registered architecture has such tensors"
    assert proposal(MODELS, odd.state_dict()).startswith("nearest: ")
