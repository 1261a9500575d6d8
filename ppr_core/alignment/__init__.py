"""Permutation symmetry: a network computes the same with its channels in another order."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ppr_core.alignment.streams import Axis, Stream, streams
from ppr_core.data.images import ImageSet, to_float
from ppr_core.metrics import EVAL_BATCH, evaluating
from ppr_core.models.hooks import watching
from ppr_core.runtime import autocast
from ppr_core.weights import State

__all__ = ["aligned", "assigned", "correlations", "permuted", "streams", "weight_matching"]

SWEEPS = 100  # of weight matching at the most; it settles in a few


def permuted(
    state: Mapping[str, Tensor], found: Sequence[Stream], orders: Sequence[Tensor]
) -> State:
    """Return weights whose channels are put in another order: what they compute stays.

    Args:
        state: weights and statistics by name.
        found: the model's `streams`.
        orders: one a stream, (channels,) int64: the channel to come first, second, ...
    """
    moved = dict(state)
    for stream, order in zip(found, orders, strict=True):
        for axis in stream.axes:
            moved[axis.name] = _taken(moved[axis.name], axis, order)
    return {name: t.clone() if t is state[name] else t for name, t in moved.items()}


def _taken(tensor: Tensor, axis: Axis, order: Tensor) -> Tensor:
    """Return a tensor with one of its axes in another order."""
    entries = order.to(tensor.device)[:, None] * axis.block
    entries = (entries + torch.arange(axis.block, device=tensor.device)).flatten() + axis.start
    index = torch.arange(tensor.shape[axis.dim], device=tensor.device)
    index[axis.start : axis.start + len(entries)] = entries
    return tensor.index_select(axis.dim, index)


def assigned(score: Tensor, *, largest: bool) -> Tensor:
    """Return the order of columns whose score against the rows is largest (or smallest)."""
    _, columns = linear_sum_assignment(score.double().cpu().numpy(), maximize=largest)
    return torch.from_numpy(columns)


@torch.no_grad()
def weight_matching(
    found: Sequence[Stream],
    fixed: Mapping[str, Tensor],
    moving: Mapping[str, Tensor],
    names: Iterable[str],
) -> list[Tensor]:
    """Return the orders that bring one network's weights closest to another's.

    One stream after the other takes its best order, given those of the others, until none changes.

    Source: Ainsworth et al. 2023, arXiv:2209.04836, sec. 3.2. Differs from the paper: streams take
    their turns from the first to the last, where theirs are drawn.

    Args:
        found: the model's `streams`.
        fixed: the weights to come close to.
        moving: the weights to permute.
        names: of the tensors that count: the parameters.
    """
    counted = set(names)
    orders = [torch.arange(stream.channels) for stream in found]
    others: dict[str, list[tuple[int, Axis]]] = {}
    for number, stream in enumerate(found):
        for axis in stream.axes:
            others.setdefault(axis.name, []).append((number, axis))

    def better(number: int, stream: Stream) -> Tensor:
        score = torch.zeros(stream.channels, stream.channels, dtype=torch.float64)
        for axis in stream.axes:
            if axis.name not in counted:
                continue
            tensor = moving[axis.name]
            for other, along in others[axis.name]:
                if along != axis:
                    tensor = _taken(tensor, along, orders[other])
            rows, columns = (_rows(t, axis, stream.channels) for t in (fixed[axis.name], tensor))
            score += (rows @ columns.T).cpu()
        order = assigned(score, largest=True)
        now, then = (score[torch.arange(len(o)), o].sum() for o in (orders[number], order))
        return order if then > now + 1e-9 * now.abs() else orders[number]

    for _ in range(SWEEPS):
        before = [order.clone() for order in orders]
        for number, stream in enumerate(found):
            orders[number] = better(number, stream)
        if all(map(torch.equal, before, orders)):
            break
    return orders


def _rows(tensor: Tensor, axis: Axis, channels: int) -> Tensor:
    """Return a tensor as one row a channel of an axis."""
    own = tensor.narrow(axis.dim, axis.start, channels * axis.block)
    return own.movedim(axis.dim, 0).reshape(channels, -1).double()


@torch.no_grad()
def correlations(
    found: Sequence[Stream], fixed: nn.Module, moving: nn.Module, data: ImageSet
) -> list[Tensor]:
    """Return, stream by stream, how the channels of two networks correlate over images.

    They are outputs of the layers that write a stream, before batch norm where that follows,
    averaged over these layers: (channels of `fixed`, channels of `moving`).

    Source: Li et al. 2016, arXiv:1511.07543, sec. 3.
    """
    sums: dict[str, list[Tensor]] = {}
    for part in data.images.split(EVAL_BATCH):
        pixels, seen = to_float(part), []
        for model in (fixed, moving):
            outputs: dict[str, Tensor] = {}
            with evaluating(model), autocast(part.device), _written(model, found, outputs):
                model(pixels)
            seen.append(outputs)
        for name, one in seen[0].items():
            ours, theirs = _by_channel(one), _by_channel(seen[1][name])
            count = torch.tensor(ours.shape[1], device=ours.device)
            new = [count, ours.sum(1), theirs.sum(1), (ours**2).sum(1), (theirs**2).sum(1)]
            new.append(ours @ theirs.T)
            sums[name] = (
                [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new
            )
    return [
        torch.stack([_correlation(*sums[name]) for name in stream.writers]).mean(0)
        for stream in found
    ]


def _correlation(
    count: Tensor, one: Tensor, two: Tensor, square_one: Tensor, square_two: Tensor, both: Tensor
) -> Tensor:
    mean_one, mean_two = one / count, two / count
    spread_one = (square_one / count - mean_one**2).clamp_min(0).sqrt()
    spread_two = (square_two / count - mean_two**2).clamp_min(0).sqrt()
    shared = both / count - mean_one[:, None] * mean_two
    return shared / (spread_one[:, None] * spread_two + 1e-4)


def _by_channel(output: Tensor) -> Tensor:
    """(N, C, h, w) or (N, C) -> (C, values)."""
    return output.double().movedim(1, 0).flatten(1)


def _written(
    model: nn.Module, found: Sequence[Stream], outputs: dict[str, Tensor]
) -> AbstractContextManager[None]:
    names = [name for stream in found for name in stream.writers]
    layers = {name: model.get_submodule(name) for name in names}
    return watching(layers, lambda name, _, output: outputs.__setitem__(name, output))


def aligned(
    model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], pixels: Tensor
) -> State:
    """Return the end of a path with its channels in the order closest to the start's.

    Two networks that were trained apart lie in different basins; how much of the barrier between
    them is a matter of order alone, the path to this end shows.

    Args:
        model: of the architecture; left as it is.
        start: weights to come close to.
        end: weights to permute; what they compute stays.
        pixels: float images (N, C, H, W) on the model's device, to see which channels go together.

    Raises:
        ConfigError: the model mixes its channels in a way not known here.
    """
    found, names = streams(model, pixels), [name for name, _ in model.named_parameters()]
    return permuted(end, found, weight_matching(found, start, end, names))
