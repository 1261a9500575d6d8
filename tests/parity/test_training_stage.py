"""What trains anew on a poisoned set: the scores of AC and SS, the steps of ABL."""

import numpy as np
import pytest
import torch

from ppr_core.defenses import Abl, Ac, Ss
from ppr_core.defenses.abl import losses
from ppr_core.defenses.parts.clusters import reduced, silhouette, two_means
from ppr_core.errors import ConfigError
from tests.parity import plain
from tests.parity.plain import cross_entropy, logits, slopes, state, trained
from tests.parity.test_tuning import WHOLE

OFF = {"steps": 0}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def features(classes=3, count=40, odd=8, apart=6.0):
    """Spread features of some classes; the last `odd` of class 1 lie apart, whatever label said."""
    labels = torch.arange(classes * count) % classes
    drawn = torch.randn(len(labels), 12, generator=rng(1))
    drawn += 4 * torch.randn(classes, 12, generator=rng(2))[labels]
    poisons = (labels == 1).nonzero().squeeze(1)[-odd:]
    drawn[poisons] += apart * torch.nn.functional.normalize(torch.ones(12), dim=0) * 2
    return drawn, labels, poisons


def test_principal_components_are_those_of_the_covariance():
    drawn, *_ = features()
    got = reduced(drawn, 3, "pca", rng())
    values, vectors = np.linalg.eigh(np.cov(drawn.numpy().T))
    expected = (drawn - drawn.mean(0)).numpy() @ vectors[:, ::-1][:, :3]
    assert got.shape == (120, 3)
    for column in range(3):
        sign = np.sign(expected[0, column] * float(got[0, column]))
        np.testing.assert_allclose(got[:, column], sign * expected[:, column], atol=1e-8)
    assert values[-1] > values[0]


def test_independent_components_are_found_again():
    """Uniform sources, mixed: each component is one source, up to its sign, of unit variance."""
    sources = torch.rand(3000, 3, generator=rng(3)) - 0.5
    mixing = torch.tensor([[2.0, 1.0, 0.5], [0.3, 1.5, -1.0], [1.0, -0.7, 2.0]])
    got = reduced(sources @ mixing.T, 3, "ica", rng())
    torch.testing.assert_close(got.square().mean(0), torch.ones(3), rtol=1e-6, atol=0)
    alike = torch.corrcoef(torch.cat([sources, got], 1).T)[:3, 3:].abs()
    assert (alike.max(1).values > 0.99).all()
    assert alike.argmax(1).unique().numel() == 3


def test_clusters_and_their_silhouette():
    points = torch.cat(
        [torch.randn(30, 4, generator=rng()), torch.randn(9, 4, generator=rng()) + 5]
    )
    cluster = two_means(points, rng(1))
    assert cluster[:30].unique().numel() == cluster[30:].unique().numel() == 1
    assert cluster[0] != cluster[-1]
    scores = []
    for i, own in enumerate(cluster):
        apart = (points - points[i]).square().sum(1).sqrt()
        within = apart[cluster == own].sum() / (int((cluster == own).sum()) - 1)
        between = apart[cluster != own].mean()
        scores.append(float((between - within) / max(between, within)))
    assert silhouette(points, cluster) == pytest.approx(np.mean(scores), abs=1e-10)
    assert not two_means(torch.ones(20, 3), rng()).any(), "points that are one stay together"


@pytest.mark.parametrize("reduction", ["pca", "ica"])
def test_ac_flags_the_small_part_that_lies_apart(reduction):
    """Chen et al. 2018, sec. 5.2; further-methods.md A1: the smaller part, if below 35 %."""
    drawn, labels, poisons = features()
    method = Ac(reduction=reduction, dims=3)
    flagged = method.flag(drawn, labels, rng())
    assert set(poisons.tolist()) <= set(flagged.tolist())
    alone = method.flag(drawn[labels == 1], labels[labels == 1], rng())
    assert torch.equal((labels == 1).nonzero().squeeze(1)[alone], poisons)


def test_the_rules_of_ac():
    drawn, labels, poisons = features(apart=8.0)
    found = {
        rule: set(Ac(rule=rule, dims=3, clear=0.5).flag(drawn, labels, rng()).tolist())
        for rule in ("relative_size", "smaller", "silhouette", "distance")
    }
    assert found["silhouette"] == set(poisons.tolist()), "only that split is clear"
    assert found["silhouette"] <= found["relative_size"] <= found["smaller"]
    assert {int(labels[i]) for i in found["smaller"]} == {0, 1, 2}
    near = drawn.clone()
    near[poisons] = drawn[labels == 2][: len(poisons)]  # poisons look like what they were made of
    moved = Ac(rule="distance", dims=3).flag(near, labels, rng())
    assert torch.equal(moved, poisons)


