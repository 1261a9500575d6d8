import copy
import pickle
import subprocess
import sys

import pytest
import torch

from ppr_core.attacks import ATTACKS
from ppr_core.config import Budget, Field, Settings, derive, digest, from_registry
from ppr_core.data import DATASETS, load
from ppr_core.defenses import DEFENSES
from ppr_core.errors import ConfigError
from ppr_core.lab.study import Study


class Inner(Settings):
    lr: float = Field(0.1, gt=0, description="rate")
    steps: int = Field(3, description="budget")


class Outer(Settings):
    inner: Inner = Field(Inner(lr=0.5), description="group")
    size: int = Field(2, ge=1, description="side, pixels")


def test_a_group_is_overridden_key_by_key():
    outer = Outer(inner={"steps": 9})
    assert outer.inner == Inner(lr=0.5, steps=9)
    assert outer.replace(inner={"lr": 0.2}).inner == Inner(lr=0.2, steps=9)
    assert outer.flat() == {"inner.lr": 0.5, "inner.steps": 9, "size": 2}


def test_settings_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Outer().size = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sise": 3}, "did you mean 'size'"),
        ({"size": "3"}, "expected a valid integer, got '3'"),
        ({"size": 0}, "expected greater than or equal to 1, got 0"),
        ({"size": True}, "expected a valid integer, got True"),
        ({"inner": {"lr": "1e-3"}}, r"write 1\.0e-3"),
        ({"inner": {"lr": -1}}, "expected greater than 0, got -1"),
        ({"inner": {"rate": 1}}, r"Outer\.inner: unknown setting: 'rate'"),
    ],
)
def test_bad_settings_say_expected_and_got(values, message):
    with pytest.raises(ConfigError, match=message):
        Outer(**values)


def test_describe_gives_the_groups_own_defaults():
    rows = {row["name"]: row for row in Outer.describe()}
    assert rows["inner.lr"]["default"] == "0.5"
    assert rows["size"] == {
        "name": "size",
        "type": "int",
        "default": "2",
        "meaning": "side, pixels",
    }


def test_registry_names_what_is_known():
    assert from_registry({"inner": Inner}, {"name": "inner", "steps": 1}, "thing").steps == 1
    with pytest.raises(ConfigError, match=r"unknown thing: 'iner' \(did you mean 'inner'\?\)"):
        from_registry({"inner": Inner}, "iner", "thing")


def test_errors_name_what_the_user_wrote():
    with pytest.raises(ConfigError) as error:
        from_registry({"outer": Outer}, {"name": "outer", "inner": {"lr": -1}, "sise": 1}, "thing")
    assert str(error.value).startswith("thing.inner.lr: expected greater than 0, got -1")
    with pytest.raises(ConfigError, match=r"^thing mine\.size: expected greater") as error:
        from_registry({"outer": Outer}, {"name": "outer", "size": 0}, "thing", "thing mine")
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


class Outermost(Settings):
    outer: Outer = Field(Outer(size=3), description="group of a group")


@pytest.mark.parametrize("build", [Outermost, Outermost().replace])
def test_the_path_of_a_group_in_a_group_is_whole(build):
    with pytest.raises(ConfigError, match=r"^Outermost\.outer\.inner\.lr: expected greater"):
        build(outer={"inner": {"lr": -1}})


class Bounded(Settings):
    eps: Budget = Field(8 / 255, description="of a pixel")


def test_budgets_are_written_as_fractions_and_are_the_same_numbers():
    assert Bounded(eps="8/255") == Bounded()
    assert Bounded(eps="1.5/255").eps == 1.5 / 255
    assert Bounded(eps=0).eps == 0.0
    assert Bounded(eps="16/255").flat() == {"eps": 16 / 255}


@pytest.mark.parametrize("wrong", ["8", "8/0", "8/255/2", "eight", "512/255", 2, -0.1, True])
def test_a_budget_outside_0_to_1_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"Bounded\.eps: expected .*, got"):
        Bounded(eps=wrong)


