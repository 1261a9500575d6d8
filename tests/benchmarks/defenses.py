"""Every core defense on one reserve, beside the plain way to write its step."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from ppr_core.attacks import ATTACKS, Trigger
from ppr_core.data.images import to_float
from ppr_core.data.shapes import Shapes
from ppr_core.defenses import DEFENSES
from ppr_core.defenses.ibau import shifted
from ppr_core.models import build
from ppr_core.runtime import autocast
from ppr_core.training.fit import Schedule, make_optimizer
from tests.benchmarks.timing import compare

BATCH = 128
ONE = {"epochs": 1, "steps": None, "batch_size": BATCH, "crop": 0, "flip": False}


def main():
    """Time one epoch of each; what a source of triggers finds beforehand is not counted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count, width = (10_240, 64) if device.type == "cuda" else (640, 16)
    data = Shapes(train=count, test=10).load(None).train.to(device)
    model = build({"name": "resnet18", "width": width}, 10, seed=0).to(device).eval()
    trigger = Trigger(ATTACKS["blended"](), {})

    def run(name, named, **settings):
        method = DEFENSES[name](**settings)
        return lambda: method(model, data, rng=torch.Generator().manual_seed(0), **named)

    inversion = {
        "width": 8,
        "pretrain": {"epochs": 1, "batch_size": BATCH},
        "decouple": {"steps": 5, "batch_size": BATCH},
        "generate": {"epochs": 1, "batch_size": BATCH},
        "regenerate_each_round": False,
    }
    own = {"rounds": 1, "inversion": inversion, "tuning": ONE}
    pam = DEFENSES["pam"](**own)
    state = pam.prepare(model, data, rng=torch.Generator().manual_seed(0))
    found = {"state": state}
    reverse = pam.inversion.trigger(model, state, None)
    rivals = {
        "ep": (run("ep", {"trigger": trigger}, schedule=ONE), cross_entropy),
        "anp": (run("anp", {}, schedule=ONE, select="fixed"), pruning),
        "ibau": (run("ibau", {}, schedule=ONE), None),
        "ft_sam": (run("ft_sam", {}, schedule=ONE), sam),
        "fst": (run("fst", {}, schedule=ONE), shift(model)),
        "bti": (run("bti", found, **own, reversed_share=0.2), two_passes(reverse)),
        "bti_sam": (run("bti_sam", found, **own), partly(reverse, sam)),
        "pam": (run("pam", found, **own, reversed_share=0.2), partly(reverse, path_aware(model))),
    }
    for name, (ours, step) in rivals.items():
        theirs = plain(model, data, step) if step else minimax(model, data)
        compare({f"{name}, step written plainly": theirs, name: ours}, count, "images", rounds=3)


def plain(model, data, step):
    """Return the usual loop: a permutation, slices of it, zero_grad, step."""

    def loop():
        net = copy.deepcopy(model).train()
        if step is pruning:
            masked(net)
        optimizer = make_optimizer(net.parameters(), Schedule(lr=0.01))
        order = torch.randperm(len(data), device=data.device)
        for part in order.split(BATCH):
            optimizer.zero_grad()
            step(net, to_float(data.images[part]), data.labels[part])
            optimizer.step()

    return loop


def cross_entropy(net, images, labels):
    """A plain training step."""
    with autocast(images.device):
        loss = F.cross_entropy(net(images), labels)
    loss.backward()


def sam(net, images, labels):
    """SAM by a deep copy: gradients are taken on the copy and handed back."""
    cross_entropy(net, images, labels)
    copied = copy.deepcopy(net)
    length = sum(p.grad.norm() ** 2 for p in net.parameters()).sqrt()
    with torch.no_grad():
        for there, here in zip(copied.parameters(), net.parameters(), strict=True):
            there += here.grad / length
    copied.zero_grad()
    cross_entropy(copied, images, labels)
    for there, here in zip(copied.parameters(), net.parameters(), strict=True):
        here.grad = there.grad


def shift(start):
    """FST's loss, its head's norm restored after the step by hand."""
    old, length = start.linear.weight.detach().clone(), start.linear.weight.norm()

    def step(net, images, labels):
        with torch.no_grad():
            net.linear.weight.mul_(length / net.linear.weight.norm())
        with autocast(images.device):
            loss = F.cross_entropy(net(images), labels) + 0.1 * (net.linear.weight * old).sum()
        loss.backward()

    return step


def path_aware(start):
    """PAM's step by deep copies of both models, as its algorithm is written."""

    def step(net, images, labels):
        home, there = copy.deepcopy(start), copy.deepcopy(net)
        pairs = zip(home.parameters(), net.parameters(), strict=True)
        back = [a.detach() - b.detach() for a, b in pairs]
        length = sum(part.norm() ** 2 for part in back).sqrt() + 1e-12
        with torch.no_grad():
            for parameter, part in zip(there.parameters(), back, strict=True):
                parameter += 0.5 * part / length
        there.zero_grad()
        cross_entropy(there, images, labels)
        for moved, here in zip(there.parameters(), net.parameters(), strict=True):
            here.grad = moved.grad

    return step


