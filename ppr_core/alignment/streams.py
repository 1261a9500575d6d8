"""Which channels of a network may be put in another order, and which go together."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ppr_core.errors import ConfigError, need
from ppr_core.metrics import evaluating

# What leaves each channel where it is: functions of one value, or of one channel's map.
BY_CHANNEL = {
    *("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "hardswish", "hardsigmoid", "sigmoid"),
    *("silu", "gelu", "leaky_relu", "tanh", "dropout", "contiguous", "float", "to", "clone"),
    *("max_pool2d", "_max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d"),
    "interpolate",
}
BETWEEN = {
    *("add", "add_", "__add__", "__radd__", "__iadd__", "mul", "__mul__", "__rmul__"),
    *("sub", "__sub__", "div", "__truediv__"),
}
OUTSIDE = 0  # the group of pixels and logits, whose order is given


class Part(NamedTuple):
    """A run of channels along a dimension, each of them `block` entries long."""

    group: int
    channels: int
    block: int


class Axis(NamedTuple):
    """Where a stream's channels stand in a tensor: from `start` on, `block` entries each."""

    name: str
    dim: int
    start: int
    block: int


@dataclass
class Stream:
    """Channels that have to be permuted together, such as those of a residual stream.

    Attributes:
        channels: how many.
        axes: every tensor's dimension that they stand in.
        writers: names of the layers whose outputs they are, in order.
    """

    channels: int
    axes: list[Axis] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)


def streams(model: nn.Module, pixels: Tensor) -> list[Stream]:
    """Follow one forward pass, and return what may be permuted, from the first layer to the last.

    Which layers share a permutation is read off what the model computes: a sum ties the channels
    of its terms together, and every layer ties its weights to what it reads and what it writes.

    Args:
        model: left as it is; may lie on the meta device.
        pixels: float images (N, C, H, W) on its device; two are enough.

    Raises:
        ConfigError: it has no channels of its own, or mixes them in a way not known here.
    """
    found = _Follower(model)
    with torch.no_grad(), evaluating(model), found:
        found.start(pixels)
        found.end(model(pixels))
    got = [stream for group, stream in sorted(found.streams().items()) if group != OUTSIDE]
    need(got, f"expected a model with channels to permute, got a {type(model).__name__} without")
    return got


class _Follower(TorchFunctionMode):
    """Notes, of every function of a forward pass, how it treats the channels it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = type(model).__name__
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        self.names = {id(tensor): name for name, tensor in tensors}
        self.joined, self.sizes = [OUTSIDE], [0]  # each group points to one that it was joined with
        self.axes: list[tuple[int, Axis]] = []
        self.writers: list[tuple[int, str]] = []
        self.seen: dict[int, tuple[Tensor, list[Part]]] = {}  # held, so that no id comes again

    def start(self, pixels: Tensor) -> None:
        """Begin with images."""
        self._note(pixels, [Part(OUTSIDE, pixels.shape[1], 1)])

    def end(self, logits: Tensor) -> None:
        """End with logits."""
        for part in self.seen[id(logits)][1]:
            self._join(part.group, OUTSIDE)

    def streams(self) -> dict[int, Stream]:
        """Return what was found, by group."""
        found: dict[int, Stream] = {}
        for group, axis in self.axes:
            root = self._root(group)
            stream = found.setdefault(root, Stream(self.sizes[root]))
            if axis not in stream.axes:
                stream.axes.append(axis)
        for group, name in self.writers:
            found[self._root(group)].writers.append(name)
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Compute as always, and note where the channels went."""
        out = func(*args, **(kwargs or {}))
        flat = [*args, *(kwargs or {}).values()]
        given = [t for each in flat for t in (each if isinstance(each, list | tuple) else [each])]
        layouts = [self.seen[id(t)][1] for t in given if id(t) in self.seen]
        if not isinstance(out, Tensor) or not layouts:
            return out
        name = getattr(func, "__name__", str(func))
        others = [t for t in given if isinstance(t, Tensor) and id(t) not in self.seen]
        self._note(out, self._after(name, layouts, others, flat, kwargs or {}, out))
        return out

    def _after(
        self,
        name: str,
        layouts: list[list[Part]],
        others: list[Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: Tensor,
    ) -> list[Part]:
        first = layouts[0]
        if name == "conv2d":
            return self._convolution(first, *args[1:])
        if name == "linear":
            return self._layer(first, *args[1:3])
        if name == "batch_norm":
            for tensor in others:
                self._tie(tensor, 0, first)
            return first
        if name in BY_CHANNEL and len(layouts) == 1:
            return first
        if name in BETWEEN and len(layouts) == 2:
            return self._between(name, layouts)
        pixels = all(part.group == OUTSIDE for part in first)
        if name in BETWEEN and (pixels or not others):  # such as the normalisation of pixels
            return first
        if name == "cat" and (args[1:] == [1] or kwargs.get("dim") == 1):
            return [part for layout in layouts for part in layout]
        if name == "flatten" and out.ndim == 2:
            block = out.shape[1] // sum(part.channels * part.block for part in first)
            return [part._replace(block=part.block * block) for part in first]
        raise self._refused(name)

    def _convolution(
        self,
        layout: list[Part],
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> list[Part]:
        if groups == 1:
            return self._layer(layout, weight, bias)
        if groups != weight.shape[0] or weight.shape[1] != 1:
            raise self._refused("conv2d in groups")
        for tensor in (weight, bias):  # a map a channel
            self._tie(tensor, 0, layout)
        return layout

    def _layer(self, layout: list[Part], weight: Tensor, bias: Tensor | None = None) -> list[Part]:
        """Return the new channels that a layer writes."""
        self._tie(weight, 1, layout)
        group = len(self.joined)
        self.joined.append(group)
        self.sizes.append(weight.shape[0])
        written = [Part(group, weight.shape[0], 1)]
        for tensor in (weight, bias):
            self._tie(tensor, 0, written)
        self.writers.append((group, self.names[id(weight)].removesuffix(".weight")))
        return written

    def _between(self, name: str, layouts: list[list[Part]]) -> list[Part]:
        one, two = layouts
        if [part[1:] for part in one] != [part[1:] for part in two]:
            raise self._refused(f"{name} of other channels")
        for part, other in zip(one, two, strict=True):
            self._join(part.group, other.group)
        return one

    def _tie(self, tensor: Tensor | None, dim: int, layout: list[Part]) -> None:
        """Note that the channels of a layout stand along a tensor's dimension."""
        if tensor is None:
            return
        if id(tensor) not in self.names:
            raise self._refused("a layer whose weights are computed")
        start, name = 0, self.names[id(tensor)]
        for part in layout:
            self.axes.append((part.group, Axis(name, dim, start, part.block)))
            start += part.channels * part.block
        if start != tensor.shape[dim]:
            raise self._refused(f"{name} of {tensor.shape[dim]} entries for {start}")

    def _note(self, tensor: Tensor, layout: list[Part]) -> None:
        self.seen[id(tensor)] = tensor, layout

    def _root(self, group: int) -> int:
        while self.joined[group] != group:
            group = self.joined[group]
        return group

    def _join(self, one: int, two: int) -> None:
        low, high = sorted((self._root(one), self._root(two)))
        self.joined[high] = low

    def _refused(self, what: str) -> ConfigError:
        return ConfigError(
            f"expected a model with convolutions, batch norm, linear layers, sums and functions of "
            f"one channel alone, to permute its channels, got {what} in a {self.model}"
        )
