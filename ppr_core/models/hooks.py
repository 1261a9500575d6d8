"""Forward hooks: observe the inputs and outputs of layers."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Note = Callable[[str, Tensor, Tensor], None]


@contextlib.contextmanager
def watching(layers: Mapping[str, nn.Module], note: Note) -> Iterator[None]:
    """Call `note(name, input, output)` after each forward pass of one of the layers."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda layer, given, output: note(name, given[0], output)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