def test_derive_is_the_same_on_every_machine_and_differs_by_name():
    def draw(*path):
        return torch.randint(0, 10**6, (3,), generator=derive(*path)).tolist()

    assert draw(0, "defense", "pam") == draw(0, "defense", "pam")
    assert derive(0, "reserve").initial_seed() == int(digest([0, "reserve"])[:15], 16)
    assert len({tuple(draw(*path)) for path in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1)]}) == 4


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\npoison_rat: 0.1", "did you mean 'poison_rate'"),
        ("name: x\npoison_rate: 2", "expected less than or equal to 1, got 2"),
        ("name: x\nseeds: []", "expected at least one seed"),
        ("name: x\nseeds: [1, 1]", "expected distinct seeds"),
        ("seeds: [0]", "Study.name: expected a value, got none"),
        ("name: [", "expected YAML"),
        ("- 1", "expected a mapping"),
    ],
)
def test_a_bad_study_file_is_refused(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Study.load(path)


def test_a_missing_study_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        Study.load(tmp_path / "none.yaml")


def test_a_study_may_change_another(tmp_path):
    (tmp_path / "first.yaml").write_text("name: first\nreserve: 10\nattacks: {badnet: {}}\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nname: second\nreserve: 20\n")
    study = Study.load(tmp_path / "second.yaml")
    assert (study.name, study.reserve, study.attacks) == ("second", 20, {"badnet": {}})
    (tmp_path / "first.yaml").write_text("base: second.yaml\nname: first\n")
    with pytest.raises(ConfigError, match="lead back to itself"):
        Study.load(tmp_path / "second.yaml")
    (tmp_path / "third.yaml").write_text("base: none.yaml\nname: third\n")
    with pytest.raises(ConfigError, match="no such file"):
        Study.load(tmp_path / "third.yaml")


# -- a user's own ----------------------------------------------------------------------------------

OWN = """
from ppr_core.attacks import Attack
from ppr_core.config import Field
from ppr_core.data import Dataset, Split
from ppr_core.data.images import ImageSet
from ppr_core.defenses import Defense
import torch

class MyAttack(Attack):
    pass

class MyDefense(Defense):
    strength: int = Field(1, ge=0, description="of it")

class MyData(Dataset):
    shade: int = Field(7, description="grey level")

    def load(self, root):
        return Split(self.part(), self.part())

    def part(self):
        images = torch.full((4, 3, 8, 8), self.shade, dtype=torch.uint8)
        return ImageSet(images, torch.arange(4) % 2, ("a", "b"))

thing = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "MyMethods.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("import torch\nnonsense()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", ["MyMethods", "MyMethods.py"])
def test_a_users_own_class_is_named_where_it_lies(own, place):
    attack = from_registry(ATTACKS, {"name": f"{place}:MyAttack", "target": 3}, "attack")
    assert (type(attack).__name__, attack.target) == ("MyAttack", 3)
    defense = from_registry(DEFENSES, {"name": f"{place}:MyDefense", "strength": 2}, "defense")
    assert (defense.strength, from_registry(DEFENSES, "ft", "defense").own_code()) == (2, None)
    assert len(defense.own_code()) == 64
    with pytest.raises(ConfigError, match="did you mean 'strength'"):
        from_registry(DEFENSES, {"name": f"{place}:MyDefense", "strengt": 2}, "defense")
    data = load({"name": f"{place}:MyData", "shade": 9}, own)
    assert data.train.images.unique().tolist() == [9]
    (cached,) = (own / "cache").glob("*")
    assert cached.name.startswith("MyData-")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such:Thing", "No module named 'no'"),
        ("none.py:Thing", "no file .*none.py"),
        ("MyMethods.py:Other", "no attribute 'Other'"),
        ("MyMethods.py:thing", "expected MyMethods.py:thing to be a subclass of Defense, got 3"),
        ("MyMethods.py:MyAttack", "to be a subclass of Defense"),
        ("broken.py:Thing", "got NameError: name 'nonsense' is not defined"),
        (":Thing", "got an empty name"),
    ],
)
def test_a_users_own_that_cannot_be_had_says_why(own, path, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_registry(DEFENSES, path, "defense")
    assert "\n" not in str(caught.value)


def test_a_users_own_reaches_another_process_and_stays_one_class(own):
    defense = from_registry(DEFENSES, {"name": "MyMethods.py:MyDefense", "strength": 4}, "defense")
    assert pickle.loads(pickle.dumps(defense)) == copy.deepcopy(defense) == defense
    (own / "sent").write_bytes(pickle.dumps({"method": defense}))
    code = "import pickle; print(pickle.load(open('sent', 'rb'))['method'].strength)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=own)
    assert done.stdout.strip() == "4", done.stderr


def test_other_settings_are_pickled_as_ever():
    outer = Outer(inner={"steps": 9})
    assert pickle.loads(pickle.dumps(outer)) == outer
    assert pickle.loads(pickle.dumps(outer)).model_fields_set == {"inner"}
    assert DATASETS["shapes"]().own_code() is None
