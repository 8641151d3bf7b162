import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given, strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ilis_guard.config.strict_yaml import Document, parse, read
from ilis_guard.config.validation import validate
from ilis_guard.errors import ConfigError


def parsed(text: str) -> Document:
    return parse(text, path="f.yaml", error=ConfigError)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return str(caught.value)


ALIAS_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghijklmn", "bcdefghijklmno", strict=True)
)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", "duplicate key 'a', which already stands at f.yaml:1:1"),
        ("a: {b: 1, b: 2}\n", "1:11", "duplicate key 'b'"),
        ("a: &x 1\nb: 2\n", "1:4", "anchor '&x'"),
        ("a: 1\nb: *x\n", "2:4", "alias '*x'"),
        ("? &k a\n: 1\n", "1:3", "anchor '&k'"),
        ("*x : 1\n", "1:1", "alias '*x'"),
        (ALIAS_BOMB, "1:4", "anchor '&a'"),
        ("a: !foo 1\n", "1:4", "tag '!foo'"),
        ("a: !has(b)\n", "1:4", "take it out, or put a text that starts with `!` in quotes"),
        ("a: !!python/object:os.system {}\n", "1:4", "tag"),
        ("a: !!str 1\n", "1:4", "tag"),
        ("%YAML 1.1\n---\na: no\n", "2:1", "directive"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", "2:1", "directive"),
        ("1: a\n", "1:1", "a key must be a string, got 1"),
        ("a: 1\ntrue: 2\n", "2:1", "a key must be a string, got True"),
        ("? [a]\n: 1\n", "1:3", "a key must be a string, got a list"),
        ("a: 1\n---\nb: 2\n", "2:1", "second document"),
        ("a: 1\n...\nb: 2\n", "3:1", "second document"),
        ("a:\n\tb: 1\n", "2:1", "tab"),
        ("a: 1 # x\ty\n", "1:9", "tab"),
        ("", "1:1", "the file is empty"),
        ("# nothing\n", "1:1", "the file is empty"),
        ("- a\n", "1:1", "top level must be a mapping (`key: value` lines), got a list"),
        ("just text\n", "1:1", "top level must be a mapping (`key: value` lines), got 'just text'"),
        ("a: .inf\n", "1:4", "must be finite, got '.inf'"),
        ("a: [1, -.INF]\n", "1:8", "must be finite"),
        ("a: .nan\n", "1:4", "must be finite"),
        ("a: 1e999\n", "1:4", "must be finite, got '1e999'"),
        (f"a: {'9' * 5000}\n", "1:4", "must be finite, got '999"),
        ("a: b: c\n", "1:5", "not valid YAML: mapping values are not allowed here; put a text with `: ` in it"),
        ("a: 'x\n", "1:4", "not valid YAML: found unexpected end of stream; close the quotes that open here"),
        ("a: [1,\n", "2:1", "not valid YAML"),
        ("a: x\x00y\n", "1:5", "got the character '\\x00'"),
        # Lines that end for YAML and for no editor: `b` would stand in what looks like a comment.
        ("a: 1 # x\u2028b: 2\n", "1:9", "got the character '\\u2028' (LINE SEPARATOR), which makes a text look like"),
        ("a: 1 # x\x85b: 2\n", "1:9", "got the character '\\x85'"),
        ("a: 1 # x\u2029b: 2\n", "1:9", "PARAGRAPH SEPARATOR"),
        ("a: 1\n# \u202e2 :b\n", "2:3", "RIGHT-TO-LEFT OVERRIDE"),
        ("a: 1\n# \u2066x\u2069\n", "2:3", "LEFT-TO-RIGHT ISOLATE"),
        ("a: 1\n\ufeffb: 2\n", "2:1", "got the character '\\ufeff'"),
        ("a: *" + "b" * 90_000, "1:4", f"got the alias '*{'b' * 55}...; write"),
        ("a: &" + "b" * 90_000, "1:4", f"got the anchor '&{'b' * 55}...; take"),
        (f"? {'k' * 9_000}\n: 1\n" * 2, "3:3", f"duplicate key '{'k' * 56}..., which already stands at f.yaml:1:3"),
        ("b: 1\na: \ud800\n", "2:4", "got the character"),
        ('a: "\\ud800"\n', "1:4", "half a character"),
        ('a: "b\\0"\n', "1:4", "holds a NUL"),
        ('a: "\\U00110000"\n', "1:1", "not valid YAML"),
        ("a: " + "[" * 30, "1:23", "nested more than 20 levels"),
        ("a: " + "[" * 20_000, "1:23", "nested more than 20 levels"),
        ("".join(f"{' ' * depth}k:\n" for depth in range(60)), "21:21", "nested more than 20 levels"),
    ],
)
def test_non_strict_yaml_is_refused_with_its_place(text: str, place: str, words: str) -> None:
    message = refusal(text)
    assert message.startswith(f"f.yaml:{place}: ")
    assert words in message
    assert "\n" not in message


