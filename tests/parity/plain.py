"""The reference side: a small network, optimizers and losses, in plain torch."""

import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.models.base import Classifier

# Source: the normalisation of CIFAR-10 that the released code has.
MEAN = torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64).view(1, 3, 1, 1)
STD = torch.tensor([0.247, 0.243, 0.261], dtype=torch.float64).view(1, 3, 1, 1)
EPS = 1e-5  # of batch norm
STRIDES = (1, 2)
CLOSE = {"rtol": 0, "atol": 1e-8}


def classifier(*, seed):
    """Return the package's model whose every number is drawn, statistics included, in eval mode."""
    blocks = [
        nn.Sequential(
            nn.Conv2d(width, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
        )
        for width, out, stride in zip((3, 4), (4, 5), STRIDES, strict=True)
    ]
    model = Classifier(nn.Sequential(*blocks), nn.Linear(5, 3)).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=rng)
                positive = name.endswith(("running_var", "1.weight"))
                tensor.copy_(0.5 + drawn.abs() if positive else 0.4 * drawn)
    return model


def state(model):
    """Return copies of all numbers by name; parameters ask for a gradient."""
    trained = {name for name, _ in model.named_parameters()}
    return {
        name: tensor.detach().clone().requires_grad_(name in trained)
        for name, tensor in model.state_dict().items()
    }


def trained(s):
    """Return the parameters of a state, by name."""
    return {name: tensor for name, tensor in s.items() if tensor.requires_grad}


def pixels(images):
    """Return uint8 images as pixels in [0, 1], rounded to float32 as the package loads them."""
    return (images.to(torch.float32) / 255).to(torch.float64)


def normalised(x):
    """Return pixels as the network takes them."""
    return (x - MEAN) / STD


def feature_maps(s, x, *, training, track=True, masks=None):
    """Return the maps of both blocks, of normalised images.

    In training, batches are normalised by their own statistics, and the running ones of `s` move
    by a tenth, with the unbiased variance. Masks are (scale, shift) factors of gamma and beta.
    """
    maps = []
    for block, stride in enumerate(STRIDES):
        norm = f"backbone.{block}.1."
        x = F.conv2d(x, s[f"backbone.{block}.0.weight"], stride=stride, padding=1)
        mean, var = s[norm + "running_mean"], s[norm + "running_var"]
        if training:
            count = x.numel() / x.shape[1]
            now = x.mean((0, 2, 3))
            spread = ((x - now.view(1, -1, 1, 1)) ** 2).mean((0, 2, 3))
            if track:
                s[norm + "running_mean"] = (0.9 * mean + 0.1 * now).detach()
                s[norm + "running_var"] = (0.9 * var + 0.1 * spread * count / (count - 1)).detach()
            mean, var = now, spread
        gamma, beta = s[norm + "weight"], s[norm + "bias"]
        if masks is not None:
            gamma, beta = gamma * masks[block][0], beta * masks[block][1]
        x = (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + EPS) ** 0.5
        x = (x * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)).clamp_min(0)
        maps.append(x)
    return maps


def head(s, maps):
    """Return the logits of the last block's maps."""
    return maps.mean((2, 3)) @ s["linear.weight"].T + s["linear.bias"]


def logits(s, x, **how):
    """Return the logits of pixels."""
    return head(s, feature_maps(s, normalised(x), **how)[-1])


def cross_entropy(scores, labels):
    """Return the mean of log(sum of exp) - the label's own logit."""
    own = scores[torch.arange(len(labels)), labels]
    return (scores.exp().sum(1).log() - own).mean()


def slopes(loss, tensors):
    """Return the gradient of a loss by tensors, by name."""
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


class Sgd:
    """v <- momentum * v + (gradient + decay * w); w <- w - lr * v."""

    def __init__(self, *, lr, momentum=0.0, decay=0.0):
        self.lr, self.momentum, self.decay, self.v = lr, momentum, decay, {}

    @torch.no_grad()
    def step(self, tensors, gradients):
        for name, gradient in gradients.items():
            gradient = gradient + self.decay * tensors[name]
            self.v[name] = self.momentum * self.v.get(name, 0) + gradient
            tensors[name] -= self.lr * self.v[name]


class Adam:
    """Means of gradient and square, each divided by its weight so far."""

    def __init__(self, *, lr):
        self.lr, self.count, self.mean, self.square = lr, 0, {}, {}

    @torch.no_grad()
    def step(self, tensors, gradients):
        self.count += 1
        for name, gradient in gradients.items():
            self.mean[name] = 0.9 * self.mean.get(name, 0) + 0.1 * gradient
            self.square[name] = 0.999 * self.square.get(name, 0) + 0.001 * gradient**2
            mean = self.mean[name] / (1 - 0.9**self.count)
            square = self.square[name] / (1 - 0.999**self.count)
            tensors[name] -= self.lr * mean / (square**0.5 + 1e-8)


def length(tensors):
    """Return the L2 norm over all elements of all tensors."""
    return sum((tensor**2).sum() for tensor in tensors.values()) ** 0.5


def check(model, expected):
    """Compare all numbers of a model with a state: weights and statistics, not the counters."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(
                tensor, expected[name].detach(), msg=lambda text, n=name: f"{n}: {text}", **CLOSE
            )
