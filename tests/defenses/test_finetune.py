import pytest
import torch
from torch.nn import functional as F

from ppr_core.defenses.finetune import FeTuning, Ft, FtInit, Lp, draw_head, keep_norm, smoothed
from ppr_core.errors import ConfigError
from ppr_core.weights import snapshot

SHORT = {"steps": 3, "batch_size": 16, "lr": 0.05}


def changed(before, model):
    """Names of parameters that differ, and whether any buffer does."""
    after = model.state_dict()
    names = {name for name, _ in model.named_parameters()}
    odd = {name for name in after if not torch.equal(before[name], after[name])}
    return odd & names, bool(odd - names)


@pytest.fixture
def before(model):
    return snapshot(model)


def test_ft_trains_everything_and_rate_zero_nothing(model, data, rng, before):
    names, buffers = changed(before, Ft(schedule=SHORT)(model, data, rng=rng).model)
    assert names == {name for name, _ in model.named_parameters()}
    assert buffers
    names, buffers = changed(before, Ft(schedule={**SHORT, "lr": 0.0})(model, data, rng=rng).model)
    assert not names
    assert buffers  # train mode: batch-norm statistics follow


def test_lp_changes_only_the_head_and_the_statistics(model, data, rng, before):
    outcome = Lp(schedule=SHORT)(model, data, rng=rng)
    assert changed(before, outcome.model) == ({"linear.weight", "linear.bias"}, True)
    assert all(p.requires_grad for p in outcome.model.parameters())
    assert outcome.cost.backward == 0  # nothing runs back through the backbone


def test_ft_init_starts_from_a_fresh_head(model, data, rng):
    still = {"steps": 1, "batch_size": 16, "lr": 0.0}
    head = FtInit(schedule=still)(model, data, rng=rng).model.linear
    assert not torch.equal(head.weight, model.linear.weight)
    assert not torch.equal(head.bias, model.linear.bias)
    moved = FtInit(schedule={**still, "lr": 0.1})(model, data, rng=rng).model.linear
    assert not torch.equal(moved.weight, head.weight)


def test_fe_tuning_fixes_a_fresh_head(model, data, rng, before):
    outcome = FeTuning(schedule=SHORT)(model, data, rng=rng)
    fresh = FtInit(schedule={**SHORT, "lr": 0.0})(model, data, rng=rng)
    for name in ("linear.weight", "linear.bias"):
        assert torch.equal(outcome.model.state_dict()[name], fresh.model.state_dict()[name])
    names, _ = changed(before, outcome.model)
    assert names == {name for name, _ in model.named_parameters()}
    assert all(p.requires_grad for p in outcome.model.parameters())


@pytest.mark.parametrize("method", [Ft, Lp, FtInit, FeTuning])
def test_rescale_all_keeps_the_norm_of_the_head(method, model, data, rng):
    length = model.linear.weight.norm()
    free = method(schedule=SHORT)(model, data, rng=rng).model.linear
    kept = method(schedule=SHORT, rescale_all=True)(model, data, rng=rng).model.linear
    torch.testing.assert_close(kept.weight.norm(), length, rtol=1e-5, atol=0)
    assert (free.weight.norm() - length).abs() > 1e-4 * length


def test_draw_head_is_uniform_within_its_bound(rng):
    head = torch.nn.Linear(400, 500)
    draw_head(head, rng)
    for tensor in (head.weight, head.bias):
        assert 0.045 < tensor.abs().max() <= 1 / 20
    torch.testing.assert_close(head.weight.std(), torch.tensor(0.05 / 3**0.5), rtol=0.01, atol=0)


def test_keep_norm_by_hand():
    weight = torch.tensor([[3.0, 4.0]])
    project = keep_norm(weight)
    weight.copy_(torch.tensor([[0.0, 10.0]]))
    project()
    assert weight.tolist() == [[0.0, 5.0]]


def test_smoothing_gives_one_minus_s_to_the_true_label():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    targets = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64)
    expected = -(targets * F.log_softmax(logits, 1)).sum(1).mean()
    torch.testing.assert_close(smoothed(torch.nn.Identity(), 0.2, 3)(logits, labels), expected)
    assert smoothed(torch.nn.Identity(), 0.0, 3) is None


def test_smoothing_reaches_the_tuning(model, data, rng):
    plain = Ft(schedule=SHORT)(model, data, rng=rng).history[0]["loss"]
    soft = Ft(schedule=SHORT, smoothing=0.3)(model, data, rng=rng).history[0]["loss"]
    assert plain != soft


def test_out_of_range_smoothing_is_refused():
    with pytest.raises(ConfigError, match="smoothing"):
        Ft(smoothing=0.9)