def test_confusable_characters_may_be_escaped() -> None:
    assert parsed('\ufeffa: "\\u202e\\L\\N\\ufeff"\n').data == {"a": "\u202e\u2028\x85\ufeff"}


def test_of_many_problems_the_first_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(parsed("".join(f"namy{number}: 1\n" for number in range(3_000))), Outer, error=ConfigError)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[1] == "f.yaml:1:1: unknown key 'namy0'; did you mean 'name'?"
    assert lines[-1] == "and 2981 more problems like these"


class Part(BaseModel):
    name: str | None = None
    free: dict[str, Any] = Field(default_factory=dict)


class Whole(BaseModel):
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    named: dict[str, Part] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("part:\n  # name: x\n", "1:1", "part: has no value; give it one, or take it out"),
        ("part: null\n", "1:7", "part: has no value"),
        ("part: {name: }\n", "1:8", "part.name: has no value"),
        ("parts: [{}, {name}]\n", "1:14", "parts[1].name: has no value"),
        ("named: {x: {name: }}\n", "1:13", "named.x.name: has no value"),
    ],
)
def test_a_key_without_a_value_isnt_taken_for_one_left_out(text: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(parsed(text), Whole, error=ConfigError)
    assert str(caught.value).startswith(f"f.yaml:{place}: ")
    assert words in str(caught.value)


def test_a_value_may_be_none_where_keys_are_free() -> None:
    whole = validate(parsed("part: {free: {name: null}}\n"), Whole, error=ConfigError)
    assert whole.part == Part(free={"name": None})


def test_an_alias_bomb_costs_nothing() -> None:
    begun = time.perf_counter()
    refusal(ALIAS_BOMB)
    assert time.perf_counter() - begun < 0.2


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("1", 1),
        ("-12", -12),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("'true'", "true"),
        ('"1"', "1"),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-11-21", "2026-11-21"),
        ("1:30", "1:30"),
        ("<<", "<<"),
        (">-\n  folded\n  twice", "folded twice"),
        ("|\n  kept\n  lines", "kept\nlines\n"),
        ("''", ""),
    ],
)
def test_scalars_are_resolved_by_yaml_1_2(written: str, value: object) -> None:
    found = parsed(f"a: {written}\n").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_windows_line_ends_and_a_byte_order_mark_change_nothing() -> None:
    document = parsed("\ufeffa: 1\r\nb:\r\n  - x\r\n")
    assert document.data == {"a": 1, "b": ["x"]}
    assert document.place(("b", 0)) == "f.yaml:3:5"


TEXT = """\
top: 1
list:
  - name: x
    when: a < b
  - name: 'quo ted'
    block: >-
      folded
    escaped: "a\\x41"
empty:
"""


@pytest.mark.parametrize(
    ("keys", "place", "key_place"),
    [
        ((), "1:1", "1:1"),
        (("top",), "1:6", "1:1"),
        (("list",), "3:3", "2:1"),
        (("list", 1), "5:5", "5:5"),
        (("list", 0, "when"), "4:11", "4:5"),
        (("list", 0, "nothing", "here"), "3:5", "3:5"),
        (("nothing",), "1:1", "1:1"),
        (("empty",), "9:1", "9:1"),
    ],
)
def test_every_value_has_a_place(keys: tuple[str | int, ...], place: str, key_place: str) -> None:
    document = parsed(TEXT)
    assert document.place(keys) == f"f.yaml:{place}"
    assert document.key_place(keys) == f"f.yaml:{key_place}"


