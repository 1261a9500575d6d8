import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ppr_core.checkpoints import STATS, read_bench
from ppr_core.data.images import to_float
from ppr_core.errors import CheckpointError, ConfigError, DataError
from ppr_core.metrics import triggered
from ppr_core.models import MODELS
from tests.conftest import tiny_set

CLASSES = 4
SMALL = {"name": "preactresnet18", "width": 4, "blocks": 1}


class Block(nn.Module):
    """A pre-activation block under the names that published code gives its parts."""

    def __init__(self, channels, planes, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, planes, 1, stride, bias=False))

    def forward(self, x):
        y = F.relu(self.bn1(x))
        x = self.shortcut(y) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + x


class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        for stage in range(4):
            wide = 4 * 2**stage
            first = wide if stage == 0 else wide // 2
            setattr(self, f"layer{stage + 1}", nn.Sequential(Block(first, wide, 1 + (stage > 0))))
        self.linear = nn.Linear(32, CLASSES)

    def forward(self, x):
        x = self.conv1(x)
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def theirs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Theirs().eval()


def marked(images):
    images = images.clone()
    images[..., -3:, -3:] = 255
    return images


def part(data, chosen, root, name, target=0):
    """Write the stored images of one part, and return its entry as a result file has it."""
    entries = {}
    for index in chosen:
        label = int(data.labels[index])
        file = root / f"{name}_dataset" / str(label) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = marked(data.images[index]).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file)
        path = f"./record/badnet_0_1/{name}_dataset/{label}/{index}.png"
        entries[np.int64(index)] = {"path": path, "other_info": [target, np.int64(label)]}
    indicator = np.zeros(len(data))
    indicator[list(chosen)] = 1
    return {
        "bd_data_container": {
            "save_folder_path": f"./record/badnet_0_1/{name}_dataset",
            "save_file_format": ".png",
            "data_dict": entries,
        },
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(len(data)),
        "poison_indicator": indicator,
        "save_folder_path": f"./record/badnet_0_1/{name}_dataset",
    }


@pytest.fixture
def made(tmp_path, theirs):
    """A result file as BackdoorBench writes it, and the data that it was made from."""
    train, test = tiny_set(24, size=32, seed=1), tiny_set(16, size=32, seed=2)
    content = {
        "model_name": "preactresnet18",
        "num_classes": CLASSES,
        "model": theirs.state_dict(),
        "data_path": "../data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": part(train, [1, 5, 8, 20], tmp_path, "bd_train"),
        "bd_test": part(test, [i for i in range(16) if i % CLASSES], tmp_path, "bd_test"),
    }
    return content, tmp_path / "attack_result.pt", train, test


def saved(content, path, **changes):
    torch.save(content | changes, path)
    return path


def small(path, **more):
    mean, std = STATS["cifar10"]
    return read_bench(path, architecture=SMALL | {"mean": mean, "std": std}, **more)


def test_weights_and_stored_images_make_the_round_trip(made, theirs):
    content, path, train, test = made
    bench = small(saved(content, path))
    assert (bench.num_classes, bench.dataset) == (CLASSES, "cifar10")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in STATS["cifar10"])
    pixels = to_float(test.images)
    torch.testing.assert_close(bench.model()(pixels), theirs((pixels - mean) / std))
    poisoned = bench.poisoned(train)
    assert poisoned.indices.tolist() == [1, 5, 8, 20]
    assert poisoned.original.tolist() == [1, 1, 0, 0]
    assert poisoned.data.labels[poisoned.indices].tolist() == [0] * 4
    assert torch.equal(poisoned.data.images[[1, 5, 8, 20]], marked(train.images[[1, 5, 8, 20]]))
    untouched = [i for i in range(24) if i not in (1, 5, 8, 20)]
    assert torch.equal(poisoned.data.images[untouched], train.images[untouched])
    trigger = bench.trigger(test)
    assert trigger.target == 0
    stamped = triggered(test, trigger, trigger.target)
    assert torch.equal(stamped.images, marked(test.images[test.labels != 0]))
    with pytest.raises(DataError, match="stored images cannot show the trigger on others"):
        trigger(train.images[:2])