def partly(reverse, step):
    """A step on a batch whose first fifth carries the inverted trigger."""
    return lambda net, images, labels: step(net, mixed(reverse, images), labels)


def mixed(reverse, images):
    """Reverse the first fifth of a batch."""
    part = len(images) // 5
    with torch.no_grad():
        return torch.cat([reverse(images[:part]), images[part:]])


def two_passes(reverse):
    """BTI's loss: true labels, and features as those of the images without a trigger."""

    def step(net, images, labels):
        with autocast(images.device):
            features, home = net.features(mixed(reverse, images)), net.features(images)
            loss = F.cross_entropy(net.head(features), labels)
            loss = loss + F.mse_loss(features.float(), home.float())
        loss.backward()

    return step


class Noisy(nn.Module):
    """A batch norm whose scale and shift are masked and disturbed, with parameters of its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        shape = layer.weight.shape
        self.mask = nn.Parameter(torch.ones(shape, device=layer.weight.device))
        self.scale = nn.Parameter(torch.zeros_like(self.mask))
        self.shift = nn.Parameter(torch.zeros_like(self.mask))

    def forward(self, images):
        """Normalise by the batch."""
        weight = self.layer.weight * (self.mask + self.scale)
        bias = self.layer.bias * (1 + self.shift)
        return F.batch_norm(images, None, None, weight, bias, True, 0.0, self.layer.eps)


def masked(net):
    """Put masks on every batch norm."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, Noisy(child))


def pruning(net, images, labels):
    """ANP's step: the noise's ascent, then the loss with noise and without, layer by layer."""
    layers = [module for module in net.modules() if isinstance(module, Noisy)]
    with torch.no_grad():
        for layer in layers:
            layer.scale.uniform_(-0.4, 0.4)
            layer.shift.uniform_(-0.4, 0.4)
    cross_entropy(net, images, labels)
    with torch.no_grad():
        for layer in layers:
            layer.scale += 0.4 * layer.scale.grad.sign()
            layer.shift += 0.4 * layer.shift.grad.sign()
    net.zero_grad()
    with autocast(images.device):
        (0.8 * F.cross_entropy(net(images), labels)).backward()
    with torch.no_grad():
        for layer in layers:
            layer.scale.zero_()
            layer.shift.zero_()
    with autocast(images.device):
        (0.2 * F.cross_entropy(net(images), labels)).backward()
    for name, parameter in net.named_parameters():
        if not name.endswith("mask"):
            parameter.grad = None
    with torch.no_grad():
        for layer in layers:
            layer.mask.clamp_(0, 1)


def minimax(model, data):
    """I-BAU as its algorithm is written: every iteration of the fixed point differentiates it."""
    iterations, lr = 5, 0.1

    def inner(net, images, labels, delta):
        wrong = -F.cross_entropy(shifted(net, images, delta), labels)
        return wrong + 0.001 * delta.square().sum()

    def loop():
        net = copy.deepcopy(model)
        weights = list(net.parameters())
        optimizer = make_optimizer(weights, Schedule(optimizer="adam", lr=1e-4))
        delta = torch.zeros_like(to_float(data.images[:1]), requires_grad=True)
        order = torch.randperm(len(data), device=data.device).split(BATCH)
        for part in order:
            images = to_float(data.images[part])
            with torch.no_grad():
                predicted = net(images).argmax(1)
            (slope,) = torch.autograd.grad(inner(net, images, predicted, delta), delta)
            delta = (delta - 10 * slope).detach().requires_grad_()
        first, labelled = to_float(data.images[order[0]]), data.labels[order[0]]
        for part in order:
            images, labels = to_float(data.images[part]), data.labels[part]
            chosen = torch.zeros(len(part), 1, 1, 1, device=data.device)
            chosen[0] = 1
            loss = F.cross_entropy(shifted(net, images, chosen * delta), labels)
            direct = torch.autograd.grad(loss, weights, retain_graph=True)
            (constant,) = torch.autograd.grad(loss, delta)
            value = inner(net, first, labelled, delta)
            moved = delta - lr * torch.autograd.grad(value, delta, create_graph=True)[0]
            v = torch.zeros_like(delta)
            for _ in range(iterations):
                v = torch.autograd.grad(moved, delta, v, retain_graph=True)[0] + constant
            indirect = torch.autograd.grad(moved, weights, v, allow_unused=True)
            for weight, here, there in zip(weights, direct, indirect, strict=True):
                weight.grad = here if there is None else here + there
            optimizer.step()

    return loop
