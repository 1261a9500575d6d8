"""The names of weights: those that others use, as those used here."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

# Wrappers that put a name of their own in front of all others.
WRAPPERS = ("module.", "_orig_mod.", "model.", "1.")


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without what data-parallel, compiling or resizing wrappers put in front."""
    names = dict(state)
    for _ in WRAPPERS:  # they may stand inside each other
        for prefix in WRAPPERS:
            if names and all(name.startswith(prefix) for name in names):
                names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def renamed(name: str, own: Iterable[str], model: nn.Module) -> str:
    """Return this project's name for a weight; the longest beginning that is known decides."""
    if name in own:
        return name
    published = _published(model)
    known = [theirs for theirs in published if name.startswith(theirs)]
    if known:
        theirs = max(known, key=len)
        name = published[theirs] + name.removeprefix(theirs)
    return name if name in own else name.replace(".shortcut.", ".downsample.")


def _published(model: nn.Module) -> dict[str, str]:
    """Return torchvision's names for the parts of a classifier, with this project's."""
    if getattr(model, "published", None) or not hasattr(model, "backbone"):
        return getattr(model, "published", {})
    names = {"fc.": "linear.", "classifier.": "linear.", "features.": "backbone."}
    stages = 0
    for index, part in model.get_submodule("backbone").named_children():
        if isinstance(part, nn.Conv2d):
            names["conv1."] = f"backbone.{index}."
        elif isinstance(part, nn.BatchNorm2d):
            names["bn1."] = f"backbone.{index}."
        elif isinstance(part, nn.Sequential):
            stages += 1
            names[f"layer{stages}."] = f"backbone.{index}."
    return names
