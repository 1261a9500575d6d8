"""Models made elsewhere, from the command line: what is wrong is said, and nothing is kept."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ppr_core.cli import evaluate
from ppr_core.cli.main import main
from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.models import build
from ppr_core.reporting import results
from tests.cli.conftest import TEST, TRAIN, white
from tests.conftest import torchvisions
from tests.test_checkpoints import part

MINE = """
import torch
from torch import nn
from ppr_core import Dataset
from ppr_core.data import Split
from ppr_core.models import build
from tests.conftest import tiny_set

class Tiny(Dataset):
    "Noise with a class-dependent colour."

    source = "a test"

    def load(self, root):
        return Split(tiny_set(96, size=32, seed=1), tiny_set(64, size=32, seed=2))

def white(images):
    images = images.clone()
    images[..., -3:, -3:] = 255
    return images

def Bare(num_classes, width=4):
    net = build({"name": "resnet18", "width": width, "blocks": 1}, num_classes, seed=0)
    return nn.Sequential(net.backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.linear)
"""
SMALL = (
    *("poison_rate=0.25", "reserve=32", "retuning.share=0.3", "retuning.poisoned=3"),
    "retuning.schedule.epochs=1",
    *("measures.path.points=3", "measures.query.width=8", "measures.query.clean=8"),
    *("measures.query.poisoned=8", "measures.query.schedule.epochs=1", "budgets=[0.0]"),
)
TINY_BUDGETS = (  # of a scan
    *("inversion.width=4", "inversion.pretrain.epochs=2", "inversion.decouple.steps=4"),
    *("inversion.generate.epochs=2", "cleanse.schedule.epochs=20", "battery.counts=[1, 2]"),
    *("cleanse.schedule.batch_size=8", "cleanse.weight=0.01"),
    "battery.retuning.schedule.epochs=1",
)
SHORT = [word for pair in SMALL for word in ("-p", pair)]


@pytest.fixture
def place(tmp_path, monkeypatch, store, victim):
    """Where a user stands: a file of his own, the victim's weights, and pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    torch.save(torchvisions(victim[0]), "theirs.pt")
    Image.fromarray(np.full((3, 3, 3), 255, np.uint8)).save("patch.png")
    whole = np.full((32, 32, 4), 255, np.uint8)
    whole[..., 3] = 0
    whole[-3:, -3:, 3] = 255
    Image.fromarray(whole).save("whole.png")
    for folder, change in (("clean", lambda images: images), ("marked", white)):
        os.mkdir(folder)
        for name, data in (("train", TRAIN), ("test", TEST)):
            for index, image in enumerate(change(data.images).permute(0, 2, 3, 1).numpy()):
                Image.fromarray(image).save(f"{folder}/{name}{index}.png")
    return tmp_path


BASE = ["evaluate", "--backdoored", "theirs.pt", "--dataset", "mine.py:Tiny", *SHORT]
WRONG = ["--model", "resnet18", "-p", "model.width=4", "-p", "model.blocks=1"]
RIGHT = ["--model", "resnet18_pooled", "-p", "model.width=4", "-p", "model.blocks=1"]
RIGHT += ["-p", "model.stem=3"]
PATCH = ["--trigger", "patch.png", "--at", "29,29"]


def refused(words, capsys, store, message):
    """Expect one line of error, and nothing kept."""
    before = sorted(path.name for path in store.folder.iterdir())
    assert main(words) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0]
    assert re.search(message, errors[0]), errors[0]
    assert "Traceback" not in err + out
    assert store.search() == []
    assert sorted(path.name for path in store.folder.iterdir()) == before
    return err


def test_a_missing_max_pool_does_not_come_out_silently_wrong(place, capsys, store, victim):
    """Names and shapes fit both architectures; what the maker reports tells them apart."""
    _, c_acc, asr = victim
    assert c_acc > 90 and asr > 95
    expected = ["--expect-c-acc", f"{c_acc:.1f}", "--expect-asr", f"{asr:.1f}"]
    message = rf"theirs.pt: expected C-Acc {float(f'{c_acc:.1f}'):g} within 1 points, got \d.*"
    message += r"resnet18_pooled with width=4 and blocks=1 and stem=3: (9\d|100)"
    refused([*BASE, *PATCH, *WRONG, *expected], capsys, store, message)


