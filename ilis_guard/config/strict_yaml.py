"""Strict YAML: every error names file, line and column.

Refused are duplicate keys (most parsers let the last one win), anchors and aliases (15 lines can expand to gigabytes),
tags, directives, tabs, several documents, infinities and NaN, and characters that make a line look like another. Plain
scalars follow the YAML 1.2 core schema: ``no`` is a string, ``1e-3`` is a number.

Values are built straight from the parser's events. So each construct above is refused before anything could expand,
and each value keeps its place.
"""

import difflib
import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from ilis_guard.errors import IlisGuardError

MAX_BYTES: Final = 100_000
"""Far more than any policy needs; the most hostile text of this size takes about a second."""
MAX_DEPTH: Final = 20
"""Levels of nested mappings and lists."""
_LONGEST_TAG: Final = 200
"""Characters before a node in which its tag is looked for."""
_LONGEST_QUOTED: Final = 60
"""Characters of a text that a message writes out in quotes."""
MAX_PROBLEMS: Final = 20
"""Lines of one error message."""

Keys = tuple[str | int, ...]
"""The path of a value: mapping keys and list indices from the top."""

_CONSTANTS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,400}")
_BASED_INTEGER: Final = re.compile(r"0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_MISLEADING: Final = re.compile("[\x85\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
"""Line ends that no editor shows as such (a rule could hide in what looks like a comment), overrides of the text's
direction, and byte order marks after the start."""
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place in the text; all three count from 0."""

    line: int
    column: int
    index: int


@dataclass(frozen=True, slots=True)
class _Spot:
    """The places of a key (in a list: of the item itself) and of its value."""

    key: _Mark
    value: _Mark


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document as plain values, with the place of each."""

    path: str
    """The name in messages."""
    data: dict[str, Any]
    """Only dict, list, str, int, float (finite), bool and None."""
    text: str
    """With line ends as ``\\n``."""
    _spots: Mapping[Keys, _Spot] = field(repr=False)

    def place(self, keys: Keys = ()) -> str:
        """``file:line:column``, counted from 1, of the value at `keys`, or of its nearest parent that exists."""
        return _place(self.path, self._nearest(keys).value)

    def key_place(self, keys: Keys) -> str:
        """As `place`, but of the key itself."""
        return _place(self.path, self._nearest(keys).key)

    def problem(self, keys: Keys, message: str) -> str:
        """Describe a problem of the value at `keys`: its place, its path, and what to do."""
        return f"{self.place(keys)}: {_key_path(keys)}{message}"

    def key_problem(self, keys: Keys, message: str) -> str:
        """Describe a problem of the key itself, which shouldn't be there: its place, its parent's path, what to do."""
        return f"{self.key_place(keys)}: {_key_path(keys[:-1])}{message}"

    def place_inside(self, keys: Keys, offset: int) -> str | None:
        """The place of character number `offset` (from 0) of a string value.

        None where the file doesn't hold the value literally on one line: a block, a folded or an escaped string.
        """
        value: Any = self.data
        for key in keys:
            value = value[key]
        mark = self._nearest(keys).value
        if not isinstance(value, str) or "\n" in value:
            return None
        opening = 1 if self.text[mark.index : mark.index + 1] in ("'", '"') else 0
        if not self.text.startswith(value, mark.index + opening):
            return None
        return _place(self.path, _Mark(mark.line, mark.column + opening + offset, mark.index + opening + offset))

    def place_in_text(self, keys: Keys, offset: int) -> str:
        """As `place_inside`, or the place of the value where the file doesn't hold it literally."""
        return self.place_inside(keys, offset) or self.place(keys)

    def place_at(self, index: int) -> str:
        """The place of the text's character number `index` (from 0)."""
        return _place(self.path, _mark_at(self.text, index))

    def existing(self, keys: Keys) -> Keys:
        """`keys` without those that the document lacks, such as the tags that pydantic inserts for unions."""
        found: Keys = ()
        for key in keys:
            if (*found, key) in self._spots:
                found = (*found, key)
        return found

    def _nearest(self, keys: Keys) -> _Spot:
        while keys not in self._spots:
            keys = keys[:-1]
        return self._spots[keys]


def read(path: Path | str, *, error: type[IlisGuardError], max_bytes: int = MAX_BYTES) -> Document:
    """Read a YAML file.

    Args:
        path: the file; messages show it unchanged.
        error: the class of the error.
        max_bytes: larger files are refused unread.

    Raises:
        IlisGuardError: as `error`: the file can't be read, or isn't strict YAML; see the module.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise error(f"{path}: there is no such file; check the path (relative paths start at {Path.cwd()})") from None
    except IsADirectoryError:
        raise error(f"{path}: is a folder; name the YAML file inside it") from None
    except (OSError, ValueError) as problem:  # a ValueError where the path itself is none
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: can't be read ({reason}); check its path and permissions") from problem
    if len(raw) > max_bytes:
        raise _too_large(str(path), max_bytes, error)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        before = raw[: problem.start].decode("utf-8")
        mark = _mark_at(before, len(before))
        raise error(
            f"{_place(str(path), mark)}: the file isn't UTF-8, got the byte {raw[problem.start]:#04x}; save it as UTF-8"
        ) from None
    return parse(text, path=str(path), error=error, max_bytes=max_bytes)


def _too_large(path: str, max_bytes: int, error: type[IlisGuardError]) -> IlisGuardError:
    return error(f"{path}:1:1: the file has more than {max_bytes} bytes; split it, or take comments out")


def parse(text: str, *, path: str, error: type[IlisGuardError], max_bytes: int = MAX_BYTES) -> Document:
    """Read YAML from a string.

    Args:
        text: one YAML document whose top level is a mapping.
        path: the text's name in messages.
        error: the class of the error.
        max_bytes: longer texts, in UTF-8, are refused unread.

    Raises:
        IlisGuardError: as `error`: the text isn't strict YAML; see the module.
    """
    if len(text) > max_bytes or len(text.encode(errors="replace")) > max_bytes:
        raise _too_large(path, max_bytes, error)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if "\t" in text:
        raise error(f"{_place(path, _mark_at(text, text.index(chr(9))))}: got a tab; indent and align with spaces")
    if match := _MISLEADING.search(text):
        character = match.group()
        raise error(
            f"{_place(path, _mark_at(text, match.start()))}: got the character {character!a} "
            f"({unicodedata.name(character, 'a control')}), which makes a text look like another; take it out, or "
            f"write {character!a} in double quotes"
        )
    reader = _Reader(text=text, path=path, error=error)
    data = reader.document()
    return Document(path=path, data=data, text=text, _spots=reader.spots)


class _Reader:
    """Builds plain values from the parser's events, and records their places."""

    def __init__(self, *, text: str, path: str, error: type[IlisGuardError]) -> None:
        self.spots: dict[Keys, _Spot] = {}
        self._text = text
        self._path = path
        self._error = error
        self._last = _Mark(0, 0, 0)
        self._events = self._parsed()

    def document(self) -> dict[str, Any]:
        next(self._events)  # the start of the stream
        start = next(self._events)
        if isinstance(start, StreamEndEvent):
            self._refuse(_Mark(0, 0, 0), "the file is empty; it must hold a mapping (`key: value` lines)")
        if isinstance(start, DocumentStartEvent) and (start.version or start.tags):
            self._refuse(_mark(start), "got a % directive; take it out: this is always read as YAML 1.2")
        first = next(self._events)
        if not isinstance(first, MappingStartEvent):
            self._refuse(_mark(first), f"the top level must be a mapping (`key: value` lines), got {_kind(first)}")
        self.spots[()] = _Spot(_mark(first), _mark(first))
        data: dict[str, Any] = self._value(first, ())
        next(self._events)  # the end of the document
        after = next(self._events)
        if not isinstance(after, StreamEndEvent):
            self._refuse(_mark(after), "a second document starts here; keep one document in a file")
        return data

    def _parsed(self) -> Iterator[Event]:
        """The parser's events; its errors become ours."""
        try:
            for event in YAML(typ="safe", pure=True).parse(self._text):
                self._last = _mark(event)
                yield event
        except MarkedYAMLError as problem:
            mark = problem.problem_mark or problem.context_mark
            where = self._last if mark is None else _Mark(mark.line, mark.column, mark.index)
            if "quoted scalar" in str(problem.context) and problem.context_mark is not None:
                opened = problem.context_mark
                where = _Mark(opened.line, opened.column, opened.index)
                self._refuse(where, f"not valid YAML: {problem.problem}; close the quotes that open here")
            while_doing = f" ({problem.context})" if problem.context else ""
            self._refuse(where, f"not valid YAML: {problem.problem}{while_doing}; {_yaml_hint(str(problem.problem))}")
        except ReaderError as problem:
            where = _mark_at(self._text, problem.position)
            self._refuse(where, f"got the character {chr(problem.character)!r}; take it out")
        except (YAMLError, ValueError, OverflowError) as problem:  # e.g. the escape "\U00110000", which is no character
            self._refuse(self._last, f"not valid YAML after this place: {shorten(str(problem))}")

    def _value(self, event: Event, keys: Keys) -> Any:
        self._refuse_extras(event)
        if isinstance(event, ScalarEvent):
            return self._scalar(event)
        if len(keys) >= MAX_DEPTH:
            self._refuse(_mark(event), f"nested more than {MAX_DEPTH} levels deep; flatten it")
        return self._mapping(keys) if isinstance(event, MappingStartEvent) else self._list(keys)

    def _mapping(self, keys: Keys) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._key(event)
            inside = (*keys, key)
            if key in mapping:
                first = _place(self._path, self.spots[inside].key)
                what = f"duplicate key {shorten(key)}, which already stands at {first}; keep one of them"
                self._refuse(_mark(event), what)
            content = next(self._events)
            # The parser places an empty value where the next token starts.
            self.spots[inside] = _Spot(_mark(event), _mark(event if _is_empty(content) else content))
            mapping[key] = self._value(content, inside)
        return mapping

    def _list(self, keys: Keys) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            inside = (*keys, len(items))
            self.spots[inside] = _Spot(_mark(event), _mark(event))
            items.append(self._value(event, inside))
        return items

    def _key(self, event: Event) -> str:
        self._refuse_extras(event)
        key = self._scalar(event) if isinstance(event, ScalarEvent) else None
        if not isinstance(key, str):
            got = _kind(event) if key is None else shorten(key)
            self._refuse(_mark(event), f"a key must be a string, got {got}; put it in quotes if it is meant as a name")
        return key

    def _scalar(self, event: ScalarEvent) -> str | int | float | bool | None:
        text = event.value
        if not event.implicit[0]:  # quoted, or a block: always a string
            return self._string(event)
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _BASED_INTEGER.fullmatch(text):
            return int(text, 0)
        number = float(text) if _FLOAT.fullmatch(text) else None
        if _NOT_FINITE.fullmatch(text) or (number is not None and not math.isfinite(number)):
            self._refuse(_mark(event), f"a number must be finite, got {shorten(text)}; write a finite number")
        return self._string(event) if number is None else number

    def _string(self, event: ScalarEvent) -> str:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._refuse(_mark(event), f"the string {shorten(text)} has half a character; write it out, or as \\U")
        if "\0" in text:
            self._refuse(_mark(event), f"the string {shorten(text)} holds a NUL, which databases refuse; take it out")
        return text

    def _refuse_extras(self, event: Event) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._refuse_sign(event, "!", f"got the tag {shorten(str(tag))}; take it out")
        if isinstance(event, AliasEvent):
            self._refuse_sign(event, "*", f"got the alias {shorten(f'*{event.anchor}')}; write the value out")
        if isinstance(event, NodeEvent) and event.anchor is not None:
            what = f"got the anchor {shorten(f'&{event.anchor}')}; take it out, write values out"
            self._refuse_sign(event, "&", what)

    def _refuse_sign(self, event: Event, sign: str, what: str) -> NoReturn:
        """Refuse what a text's first character makes of it, which was likely meant as a text."""
        start = self._start_of(event, sign)
        text = self._text[start.index :].partition("\n")[0].strip()
        is_simple = text.startswith(sign) and len(text) <= _LONGEST_QUOTED and not set(text) & set("'\"{}[],#")
        quoted = f": '{text}'" if is_simple else ""
        self._refuse(start, f"{what}, or put a text that starts with `{sign}` in quotes{quoted}")

    def _start_of(self, event: Event, sign: str) -> _Mark:
        """Where a node starts with a sign: the parser marks only the last of its tag and its anchor."""
        mark = _mark(event)
        start = max(mark.index - mark.column, mark.index - _LONGEST_TAG)
        match = re.search(rf"(?<![^\s:,\[{{-]){re.escape(sign)}\S*\s+$", self._text[start : mark.index])
        return mark if match is None else _mark_at(self._text, start + match.start())

    def _refuse(self, mark: _Mark, what: str) -> NoReturn:
        raise self._error(f"{_place(self._path, mark)}: {what}")


def _yaml_hint(problem: str) -> str:
    if problem.startswith("mapping values"):
        return "put a text with `: ` in it in quotes"
    if "cannot start any token" in problem:
        return "put a text that starts with it in quotes"
    return "check quotes, colons and indentation"


def _mark(event: Event) -> _Mark:
    return _Mark(event.start_mark.line, event.start_mark.column, event.start_mark.index)


def _mark_at(text: str, index: int) -> _Mark:
    line_start = text.rfind("\n", 0, index) + 1
    return _Mark(text.count("\n", 0, index), index - line_start, index)


def _place(path: str, mark: _Mark) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}"


def _is_empty(event: Event) -> bool:
    return isinstance(event, ScalarEvent) and event.value == "" and event.implicit[0]


def _kind(event: Event) -> str:
    if isinstance(event, SequenceStartEvent):
        return "a list"
    if isinstance(event, MappingStartEvent):
        return "a mapping"
    return shorten(event.value) if isinstance(event, ScalarEvent) else "an alias"


def _key_path(keys: Keys) -> str:
    """``rules[0].when: ``; empty for the top level."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    return f"{path}: " if path else ""


def list_problems(problems: Iterable[str], count: int) -> str:
    """An error message of `count` problems: one line each, at most `MAX_PROBLEMS`, and how many more there are."""
    lines = [*itertools.islice(problems, MAX_PROBLEMS)]
    left = count - len(lines)
    return "\n".join([*lines, *([f"and {left} more problems like these"] if left > 0 else [])])


def suggest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'right'?`` where one of `names` resembles `name`, otherwise nothing."""
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def shorten(value: object) -> str:
    """A value as messages show it, on one line of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
