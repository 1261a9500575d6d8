"""A checkpoint alone: what is found in it, printed and drawn, and what is said of its worth."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from ppr_core.cli.main import main
from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.models import build
from ppr_core.models.wrap import wrap
from ppr_core.reactivation.scan import Scan
from ppr_core.reporting import stand_in
from tests.cli.conftest import POOLED, TEST
from tests.cli.test_evaluate import TINY_BUDGETS, Evil
from tests.conftest import TINY_STUDY, tiny_set, torchvisions
from tests.models.test_wrap import After, drawn

KNOWN = ["--model", "resnet18_pooled"]
KNOWN += [word for name in ("stem=3", "width=4", "blocks=1") for word in ("-p", f"model.{name}")]
SHORT = [word for pair in TINY_BUDGETS for word in ("-p", pair)]


@pytest.fixture
def place(tmp_path, monkeypatch, victim):
    """A checkpoint and a folder of clean images, class by class."""
    monkeypatch.chdir(tmp_path)
    torch.save(torchvisions(victim[0]), "theirs.pt")
    for index, image in enumerate(TEST.images.permute(0, 2, 3, 1).numpy()):
        for folder in (f"images/class{int(TEST.labels[index])}", "flat"):
            os.makedirs(folder, exist_ok=True)
            Image.fromarray(image).save(f"{folder}/{index}.png")
    return tmp_path


def test_a_scan_finds_the_target_and_says_what_it_is_worth(place, capsys, victim):
    words = ["scan", "theirs.pt", "--data", "images", *SHORT]
    assert main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "model    resnet18_pooled with width=4 and blocks=1 and stem=3, by names" in out
    assert "BTI-DBF: label " in out and "votes by class: class0 " in out
    assert "Neural Cleanse: label 0 (class0); anomaly index by class: class0 " in out
    assert out.count("RA with it as a stand-in: ASR ") == 2
    assert "the search names the target of" in out
    found = json.loads((place / "theirs_scan" / "scan.json").read_text())
    cleanse = found["found"]["Neural Cleanse"]
    assert cleanse["asr"] > 90, "a live backdoor follows its patch before anything is done"
    assert np.argmin(cleanse["norms"]) == 0
    assert sum(found["found"]["BTI-DBF"]["scores"]) == 48, "three quarters of the images vote"
    for name, rows in (("bti-dbf", 3), ("neural_cleanse", 4)):
        with Image.open(place / "theirs_scan" / f"{name}.png") as picture:
            assert picture.size == (8 * 64, rows * 64)
            assert len(picture.getcolors(1 << 20)) > 8


def test_images_without_labels_take_the_models_answers(place, capsys):
    words = ["scan", "theirs.pt", "--data", "flat", *SHORT]
    assert main(words) == 2
    assert "expected --model for theirs.pt: it fits resnet18 with" in capsys.readouterr().err
    words += ["--model", "resnet18_pooled", "--out", "there"]
    words += [
        word for name in ("stem=3", "width=4", "blocks=1") for word in ("-p", f"model.{name}")
    ]
    assert main(words) == 0, capsys.readouterr().err
    assert "the model's answers stand for them" in capsys.readouterr().out
    assert (place / "there" / "scan.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "elsewhere"], "expected a folder of images, got elsewhere"),
        (["--data", "images", "--model", "resnet18"], "does not fit the model"),
        (["--data", "images", "--expect-c-acc", "50"], "expected C-Acc 50 within 1 points, got"),
        (["--data", "images", "-p", "cleanse.wantd=1"], "did you mean 'wanted'"),
        (["--data", "images", "--mean", "1,2,3"], "expected both --mean and --std"),
        (
            ["--data", "images", *KNOWN, "--mean", "1,2", "--std", "1,1"],
            "expected mean and std of one",
        ),
        (["--data", "images", "--size", "-4"], "expected --size of 1 to 1024, got -4"),
        (["--data", "images", "--size", "0"], "expected --size of 1 to 1024, got 0"),
        (["--data", "shapes", "--size", "8"], "expected a folder as --data beside --size"),
        (["--data", "images", "-p", "model=3"], "expected a group of settings for model, got 3"),
        (["--data", "images", "-p", "model=null"], "expected a group of settings for model"),
        (["--data", "images", "--out", "theirs.pt"], "got the file theirs.pt"),
        (["--data", "images", "--out", "theirs.pt/deep/er"], "got the file theirs.pt"),
        (
            ["--data", "images", "-p", "battery.counts=[0, 5]"],
            "scan.battery.counts.0: expected greater than or equal to 1",
        ),
        (["--data", "images", *KNOWN, "-p", "battery.counts=[9999]"], "at most 24 poisons"),
        (["--data", "flat", *KNOWN, "--expect-c-acc", "9"], "with labels (one folder a class)"),
    ],
)
def test_what_cannot_be_scanned_is_one_line_and_leaves_nothing(words, message, place, capsys):
    assert main(["scan", "theirs.pt", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == 1 and message in err.splitlines()[-1], err
    assert not (place / "theirs_scan").exists()


def test_a_model_that_does_not_know_the_images_is_not_scanned(place, capsys):
    torch.save(torchvisions(build(POOLED, 4, seed=3)), "theirs.pt")
    assert main(["scan", "theirs.pt", "--data", "images"]) == 2
    assert "theirs.pt: expected a C-Acc of 43.8 or more (chance is 25.0)" in capsys.readouterr().err


def test_a_search_that_a_model_cannot_serve_is_left_out(rng):
    model = wrap(drawn(After)).eval()
    settings = {"schedule": {"steps": 2, "batch_size": 16}}
    found, left_out = Scan(cleanse=settings).guesses(model, tiny_set(16, size=32), rng=rng)
    assert [guess.name for guess in found] == ["Neural Cleanse"]
    assert "expected a model with features and head" in left_out["BTI-DBF"]
    alone = Scan(cleanse=settings, searches=["Neural Cleanse"])
    assert len(alone.guesses(model, tiny_set(16, size=32), rng=rng)[0]) == 1
    assert alone.guesses(model, tiny_set(16, size=32), rng=rng)[1] == {}  # not asked for


def test_both_wake_counts_over_a_stores_purified_models(store):
    """The measurement itself, on a study that is far too small to say anything."""
    study = Study(**{**TINY_STUDY, "defenses": {"ft": TINY_STUDY["defenses"]["ft"]}})
    plan, lab = Plan(study), Lab(store)
    assert not engine.run(plan, lab)
    least = stand_in.Limits(purified=100)
    [stage] = stand_in.models(plan, lab, least)
    asleep = lab.result(stage).metrics["asr"]
    assert not stand_in.models(plan, lab, stand_in.Limits(purified=asleep - 1))
    rows = stand_in.wake_counts(stage, lab, Scan(**SCAN))
    assert set(rows["search"]) == {"BTI-DBF", "Neural Cleanse"}
    assert list(rows["model"]) == [stage.cell.label] * 2
    assert rows["real"].notna().all() and rows["real"].nunique() == 1
    assert "1 purified models are too few" in str(stand_in.correlations(rows, "", least)[0])


SCAN = {
    "inversion": {
        "width": 4,
        "pretrain": {"epochs": 1},
        "decouple": {"steps": 2},
        "generate": {"epochs": 1},
    },
    "cleanse": {"schedule": {"epochs": 1, "steps": 2}},
    "battery": {"counts": [1, 2], "retuning": {"schedule": {"epochs": 1}}},
}


def test_the_correlation_by_hand():
    rows = stand_in.pd.DataFrame(
        {
            "search": ["BTI-DBF"] * 4 + ["Neural Cleanse"] * 4,
            "stand_in": [1.0, 2.0, 5.0, float("inf"), 10.0, 5.0, 2.0, 1.0],
            "real": [1.0, 5.0, 2.0, float("inf"), 1.0, 2.0, 5.0, 10.0],
            "o_asr": 3.0,
            "found": [True, False] * 4,
        }
    )
    first, second = stand_in.correlations(rows, "made up")
    assert first.rho == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert second.rho == pytest.approx(-1)
    assert (first.p, second.p) == (pytest.approx(0.1, abs=1e-3), pytest.approx(1))
    assert "is not shown to go with" in str(first) and "Spearman -1.00" in str(second)
    assert "names the target of 2 of them" in str(first)
    rows.loc[rows["stand_in"] == float("inf"), "o_asr"] = 99.0  # not purified: left out
    assert stand_in.correlations(rows)[0].models == 3
    rows["stand_in"] = 0.0
    assert "predicts nothing: over 4 purified models" in str(stand_in.correlations(rows)[1])


def test_what_every_scan_prints_is_what_was_measured():
    kept = ROOT / "notebooks" / "results"
    found = [
        one
        for study in dict.fromkeys(said.study for said in stand_in.MEASURED)
        for one in stand_in.correlations(
            stand_in.pd.read_csv(kept / f"stand_in_{study}.csv"), study
        )
    ]
    rounded = [
        one.replace(**{n: round(getattr(one, n), 3) for n in ("rho", "p") if one.rho is not None})
        for one in found
    ]
    assert tuple(rounded) == stand_in.MEASURED
    assert len(stand_in.told()) == len(found)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: torch.save(s | {"fc.bias": Evil()}, "theirs.pt"),
            "expected weights in theirs.pt",
        ),
        (lambda s: torch.save(s | {"fc.bias": NAN}, "theirs.pt"), "NaN or infinity in fc.bias"),
        (lambda s: torch.save({}, "theirs.pt"), "no registered architecture has such tensors"),
        (
            lambda s: os.truncate("images/class1/1.png", 60),
            "class1/1.png: expected an image",
        ),
        (lambda s: os.rename("images/class1", "images/class9"), "expected a C-Acc of"),
    ],
)
def test_hostile_input_is_one_line_and_leaves_nothing(spoil, message, place, capsys, victim):
    spoil(torchvisions(victim[0]))
    assert main(["scan", "theirs.pt", "--data", "images"]) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == 1 and message in err.splitlines()[-1], err
    assert not (place / "theirs_scan").exists() and not (place / "executed").exists()


NAN = torch.full((4,), torch.nan)