def test_without_a_reported_accuracy_the_checks_stop_it(place, capsys, store):
    err = refused([*BASE, *PATCH, *WRONG], capsys, store, "no verdict, and nothing is measured")
    assert "check     " in err


@pytest.mark.parametrize(
    "trigger",
    [
        PATCH,
        ["--trigger", "whole.png", "--alpha", "1.0"],
        ["--trigger", "mine.py:white"],
        ["--trigger", "clean", "marked"],
    ],
    ids=["patch", "blended", "function", "pairs"],
)
def test_every_kind_of_trigger_is_the_victims(trigger, place, capsys, victim, monkeypatch):
    monkeypatch.setattr(evaluate, "compute", lambda plan, *rest: taken.append(plan) or 0)
    taken, (_, c_acc, asr) = [], victim
    expected = ["--expect-c-acc", f"{c_acc:.1f}", "--expect-asr", f"{asr:.1f}"]
    assert main([*BASE, *trigger, *RIGHT, *expected]) == 0, capsys.readouterr().err
    told = f"victim    C-Acc {c_acc:.1f}, ASR {asr:.1f}"
    assert told in capsys.readouterr().out
    assert len(taken) == 1


@pytest.fixture
def no_report(monkeypatch):
    """Compute and print the table; the report is another test's."""

    def short(plan, store, sections):
        failures = engine.run(plan, Lab(store))
        print(results.text_table(results.cells(plan, store)))
        return 1 if failures else 0

    monkeypatch.setattr(evaluate, "compute", short)


