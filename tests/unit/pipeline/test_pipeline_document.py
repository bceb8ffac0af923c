"""YAML 1.2 with line numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.document import Document, parse_value, read_yaml, show, split_override, write_yaml
from assay.errors import ConfigError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("3.", 3.0),
        ("-.inf", -math.inf),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("-3", -3),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("On", "On"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ('"1e-5"', "1e-5"),
        ("[1e-5, {a: b}]", [1e-5, {"a": "b"}]),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object):
    found = read_yaml(f"key: {text}", "x.yaml").data["key"]
    assert (found, type(found)) == (value, type(value))


@given(st.dictionaries(st.text(min_size=1, max_size=6), plain, max_size=4))
def test_what_is_written_reads_back_the_same(data: dict):
    again = read_yaml(write_yaml(data), "x.yaml").data
    assert again == data
    assert repr(again) == repr(data)  # 1 stays 1 and 1.0 stays 1.0


def test_every_value_knows_its_line():
    document = read_yaml("a: 1\nb:\n  - c: 2\n  - d:\n      e: 3\n", "r.yaml")
    assert document.origin(("b", 1, "d", "e")) == "r.yaml:5"
    assert document.origin(("b", 0, "missing")) == "r.yaml:3"
    assert document.origin(("elsewhere",)) == "r.yaml:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ['r.yaml:3: "a" is given twice', "r.yaml:1"]),
        ("s:\n  - sft: {x: 1}\n    sft: {x: 2}\n", ['r.yaml:3: "sft" is given twice']),
        ("a: [1, 2\nb: 3\n", ["r.yaml:2: not valid YAML"]),
        ("a:\n\tb: 1\n", ["r.yaml:2: not valid YAML"]),
        ("a: !!python/object/apply:os.system [true]\n", ["r.yaml:1"]),
        ("a: !env HOME\n", ["r.yaml:1: not valid YAML"]),
        ("- a\n- b\n", ["r.yaml: must be a map", "a list of 2"]),
        ("just words\n", ["r.yaml: must be a map"]),
        ("1: a\n", ["r.yaml:1: a key must be a word, not 1"]),
        ("a: 1\n---\nb: 2\n", ["r.yaml:2: not valid YAML"]),
        ("a: &x [*x]\n", ["too deeply nested"]),
        ("a: \x00\n", ["r.yaml: not valid YAML"]),
    ],
)
def test_a_broken_file_is_one_error_that_names_the_line(text: str, words: list[str]):
    with pytest.raises(ConfigError) as error:
        read_yaml(text, "r.yaml")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_exponential_tower_of_aliases_is_refused_quickly():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="too deeply nested"):
        read_yaml("\n".join(lines), "r.yaml")


def test_an_override_is_a_key_and_a_yaml_value():
    assert split_override("ppo.optim.learning_rate=1e-5") == (("ppo", "optim", "learning_rate"), 1e-5)
    assert split_override("data.path=../a=b c") == (("data", "path"), "../a=b c")
    assert split_override("x=") == (("x",), None)
    assert parse_value("a: b") == "a: b"  # no map by accident
    for bad in ("ppo", "=3", "a..b=3"):
        with pytest.raises(ConfigError, match="is not key=value"):
            split_override(bad)
    with pytest.raises(ConfigError, match="brackets"):
        split_override("x=[1, 2")


def test_setting_a_value_makes_the_maps_on_the_way_and_moves_the_origin():
    document = read_yaml("a: {b: 1}\nc:\n", "r.yaml")
    document.set(("a", "x", "y"), 2, "command line")
    document.set(("c", "d"), 3, "ASSAY_C__D")
    assert document.data == {"a": {"b": 1, "x": {"y": 2}}, "c": {"d": 3}}
    assert document.origin(("a", "x", "y")) == "command line"
    assert document.origin(("a", "b")) == "r.yaml:1"
    with pytest.raises(ConfigError, match=r"a\.b is 1, which has no key"):
        document.set(("a", "b", "c"), 4, "command line")


def test_a_replaced_map_forgets_the_lines_inside():
    document = read_yaml("a:\n  b: 1\n", "r.yaml")
    document.set(("a",), {"b": 2}, "command line")
    assert document.origin(("a", "b")) == "command line"


def test_values_are_shown_on_one_short_line():
    shown = [show(v) for v in (None, True, 1.5, "x" * 200, {"a": 1, "b": 2}, {}, [1, 2])]
    assert shown[:3] == ["nothing", "true", "1.5"]
    assert len(shown[3]) == 78
    assert shown[4:] == ["a map (a, b)", "an empty map", "a list of 2"]


def test_an_empty_file_is_an_empty_map():
    assert read_yaml("", "r.yaml").data == {}
    assert Document({}).origin(("a",)) == ""


def test_a_merged_map_gives_what_the_other_does_not_set() -> None:
    document = read_yaml("a: &one {x: 1, y: 2}\nb: {y: 3, <<: *one}\n", "r.yaml")
    assert document.data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    assert document.origin(("b", "y")) == "r.yaml:2"
