"""Take any nn.Module as a classifier: find where its features end and its head begins."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from ppr_core.errors import ConfigError, need
from ppr_core.models.base import PIXELS, Capped, Network, Stats

STOPS = nn.modules.pooling._MaxPoolNd  # a map before it is no better than the one behind it
SIDE = 32  # of the noise that a network of any size is tried on, pixels
NORMS = nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm


class Whole(Network):
    """A network in one piece, for the methods that need no more than forward and parameters."""

    def __init__(self, net: nn.Module, *, stats: Stats = PIXELS, size: int | None = None) -> None:
        super().__init__(stats, size)
        self.net = net
        self.published = {"": "net."}

    def logits_of(self, normalised: Tensor) -> Tensor:
        """Return the logits (N, classes) of images that are normalised already."""
        return self.net(self.resized(normalised))


def wrap(
    module: nn.Module,
    *,
    stats: Stats = PIXELS,
    size: int | None = None,
    head: str = "",
    num_classes: int | None = None,
) -> Network:
    """Return a classifier of a copy of any module that maps images to logits.

    The last nn.Linear that runs is its head, with the pooling, dropout and further linear layers
    right before it. They are told apart by tracing the outermost forward with torch.fx; where that
    cannot be, the features are what enters that layer. A cut is kept only if both parts together
    answer as the whole does; otherwise the network stays whole.

    Args:
        module: takes what `stats` normalises.
        stats: mean and spread of its input, channel by channel; else it takes pixels in [0, 1].
        size: side that images are resized to, pixels.
        head: name of the last layer, where it is not the last nn.Linear that runs.
        num_classes: how many it must tell apart; none: as many as it does.

    Raises:
        ConfigError: it cannot take such images, or `head` is no nn.Linear of it.
    """
    if isinstance(module, Network):
        return module
    module, mode = copy.deepcopy(module).eval(), module.training
    parameter = next(module.parameters(), None)
    if parameter is None:
        raise ConfigError(f"expected a model with weights, got a {type(module).__name__}")
    shape = (2, max(3, len(stats[0])), *2 * [size or SIDE])
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0), device="cpu")
    probe = drawn.to(parameter.device)
    last, answer = _run(module, probe)
    need(
        num_classes in (None, answer.shape[1]),
        f"expected {num_classes} classes, as the data have, from {type(module).__name__}, got "
        f"{answer.shape[1]}",
    )
    if head:
        parts = dict(module.named_modules())
        need(
            isinstance(parts.get(head), nn.Linear),
            f"expected the name of an nn.Linear for head, got {head!r}; there are "
            f"{[name for name, part in parts.items() if isinstance(part, nn.Linear)]}",
        )
        last = head
    model: Network = Whole(module, stats=stats, size=size)
    for backbone, top, own in _cuts(module, probe, last):
        if _together(backbone, top, probe, answer):
            model = Capped(backbone, top, last=own, stats=stats, size=size)
            model.published = _names(module, model, last)
            break
    return model.train(mode)


def _run(module: nn.Module, probe: Tensor) -> tuple[str, Tensor]:
    """Return the name of the linear layer that runs last ("": none does), and the answer."""
    ran: list[str] = []
    hooks = [
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        with torch.no_grad():
            answer = module(probe)
    except Exception as error:  # whatever a foreign network raises
        reason = str(error).partition("\n")[0]
        need(
            False,
            f"expected a model that takes images {tuple(probe.shape[1:])}, got from "
            f"{type(module).__name__}: {type(error).__name__}: {reason}; set size",
        )
    finally:
        for hook in hooks:
            hook.remove()
    need(
        isinstance(answer, Tensor) and answer.ndim == 2 and len(answer) == len(probe),
        f"expected logits (N, classes) from {type(module).__name__}, got "
        f"{tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__}",
    )
    once = ran and ran.count(ran[-1]) == 1
    return ran[-1] if once else "", answer


def _cuts(
    module: nn.Module, probe: Tensor, last: str
) -> Iterator[tuple[nn.Module, nn.Module, str]]:
    """Yield ways to cut: backbone, head, and the last layer's name in the head; best first."""
    if not last:
        return
    with contextlib.suppress(Exception):  # tracing runs foreign code, and may fail in any way
        yield *_traced(module, probe, last), last
    net = copy.deepcopy(module)
    parent, _, child = last.rpartition(".")
    top = nn.Sequential(net.get_submodule(last))
    setattr(net.get_submodule(parent), child, nn.Identity())
    yield net, top, "0"


