import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.data.images import to_float
from ppr_core.defenses import Ft, Nad
from ppr_core.defenses.nad import TUNING, attention, blocks
from ppr_core.errors import ConfigError
from ppr_core.method import fork
from ppr_core.models import build
from ppr_core.runtime import session
from ppr_core.training.fit import fit

SHORT = {"steps": 3, "batch_size": 16}


def test_attention_by_hand():
    maps = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 0.0]]]])
    expected = torch.tensor([[[2.0, 1.0], [0.0, 4.0]]]) / 21**0.5
    torch.testing.assert_close(attention(maps), expected)
    torch.testing.assert_close(attention(7 * maps), expected)
    assert attention(0 * maps).abs().sum() == 0


def test_attention_after_pooling_is_one_everywhere_and_has_no_weight():
    """What BackdoorBench counts as the last block: (9 + 16) / (25 + 1e-6), whatever the maps."""
    pooled = torch.tensor([3.0, 4.0, 0.5, 0.1]).view(2, 2, 1, 1)
    torch.testing.assert_close(attention(pooled), torch.ones(2, 1, 1), rtol=0, atol=1e-5)
    assert Nad().betas == [500, 1000, 1000]


def test_blocks_are_the_parts_of_the_backbone_made_of_parts(model):
    assert [name for name, _ in blocks(model)] == ["3", "4", "5", "6"]
    dense = build({"name": "densenet161", "width": 2}, 4, seed=0)
    assert [name for name, _ in blocks(dense)][-3:] == ["denseblock3", "transition3", "denseblock4"]


def test_one_step_descends_the_loss_of_the_paper(model, data, rng):
    """The teacher is tuned as plain fine-tuning would be; one step of the model is by hand."""
    once = {"steps": 1, "batch_size": 48, "crop": 0, "flip": False, "weight_decay": 0.0}
    method = Nad(betas=[3.0, 5.0], teacher=SHORT, schedule={**once, "lr": 0.1, "momentum": 0.0})
    teacher = copy.deepcopy(model)
    with session(precision="fp32"):
        got = method(model, data, rng=rng).model
        fit(teacher, data, TUNING.replace(**SHORT), rng=fork(rng, "teacher"))
        images, twin = model.normalise(to_float(data.images)), copy.deepcopy(model).train()
        loss, ours, theirs = 0, images, images
        for index, (own, other) in enumerate(zip(twin.backbone, teacher.backbone, strict=True)):
            ours, theirs = own(ours), other(theirs)
            if index >= 5:
                weight = {5: 3.0, 6: 5.0}[index]
                loss = loss + weight * F.mse_loss(attention(ours), attention(theirs.detach()))
        (loss + F.cross_entropy(twin.head(ours), data.labels)).backward()
    for (name, new), old in zip(got.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_without_weights_it_is_plain_tuning(model, data, rng):
    schedule = {**SHORT, "weight_decay": 0.0}
    method = Nad(betas=[0.0], teacher=SHORT, schedule=schedule)
    got = method(model, data, rng=rng)
    plain = Ft(schedule=method.schedule)(model, data, rng=rng)
    for name, tensor in got.model.state_dict().items():
        torch.testing.assert_close(tensor, plain.model.state_dict()[name])
    assert (got.cost.forward, got.cost.backward) == (3 + 2 * 3, 3 + 3)
    assert not any(module._forward_hooks for module in got.model.modules())


def test_a_model_of_too_few_blocks_is_refused(model, data, rng):
    with pytest.raises(ConfigError, match="expected a backbone of at least 5 blocks, got 4"):
        Nad(betas=[1.0] * 5)(model, data, rng=rng)
    with pytest.raises(ConfigError, match="expected a model with backbone"):
        Nad()(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), data, rng=rng)
