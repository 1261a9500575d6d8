import pytest

from ppr_core.errors import ConfigError
from ppr_core.lab.settings_file import pair_of, parse, put, read
from ppr_core.lab.study import Study


def laughs(levels):
    """Ten aliases of ten aliases of ten aliases."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: expected one a, got another one"),
        ("a: {b: 1, b: 2}", "line 1: expected one b"),
        (laughs(10), "at most 100,000 values, got more; too many aliases"),
        ("a: " + "[" * 40 + "]" * 40, "nested more than 30 deep"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than 30 deep"),
        ("a: &a [*a]", "nested more than 30 deep"),
        ("a: [1\nb: }", "expected YAML, got .* in line 2, column 2"),
        ("a: !!python/object/apply:os.getcwd []", "expected YAML, got"),
    ],
)
def test_yaml_that_does_not_mean_what_it_seems_to_is_refused_at_once(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_what_files_use_is_read_as_ever():
    text = "one: &one {a: 1, b: [2, 3]}\ntwo: {<<: *one, a: 4}\nthree: {<<: *one}"
    assert parse(text) == {
        "one": {"a": 1, "b": [2, 3]},
        "two": {"a": 4, "b": [2, 3]},
        "three": {"a": 1, "b": [2, 3]},
    }
    assert parse(laughs(3))["a2"][9][9][9] == "x"
    assert parse("") is None


def test_files_that_are_no_study(tmp_path):
    file = tmp_path / "study.yaml"
    for content, message in (
        (b"\xff\xfename: x", "expected a file in UTF-8"),
        (b"name: x\n#" + b"y" * 2_000_000, "at most 1,000,000 bytes, got 2,000,009"),
        (b"- 1\n- 2", "expected a mapping of settings"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read(file)
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path)


def test_a_list_keeps_those_parts_of_a_group_that_it_names(tmp_path):
    (tmp_path / "whole.yaml").write_text("name: a\nattacks: {one: {a: 1}, two: {b: 2}}\nseeds: [0]")
    file = tmp_path / "part.yaml"
    file.write_text("base: whole.yaml\nattacks: [two]\nseeds: [1, 2]")
    values = read(file)
    assert values == {"name": "a", "attacks": {"two": {"b": 2}}, "seeds": [1, 2]}
    values = read(tmp_path / "whole.yaml")
    put(values, *pair_of("attacks=[two, one]"))
    assert list(values["attacks"].items()) == [("two", {"b": 2}), ("one", {"a": 1})]
    with pytest.raises(ConfigError, match="unknown part of attacks: 'twoo' .did you mean 'two'"):
        put(values, *pair_of("attacks=[twoo]"))
    file.write_text("base: whole.yaml\nattacks: [three]")
    with pytest.raises(ConfigError, match="unknown part of attacks: 'three'"):
        read(file)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "a.", "x" * 101])
def test_names_that_no_file_can_have(name):
    with pytest.raises(ConfigError, match=r"expected a (plain )?study name"):
        Study(name=name)
    assert Study(name="table 3 (1 %)", defenses={"pam@0.5/a": {"method": "pam"}})


@pytest.mark.parametrize("label", ["", " ", "a\nb", "x" * 101])
def test_labels_that_no_table_can_show(label):
    with pytest.raises(ConfigError, match=r"expected a (plain )?label in defenses"):
        Study(name="x", defenses={label: {}})


@pytest.mark.parametrize("seeds", [[-1], [2**32], [], [0, 0]])
def test_seeds_that_nothing_can_be_drawn_from(seeds):
    with pytest.raises(ConfigError, match="seed"):
        Study(name="x", seeds=seeds)