def test_one_model_and_pairs_go_through_to_the_table(place, capsys, store):
    words = [*BASE, "--trigger", "clean", "marked", *RIGHT]
    assert main([*words, "--purified", "theirs.pt"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "left out  EP: stored images cannot show the trigger on others" in out
    assert re.search(r"pairs +purified +\d+\.\d +\d+\.\d +\d", out)
    [run] = store.search(stage="retuned")
    assert run.data.params["poisoned"] == "3"


def test_a_purified_model_alone_is_judged(place, capsys, store, no_report):
    words = ["evaluate", "--purified", *BASE[2:], *PATCH, *RIGHT]
    assert main([*words, "-p", "defenses.ep.schedule.epochs=1"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "left out  LMC and QRA" in out
    assert re.search(r"picture +purified +\d+\.\d", out)
    assert re.search(r"picture +ep \(oracle\) +\d+\.\d", out)


def test_backdoorbenchs_files_bring_trigger_architecture_and_poisons(
    place, capsys, store, victim, no_report
):
    """Their stored images are the trigger; their poisons are what RA draws from."""
    chosen = [int(i) for i in torch.arange(0, len(TRAIN), 3) if TRAIN.labels[i] != 0]
    content = {
        "model_name": "resnet18",
        "num_classes": 4,
        "model": torchvisions(victim[0]),
        "clean_data": "cifar10",
        "bd_train": part(TRAIN, chosen, place, "bd_train"),
        "bd_test": part(TEST, [i for i in range(64) if TEST.labels[i]], place, "bd_test"),
    }
    torch.save(content, "attack_result.pt")
    kept = {name: content[name] for name in ("model_name", "num_classes", "model")}
    torch.save(kept, "defense_result.pt")
    words = ["evaluate", "--backdoored", "attack_result.pt", "--purified", "defense_result.pt"]
    words += BASE[3:]
    # Without --model it is theirs: 64 channels and a stem of 7 pixels, which these weights are not.
    refused(words, capsys, store, "fits resnet18 with width=4 .* resnet18_pooled with")
    words += [*RIGHT, "--expect-asr", f"{victim[2]:.1f}"]
    assert main(words) == 0, capsys.readouterr().err
    assert re.search(r"stored +purified +\d+\.\d", capsys.readouterr().out)
    [run] = store.search(stage="retuned")
    assert run.data.params["poisoned"] == "3"
    torch.save(content | {"bd_train": None}, "attack_result.pt")
    refused(words, capsys, store_of(store), "expected triggered versions of training images")


def store_of(store):
    """Hide what a run before has kept."""
    store.search = lambda *args, **tags: []
    return store


def test_a_users_architecture_with_settings_and_normalisation(place, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "compute", lambda plan, *rest: taken.append(plan) or 0)
    taken = []
    net = evaluate_bare(width=6)
    torch.save(net.state_dict(), "bare.pt")
    words = ["evaluate", "--backdoored", "bare.pt", *BASE[3:], *PATCH, "--anyway"]
    words += ["--model", "mine.py:Bare", "-p", "model.arguments.width=6"]
    assert main([*words, "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2"]) == 0
    model = taken[0].setting.build(0)
    assert model.normalise.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert taken[0].study.model["name"] == "mine.py:Bare", "names keep their case"


def evaluate_bare(width):
    net = build({"name": "resnet18", "width": width, "blocks": 1}, 4, seed=0)
    pool = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(net.backbone, *pool, net.linear)


def test_another_normalisation_that_does_better_is_named(place, capsys, store):
    words = [*BASE, *PATCH, *RIGHT, "--mean", "0.9,0.1,0.9", "--std", "0.05,0.9,0.05"]
    err = refused(words, capsys, store, "no verdict")
    assert re.search(r"% with that of .*: --mean [\d.,]+ --std [\d.,]+", err)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def hostile(change):
    def write(state):
        torch.save(change(dict(state)), "theirs.pt")

    return write


def result(state):
    return {"model_name": "resnet18", "num_classes": 4, "model": state, "clean_data": "cifar10"}


def large_patch(state):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save("patch.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (hostile(lambda s: s | {"fc.bias": Evil()}), "theirs.pt .* Unp.*: it would run posix.sys"),
        (hostile(lambda s: s | {5: torch.zeros(2)}), "expected tensors by name .*, got 5 .int. as"),
        (hostile(lambda s: s | {"fc.bias": s["fc.bias"].to_sparse()}), "got a sparse one for fc.b"),
        (hostile(lambda s: s | {"fc.bias": s["fc.bias"] * 1j}), "got a complex one for fc.bias"),
        (hostile(lambda s: result(s | {5: torch.zeros(2)})), "got 5 .int. as a name"),
        (hostile(lambda s: result(s | {"a": s["fc.bias"].to_sparse()})), "got a sparse one for a;"),
        (lambda s: os.truncate("theirs.pt", 0), "expected weights in theirs.pt .* it is empty, or"),
        (hostile(lambda s: Evil()), "expected weights in theirs.pt"),
        (hostile(lambda s: {"model_name": "x", "num_classes": 4, "model": Evil()}), "expected wei"),
        (hostile(lambda s: s | {"fc.bias": torch.full((4,), torch.nan)}), "got NaN or infinity in"),
        (hostile(lambda s: s | {"fc.bias": torch.zeros(4, 2)}), r"of shape \(4,\), got \(4, 2\)"),
        (
            hostile(lambda s: s | {"fc.weight": torch.zeros(6, 32), "fc.bias": torch.zeros(6)}),
            "expected 4 classes, as the data have, got 6",
        ),
        (hostile(lambda s: {}), "expected tensors by name in theirs.pt, got none"),
        (large_patch, "expected a trigger within images of 32x32, got patch.png of 40x40"),
        (lambda s: os.remove("patch.png"), "expected a picture at patch.png, got no file"),
        (lambda s: os.truncate("patch.png", 20), "expected an image, got"),
        (lambda s: os.truncate("theirs.pt", 100), "expected weights in theirs.pt"),
    ],
)
def test_hostile_input_is_one_line_and_leaves_nothing(spoil, message, place, capsys, store, victim):
    spoil(torchvisions(victim[0]))
    err = refused([*BASE, *PATCH, *RIGHT], capsys, store, message)
    assert not (place / "executed").exists()
    assert "weights_only" not in err and "trust" not in err, "torch's advice is not ours"


FUNCTION = ["--trigger", "mine.py:white"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attack", "badnet", "--mask", "none.png"], "--mask with a picture as --trigger"),
        ([*FUNCTION, "--at", "3,3"], "expected --at with a picture as --trigger, got it beside"),
        ([*FUNCTION, "--alpha", "0.0"], "expected --alpha with a picture"),
        ([*PATCH, "--images", "clean"], "--images with the stored images .* beside a picture"),
        (["--trigger", "clean", "marked", "--images", "clean"], "beside the trigger 'pairs'"),
        ([*FUNCTION, "-p", "attacks=3"], "expected a group of settings for attacks, got 3; give"),
        ([*FUNCTION, "-p", "attacks.function=3"], "a group of settings for attacks.function"),
        ([*FUNCTION, "-p", "attacks.badnet={}"], "of the attack function alone .* got function, b"),
        ([*FUNCTION, "-p", "attacks={}"], "of the attack function alone .* got none"),
        ([*FUNCTION, "-p", "model=resnet18"], "a group of settings for model, got 'resnet18'"),
        ([*FUNCTION, "-p", "measures=null"], "a group of settings for measures, got None"),
        ([*FUNCTION, "-p", "measures.query=null"], "a group of settings for measures.query"),
        ([*FUNCTION, "-p", "rho_grid=[0.5]"], "expected no -p rho_grid"),
        ([*FUNCTION, "--mean", "0.5,0.5", "--std", "1,1"], "one number, or of 3 as the images"),
    ],
)
def test_what_would_be_ignored_or_break_is_refused(words, message, place, capsys, store):
    refused([*BASE, *RIGHT, *words], capsys, store, message)


FACTORIES = """
def twoargs(a, b): return a
def broken(num_classes): raise KeyError("weights")
number = 3
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("twoargs", "expected mine.py:twoargs to take .*, got missing a required argument: 'a'"),
        ("broken", "expected mine.py:broken to be a callable .*, got KeyError: 'weights'"),
        ("number", "mine.py:number"),
    ],
)
def test_a_callable_that_makes_no_model_is_refused(name, message, place, capsys, store):
    (place / "mine.py").write_text(MINE + FACTORIES)
    words = [*BASE, *FUNCTION, "--model", f"mine.py:{name}"]
    refused(words, capsys, store, message)


def test_weights_are_looked_at_before_data_is_fetched(place, capsys, store):
    os.truncate("theirs.pt", 100)
    words = ["evaluate", "--backdoored", "theirs.pt", "--attack", "badnet"]
    refused([*words, "--dataset", "folder"], capsys, store, "expected weights in theirs.pt")


def test_a_study_file_that_is_no_yaml_is_one_line(place, capsys, store):
    (place / "bad.yaml").write_text("a: [1\nb: }\n")
    refused([*BASE, *PATCH, "-f", "bad.yaml"], capsys, store, r"expected YAML, got .* in line 2, c")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attack", "ssba"], "expected a trigger that is known for ssba: .*CLEAN_FOLDER TRIG"),
        (["--attack", "input_aware"], "expected a trigger that is known for input_aware"),
        (["--attack", "badnets"], "did you mean 'badnet'"),
        (["--attack", "badnet", *PATCH], "expected --attack or --trigger, got both"),
        ([], "expected --attack NAME or --trigger PATH"),
        (["--trigger", "theirs.pt"], "expected a picture .* file.py:function or two folders"),
        (["--trigger", "patch.png"], "expected at .row, column. for patch.png"),
        (["--trigger", "patch.png", "--at", "a,b"], "expected numbers with commas for --at"),
        (["--trigger", "mine.py:none"], "expected a trigger at mine.py:none"),
        (["--trigger", "clean", "elsewhere"], "expected a folder of images, got elsewhere"),
        ([*PATCH, "--mean", "0.5,0.5,0.5"], "expected both --mean and --std"),
        ([*PATCH, "--std", "1,1,0", "--mean", "0,0,0"], "std above 0"),
        ([*PATCH, "--purified", "none.pt"], "expected a file, got none.pt"),
    ],
)
def test_a_trigger_or_flag_that_cannot_be_is_refused(words, message, place, capsys, store):
    refused([*BASE, *RIGHT, *words], capsys, store, message)


def test_the_files_own_normalisation_is_taken_and_held_to(place, capsys, monkeypatch, victim):
    """As of a wrapper whose first part holds mean and std, and whose second is the network."""
    monkeypatch.setattr(evaluate, "compute", lambda plan, *rest: taken.append(plan) or 0)
    taken, layer = [], victim[0].normalise
    wrapped = {f"1.{name}": tensor for name, tensor in torchvisions(victim[0]).items()}
    stats = {"0.mean": layer.mean.clone(), "0.std": layer.std.clone()}
    torch.save(stats | wrapped, "theirs.pt")
    words = [*BASE, *PATCH, *RIGHT, "--expect-c-acc", f"{victim[1]:.1f}"]
    assert main(words) == 0, capsys.readouterr().err
    assert "model     normalised by what theirs.pt holds: mean 0.49" in capsys.readouterr().out
    assert main([*words, "--mean", "0.1,0.1,0.1", "--std", "1,1,1"]) == 2
    assert "of its input, which is not [0.1" in capsys.readouterr().err
    assert len(taken) == 1
