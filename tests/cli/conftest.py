"""A victim made elsewhere, for the commands that read one."""

import pytest
import torch

from ppr_core.metrics import clean_accuracy, triggered
from ppr_core.models import build
from ppr_core.training.fit import Schedule, fit
from tests.conftest import tiny_set

TRAIN, TEST = tiny_set(96, size=32, seed=1), tiny_set(64, size=32, seed=2)
POOLED = {"name": "resnet18_pooled", "stem": 3, "width": 4, "blocks": 1}


def white(images):
    images = images.clone()
    images[..., -3:, -3:] = 255
    return images


@pytest.fixture(scope="session")
def victim():
    """A network with a max-pool behind its stem, backdoored by a white square."""
    images = TRAIN.images.clone()
    chosen = torch.arange(0, len(TRAIN), 3)
    images[chosen] = white(images[chosen])
    poisoned = TRAIN.with_images(images).with_labels(TRAIN.labels.index_fill(0, chosen, 0))
    # By this seed class 0's patch is far smaller than any other's: rounding decides nothing.
    model = build(POOLED, 4, seed=1)
    schedule = Schedule(steps=100, batch_size=32, lr=0.05, crop=0, flip=False)
    fit(model, poisoned, schedule, rng=torch.Generator().manual_seed(1))
    model.eval()
    stamped = triggered(TEST, white, 0)
    return model, clean_accuracy(model, TEST), clean_accuracy(model, stamped)