def test_numpys_first_edition_and_wrapped_names_are_read(made, theirs):
    content, path, train, _ = made
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    saved(content, path, model=wrapped)
    old = path.with_name("old.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as copy:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            copy.writestr(item.filename, data)
    bench = small(old)
    assert torch.equal(bench.state["linear.weight"], theirs.linear.weight)
    assert len(bench.poisoned(train).indices) == 4


def test_a_defense_result_holds_a_model_alone(made, theirs):
    content, path, train, test = made
    kept = {name: content[name] for name in ("model_name", "num_classes")}
    cut = {
        name if name.startswith("linear.") else f"backbone.{name}": tensor
        for name, tensor in theirs.state_dict().items()
    }  # as their DBD has it
    bench = small(saved(kept | {"model": cut}, path))
    assert torch.equal(bench.state["linear.bias"], theirs.linear.bias)
    with pytest.raises(DataError, match="triggered test images: the file holds none"):
        bench.trigger(test)
    with pytest.raises(DataError, match="poisoned training images: the file holds none"):
        bench.poisoned(train)


def test_the_architecture_is_the_one_that_the_file_names(made):
    content, path, *_ = made
    full = MODELS["preactresnet18"]().skeleton(CLASSES).state_dict()
    theirs = {}
    for name, tensor in full.items():
        name = name.replace("backbone.0.", "conv1.").replace("downsample", "shortcut")
        for stage in range(1, 5):
            name = name.replace(f"backbone.{stage}.", f"layer{stage}.")
        theirs[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    bench = read_bench(saved(content, path, model=theirs, clean_data="gtsrb"))
    assert type(bench.architecture).__name__ == "PreActResNet18"
    assert bench.architecture.stats == ([0.0] * 3, [1.0] * 3)
    assert bench.state.keys() == full.keys()


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_code_in_a_file_is_not_run(made, tmp_path, monkeypatch):
    content, path, *_ = made
    monkeypatch.chdir(tmp_path)
    for changes in ({"data_path": Evil()}, {"model": {"conv1.weight": Evil()}}):
        with pytest.raises(CheckpointError, match=r"refused: it would run \w+\.system") as caught:
            small(saved(content, path, **changes))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_pictures_inside_a_file_are_refused(made):
    content, path, *_ = made
    picture = Image.new("RGB", (32, 32))
    held = {"bd_data_container": {"data_dict": {np.int64(3): (picture, 0, 3)}}}
    with pytest.raises(CheckpointError, match="it holds pictures .* in place of files") as caught:
        small(saved(content, path, bd_test=held))
    assert "\n" not in str(caught.value)


def changed(content, index, **entry):
    held = content["bd_test"]["bd_data_container"]["data_dict"]
    held[np.int64(index)] = held[np.int64(1)] | entry
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"model_name": "resnext"}, "expected one of the models preactresnet18, "),
        (lambda c: c | {"num_classes": 1}, "expected two or more num_classes"),
        (lambda c: c | {"num_classes": "4"}, "expected two or more num_classes .* got '4'"),
        (lambda c: c | {"clean_data": "mnist"}, "expected one of the data sets cifar10, "),
        (lambda c: c | {"model": 3}, "expected model_name and model in"),
        (lambda c: c | {"model": {}}, "expected tensors by name"),
        (lambda c: [1, 2], "expected a mapping"),
        (lambda c: c | {"bd_test": {"data_dict": {}}}, "expected images by index"),
        (lambda c: changed(c, 1, path="/x/bd_test_dataset/../../a.png"), "path within the images'"),
        (lambda c: changed(c, 1, other_info=[9, 1]), "labels below 4"),
        (lambda c: changed(c, -1), "indices from 0"),
        (lambda c: changed(c, 1, other_info=[0]), "expected images by index, with path and other"),
        (lambda c: c | {"model": c["model"] | {"linear.bias": torch.full((4,), torch.nan)}}, "NaN"),
        (lambda c: c | {"model": c["model"] | {"linear.bias": torch.zeros(3)}}, "does not fit"),
        (lambda c: c | {"model": c["model"] | {"extra.bias": torch.zeros(3)}}, "difference in"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(made, change, message):
    content, path, *_ = made
    torch.save(change(content), path)
    named = "data sets" in message or "of the models" in message
    with pytest.raises(CheckpointError, match=message) as caught:
        read_bench(path) if named else small(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_such_file_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    for name in ("text.pt", "none.pt"):
        with pytest.raises(CheckpointError, match=f"{name} is refused: expected a file") as caught:
            read_bench(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="unknown model"):
        torch.save({"model_name": "x", "num_classes": 2, "model": {}}, tmp_path / "a.pt")
        read_bench(tmp_path / "a.pt", architecture="resnet81")


def test_images_of_other_data_are_refused(made):
    content, path, train, test = made
    bench = small(saved(content, path))
    with pytest.raises(DataError, match="expected indices below 12"):
        bench.poisoned(train.subset(torch.arange(12)))
    other = train.with_labels((train.labels + 1) % CLASSES)
    with pytest.raises(DataError, match="got 4 of 4 that differ: other data, or another order"):
        bench.poisoned(other)
    with pytest.raises(DataError, match=r"expected images \(3, 16, 16\) as the data have"):
        bench.trigger(test.with_images(test.images[..., :16, :16]))
    next(path.parent.glob("bd_train_dataset/*/5.png")).unlink()
    with pytest.raises(DataError, match="expected an image, got"):
        bench.poisoned(train)
    with pytest.raises(DataError, match="expected an image, got"):
        small(path, images=path.parent / "elsewhere").trigger(test)
    several = changed(content, 1, other_info=[2, 1])
    with pytest.raises(DataError, match="expected one target label"):
        small(saved(several, path)).trigger(test)
