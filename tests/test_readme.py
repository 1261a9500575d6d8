"""What the README says is true."""

import io
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from ppr_core.cli.main import main
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting import results
from tests.benchmarks import inversion, pruning, rivals, scaled, separation
from tests.browser import screenshots
from tests.conftest import TINY_STUDY

RESULTS = ROOT / "notebooks" / "results"
README = (ROOT / "README.md").read_text()


@pytest.fixture
def tiny_file(tmp_path, monkeypatch):
    """The tiny study, in a folder where a user stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY_STUDY, "measures": SMALL}))
    return tmp_path / "tiny.yaml"


SMALL = {
    "query": {"clean": 20, "poisoned": 20, "width": 8, "schedule": {"epochs": 1}},
    "path": {"points": 3},
}


def test_a_defense_from_a_users_own_file(store, tiny_file, monkeypatch, capsys):
    [code] = re.findall(r"```python\n(# shrink.py\n.*?)```", README, re.DOTALL)
    (tiny_file.parent / "shrink.py").write_text(code)
    [command] = re.findall(r"`python -m ppr_core (study .* --defense \S+)`", README)
    words = command.replace("params/demo.yaml", str(tiny_file)).split()
    assert main([*words, "-p", "defenses.Shrink.schedule.epochs=1"]) == 0, capsys.readouterr().err
    file = ["report", str(tiny_file), "--defense", words[-1], "--format", "csv"]
    capsys.readouterr()
    assert main([*file, "-p", "defenses.Shrink.schedule.epochs=1"]) == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("defense")
    assert rows.loc["Shrink", "status"] == "done"
    assert 0 <= rows.loc["Shrink", "p_asr"] <= 100
    [run] = [run for run in store.search(stage="purified") if "Shrink" in run.info.run_name]
    assert run.data.params["schedule.epochs"] == "1"


def test_models_made_elsewhere(store, tiny_file, capsys):
    plan, lab = Plan(Study(**TINY_STUDY)), Lab(store)
    for name, stage in (
        ("victim", plan.backdoored(Cell("badnet", "none", 0))),
        ("purified", plan.purified(Cell("badnet", "ft", 0))),
    ):
        state = {n: t.contiguous() for n, t in lab.model(stage).state_dict().items()}
        save_file(state, f"{name}.safetensors")
    [command] = re.findall(r"python -m ppr_core (evaluate (?:.*\\\n)?.*)", README)
    words = command.replace("\\\n", " ").replace("cifar10", "shapes").split()
    assert main([*words, "-f", str(tiny_file), "--anyway"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "QRA P" in out
    assert re.search(r"badnet +purified +\d", out)


MINE = """
from torch import nn
from ppr_core import Attack, Dataset, Defense, Measure
from ppr_core.data import DATASETS

class Stripe(Attack):
    source = "a test"
    def stamp(self, images, *, stage, state):
        images = images.clone()
        images[:, :, 0] = 255
        return images

class Shrink(Defense):
    source = "a test"

class Sharpness(Measure):
    source = "a test"

class Images(Dataset):
    source = "a test"
    def load(self, root):
        return DATASETS["shapes"](train=300, test=100, size=16).load(root)

def network(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""


def test_each_kind_of_ones_own_is_one_line(store, tiny_file, capsys):
    (tiny_file.parent / "mine.py").write_text(MINE)
    lines = re.findall(r"python -m ppr_core (study demo --(\w+) (mine.py:\w+)) ", README)
    assert [kind for _, kind, _ in lines] == ["attack", "defense", "measure", "dataset", "model"]
    for line, kind, name in lines:
        assert main([*line.replace("demo", str(tiny_file)).split(), "--dry-run"]) == 0, line
        label = name.partition(":")[2]  # names keep their case
        out = capsys.readouterr().out
        assert "stages to compute" in out
        assert f"{label} " in out or kind in ("dataset", "model"), out


def test_its_commands_exist():
    for name in sorted(set(re.findall(r"python -m ppr_core (\w+)", README))):
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0, name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_its_tables_are_those_of_the_runs():
    rows, further = pd.read_csv(RESULTS / "demo.csv"), (RESULTS / "README.md").read_text()
    without_qra = rows[[name for name in rows if not re.match(r"q\w?_", name)]]
    assert results.markdown_table(without_qra) in README
    assert results.markdown_table(rows) in further
    assert scaled.table() in README
    assert scaled.paths() in further
    assert separation.table() in further
    assert separation.ranks() in further
    assert rivals.table() in further
    assert inversion.table() in further
    assert pruning.chosen() in further
    assert pruning.frontier() in further
    assert results.markdown_table(pd.read_csv(RESULTS / "implants.csv")) in further


def test_its_files_exist():
    for path in re.findall(r"(?:params|notebooks|ppr_core)/[\w/.]+\.\w+", README):
        assert (ROOT / path).exists(), path


def test_its_pictures_are_small():
    pictures = [ROOT / path for path in re.findall(r"!\[.+\]\((.+)\)", README)]
    assert len(pictures) >= 3
    for path in pictures:
        assert path.stat().st_size < 200_000, path


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (None, r"got 0 of its \d+ stages; run `python -m ppr_core study params/demo.yaml`"),
        ("no Chromium found", "expected a browser, got none: no Chromium found"),
    ],
)
def test_pictures_want_a_browser_and_the_finished_study(
    store, tmp_path, monkeypatch, capsys, missing, expected
):
    monkeypatch.setattr(screenshots.driver, "missing", lambda: missing)
    assert screenshots.main([str(tmp_path / "pictures")]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / "pictures").exists()


def test_a_small_picture_keeps_what_is_frequent():
    pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
    pixels[:32, :32] = np.arange(1024).reshape(32, 32, 1) // 4
    pixels[40:50, 40:50] = (44, 122, 75)
    picture = Image.open(io.BytesIO(screenshots.small(Image.fromarray(pixels)))).convert("RGB")
    assert len(picture.getcolors()) <= 256
    assert picture.getpixel((63, 63)) == (255, 255, 255)
    assert picture.getpixel((45, 45)) == (44, 122, 75)
    assert np.abs(np.asarray(picture).astype(int) - pixels).max() <= 8, "others by the nearest"
