import pytest
import torch
from torch import nn

from ppr_core.data.images import ImageSet
from ppr_core.errors import DataError
from ppr_core.metrics import attack_success_rate, clean_accuracy, evaluate, psnr, triggered
from tests.conftest import tiny_model, tiny_set


class Always(nn.Module):
    """Answers one class whatever it sees."""

    def __init__(self, answer, classes=4):
        super().__init__()
        self.answer = nn.Parameter(torch.eye(classes)[answer])

    def forward(self, images):
        return self.answer.expand(len(images), -1)


def test_constant_classifiers():
    data = tiny_set(40)
    stamped = triggered(data, lambda images: images, target=0)
    assert len(stamped) == 30
    assert set(stamped.labels.tolist()) == {0}
    assert evaluate(Always(0), data, stamped) == {"c_acc": 25.0, "asr": 100.0}
    assert evaluate(Always(2), data, stamped) == {"c_acc": 25.0, "asr": 0.0}


@pytest.mark.parametrize(("classes", "kept"), [(10, 9000), (100, 9900), (200, 9950)])
def test_denominators(classes, kept):
    labels = torch.arange(10_000) % classes
    images = torch.zeros(10_000, 3, 1, 1, dtype=torch.uint8)
    data = ImageSet(images, labels, tuple(map(str, range(classes))))
    assert len(triggered(data, lambda images: images, 0)) == kept


def test_batch_size_and_order_do_not_matter(model, data):
    stamped = triggered(data, lambda images: 255 - images, 0)
    order = torch.randperm(len(stamped), generator=torch.Generator().manual_seed(1))
    assert attack_success_rate(model, stamped) == attack_success_rate(model, stamped.subset(order))


def test_evaluation_leaves_modes_buffers_and_generators_alone(data):
    model = tiny_model().train()
    model.backbone[1].eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    state = torch.get_rng_state()
    clean_accuracy(model, data)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)


def test_stamping_leaves_the_images_alone(data):
    before = data.images.clone()
    triggered(data, lambda images: torch.zeros_like(images), 0)
    assert torch.equal(data.images, before)


def test_only_target_images_is_an_error(data):
    with pytest.raises(DataError, match="outside the target class 1"):
        triggered(data.subset(data.labels == 1), lambda images: images, 1)


def test_psnr_by_hand():
    black = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    assert psnr(black, black + 255) == pytest.approx(0.0, abs=1e-5)
    both = torch.cat([black, black]), torch.cat([black + 255, black + 51])
    assert psnr(*both) == pytest.approx(10 * 0.69897, abs=1e-3)  # the mean of 0 and 13.98
    assert psnr(black, black + 51) == pytest.approx(20 * 0.69897, abs=1e-3)  # 255/51 = 5