def test_ac_leaves_small_classes_and_features_without_spread_alone():
    drawn, labels, _ = features(count=19)
    for rule in ("relative_size", "smaller", "distance"):
        assert not len(Ac(rule=rule).flag(drawn, labels, rng()))
        assert not len(Ac(rule=rule).flag(torch.ones(90, 5), torch.arange(90) % 3, rng()))


@pytest.mark.parametrize("centred", [True, False])
def test_ss(centred):
    """Tran et al. 2018, alg. 1: (v . (x - mean))^2; BackdoorBench: |v . x|; A2."""
    drawn, labels, _ = features()
    method, expected = Ss(centred=centred), []
    for label in range(3):
        own = np.flatnonzero(labels.numpy() == label)
        rows = drawn[own].numpy()
        rows = rows - rows.mean(0) if centred else rows
        _, vectors = np.linalg.eigh(rows.T @ rows)
        along = rows @ vectors[:, -1]
        score = along**2 if centred else np.abs(along)
        np.testing.assert_allclose(method.score(drawn[own]), score, rtol=1e-8)
        expected += own[np.argsort(score)[-6:]].tolist()  # 15 % of 40
    assert method.flag(drawn, labels).tolist() == sorted(expected)


def test_ss_by_the_poison_rate():
    drawn, labels, poisons = features()
    method = Ss(remove="by_rate", poison_rate=8 / 120)
    assert method.oracle and not Ss().oracle
    flagged = method.flag(drawn, labels)
    assert labels[flagged].bincount().tolist() == [12, 12, 12], "1.5 times 8 of each class"
    assert set(poisons.tolist()) <= set(flagged.tolist())
    most = Ss(remove="by_rate", poison_rate=0.9).flag(drawn, labels)
    assert labels[most].bincount().tolist() == [20, 20, 20], "half of a class at the most"
    with pytest.raises(ConfigError, match="expected a poison_rate"):
        Ss(remove="by_rate")


class Nesterov:
    """v <- m v + (g + decay w); w <- w - lr (g + decay w + m v)."""

    def __init__(self, lr):
        self.lr, self.v = lr, {}

    @torch.no_grad()
    def step(self, tensors, gradients):
        for name, gradient in gradients.items():
            gradient = gradient + 1e-4 * tensors[name]
            self.v[name] = 0.9 * self.v.get(name, 0) + gradient
            tensors[name] -= self.lr * (gradient + 0.9 * self.v[name])


@pytest.mark.parametrize("way", ["flooding", "ascent"])
@pytest.mark.parametrize("level", [0.01, 50.0])
def test_the_isolation_of_abl(model, data, way, level):
    """Li et al. 2021, eq. 3, and flooding; further-methods.md A3: steps above and below."""
    method = Abl(way=way, level=level, isolation={**WHOLE, "epochs": 2})
    method = method.replace(tuning=OFF, settling=OFF, unlearning=OFF)
    got = method(model, data, rng=rng(), build=lambda seed: model).model
    x, s, sgd = plain.pixels(data.images), state(model), Nesterov(0.01)
    for _ in range(2):
        value = cross_entropy(logits(s, x, training=True), data.labels)
        assert (value > level) == (level == 0.01)
        held = (
            (value - level).abs() + level if way == "flooding" else (value - level).sign() * value
        )
        sgd.step(s, slopes(held, trained(s)))
    plain.check(got, s)


def test_abl_tunes_on_the_rest_and_ascends_on_what_it_isolated(model, data):
    """Further-methods.md A3: lowest losses first; one optimizer from tuning to unlearning."""
    once = {**WHOLE, "epochs": 1}
    method = Abl(share=0.2, isolation=OFF, tuning=once, settling=once, unlearning=once)
    outcome = method(model, data, rng=rng(), build=lambda seed: model)
    x, s, sgd = plain.pixels(data.images), state(model), Nesterov(0.01)
    scores = logits(s, x, training=False)
    each = torch.stack(
        [cross_entropy(scores[i : i + 1], data.labels[i : i + 1]) for i in range(15)]
    )
    torch.testing.assert_close(losses(model, data), each.detach(), **plain.CLOSE)
    lowest = each.argsort()[:3].sort().values
    assert torch.equal(outcome.tensors["flagged"], lowest)
    rest = torch.tensor([i not in lowest.tolist() for i in range(15)])
    for chosen, rate, sign in ((rest, 0.01, 1), (rest, 0.001, 1), (lowest, 1e-4, -1)):
        sgd.lr = rate
        loss = cross_entropy(logits(s, x[chosen], training=True), data.labels[chosen])
        sgd.step(s, slopes(sign * loss, trained(s)))
    plain.check(outcome.model, s)