def test_place_inside_a_string_is_known_for_verbatim_scalars() -> None:
    document = parsed(TEXT)
    assert document.place_inside(("list", 0, "when"), 4) == "f.yaml:4:15"
    assert document.place_inside(("list", 1, "name"), 4) == "f.yaml:5:16"
    assert document.place_inside(("list", 1, "block"), 1) is None
    assert document.place_inside(("list", 1, "escaped"), 1) is None
    assert document.place_inside(("top",), 0) is None


class Colour(StrEnum):
    RED = "red"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["inner"]
    size: int = 0
    colours: tuple[Colour, ...] = ()

    @field_validator("size")
    @classmethod
    def _small(cls, value: int) -> int:
        if value > 9:
            raise ValueError("must be below 10")
        return value


class Other(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["other"]


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    parts: dict[str, Annotated[Inner | Other, Field(discriminator="kind")]] = {}
    share: float = 0.0


def test_a_model_is_built_from_a_document() -> None:
    outer = validate(parsed("name: n\nshare: 1\nparts: {a: {kind: inner, colours: [red]}}\n"), Outer, error=ConfigError)
    assert outer.share == 1.0
    assert outer.parts["a"] == Inner(kind="inner", colours=(Colour.RED,))


def test_every_problem_gets_a_line_with_its_place() -> None:
    text = """\
nam: x
share: '0.5'
parts:
  a:
    kind: inner
    sise: 3
    size: 10
    colours: [red, blue]
"""
    with pytest.raises(ConfigError) as caught:
        validate(parsed(text), Outer, error=ConfigError)
    lines = str(caught.value).splitlines()
    assert sorted(lines) == [
        "f.yaml:1:1: the key 'name' is missing; add it",
        "f.yaml:1:1: unknown key 'nam'; did you mean 'name'?",
        "f.yaml:2:8: share: should be a valid number, got '0.5'",
        "f.yaml:6:5: parts.a: unknown key 'sise'; did you mean 'size'?",
        "f.yaml:7:11: parts.a.size: must be below 10, got 10",
        "f.yaml:8:20: parts.a.colours[1]: should be 'red', got 'blue'",
    ]


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(parsed(f"name: [{'x' * 500}]\n"), Outer, error=ConfigError)
    assert len(str(caught.value)) < 150


def test_files_are_read_and_unreadable_ones_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_bytes(b"a: \xc3\xa9\r\n")
    assert read(good, error=ConfigError).data == {"a": "é"}
    cases: dict[str, tuple[bytes | None, str]] = {
        "missing.yaml": (None, ": there is no such file"),
        "latin.yaml": (b"a: 1\nb: \xe9\n", ":2:4: the file isn't UTF-8, got the byte 0xe9"),
        "large.yaml": (b"#" * 100_001, ":1:1: the file has more than 100000 bytes"),
        "utf16.yaml": ("a: 1".encode("utf-16"), ":1:1: the file isn't UTF-8"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read(path, error=ConfigError)
        assert str(caught.value).startswith(f"{path}{words}")
    with pytest.raises(ConfigError, match="can't be read"):
        read("a\x00b.yaml", error=ConfigError)
    with pytest.raises(ConfigError, match="is a folder"):
        read(tmp_path, error=ConfigError)


@given(st.text(alphabet=st.sampled_from(list("ab:- \n\r\t'\"[]{}&*!%#|>?,\\0x1.eU~<@`\x85\u2028\x00é")), max_size=60))
@example('"\\U00110000": 1')
@example("? ? ? a")
@example("a: !<\n")
def test_any_text_is_a_mapping_or_refused_at_a_place(text: str) -> None:
    try:
        assert isinstance(parsed(text).data, dict)
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert message.startswith("f.yaml:")