class _Coarse(fx.Tracer):
    """Look into what holds the last layer, and take every other part as one step."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.last = last

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a part is one step."""
        return not self.last.startswith(f"{module_qualified_name}.")


def _traced(module: nn.Module, probe: Tensor, last: str) -> tuple[nn.Module, nn.Module]:
    """Cut by the graph of the outermost forward."""
    graphs = [_Coarse(last).trace(module.train(mode)) for mode in (True, False)]
    texts = [graph.python_code("self").src for graph in graphs]
    need(texts[0] == texts[1], "expected the same steps in training and evaluation")
    graph = graphs[1]
    ShapeProp(fx.GraphModule(module, graph)).propagate(probe)
    (layer,) = [node for node in graph.nodes if node.op == "call_module" and node.target == last]
    cut = _end_of_features(module, layer)
    before = _ancestors(cut)
    backbone, top = fx.Graph(), fx.Graph()
    kept: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in before:
            kept[node] = backbone.node_copy(node, kept.__getitem__)
    backbone.output(kept[cut])
    kept = {cut: top.placeholder("features")}
    for node in graph.nodes:
        if node not in before and node.op != "placeholder":
            kept[node] = top.node_copy(node, kept.__getitem__)
    parts = fx.GraphModule(module, backbone), fx.GraphModule(module, top)
    shared = {id(p) for p in parts[0].parameters()} & {id(p) for p in parts[1].parameters()}
    need(not shared, "expected parts without common weights")
    return parts


def _end_of_features(module: nn.Module, layer: fx.Node) -> fx.Node:
    """Return the step whose result is the features: before pooling and the linear layers."""
    node = layer
    (cut,) = _tensors(node)
    while len(inputs := _tensors(node)) == 1 and _light(module, node):
        if isinstance(_part(module, node), nn.Linear) or _space(inputs[0]) != _space(node):
            cut = inputs[0]
        node = inputs[0]
    if node.op == "placeholder":  # linear layers and nothing else: the last one alone is the head
        (cut,) = _tensors(layer)
    return cut


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if "tensor_meta" in n.meta]


def _space(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape[2:])


def _part(module: nn.Module, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _light(module: nn.Module, node: fx.Node) -> bool:
    """Say whether a step may belong to a head: linear, norm, or without weights; no max-pooling."""
    part = _part(module, node)
    if part is None:
        return node.op in ("call_function", "call_method") and "max_pool" not in str(node.target)
    if isinstance(part, nn.Linear | NORMS):
        return True
    return next(part.parameters(), None) is None and not isinstance(part, STOPS)


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, todo = {node}, [node]
    while todo:
        new = set(todo.pop().all_input_nodes) - found
        found |= new
        todo += new
    return found


def _together(backbone: nn.Module, top: nn.Module, probe: Tensor, answer: Tensor) -> bool:
    """Say whether two parts, one after the other, answer as the whole did."""
    try:
        with torch.no_grad():
            got = top.eval()(backbone.eval()(probe))
    except Exception:  # parts of foreign code: a cut that cannot run is none
        return False
    return got.shape == answer.shape and (got.is_meta or torch.allclose(got, answer, 1e-4, 1e-5))


def _names(module: nn.Module, model: Capped, last: str) -> dict[str, str]:
    """Return the names that the weights had in the module -> the names in the model."""
    own, names = set(model.state_dict()), {}
    for name in module.state_dict():
        short = f"top.0.{name.rpartition('.')[2]}" if name.startswith(f"{last}.") else ""
        for there in (f"backbone.{name}", f"top.{name}", short):
            if there in own:
                names[name] = there
    return names
