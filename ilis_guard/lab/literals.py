"""Python and JSON values in texts: lists, tuples, sets, dictionaries and strings, however they are written."""

import ast
import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

_FENCE: Final = re.compile(r"```[a-z]*\n?")
_MARKUP: Final = re.compile(r"\*\*(?=[\[({'\"])|(?<=[\])}'\"])\*\*")
_BARE_MARKS: Final = "`*_"
"""Around a string without quotes: marks of Markdown."""
_STRING: Final = re.compile(r"""(?<![\w'"])(?:'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")""")
_BRACKETS: Final = {"(": ")", "[": "]", "{": "}"}
_OPERAND: Final = re.compile(r"\s*(?:[+*/%&|^<>\[(]|==|-\s*[\[({]|\.\w)")
"""What follows a value that a longer expression only works on."""
_OPERATED: Final = re.compile(r"(?:[\w\])]|\S[ ]*(?:[+*/%&|^<]|(?<![-=])>)[ ]*)$")
"""What stands before such a value, or before the arguments of a call."""
_UNKNOWN_ESCAPE: Final = re.compile(r"\\(?![\\'\"abfnrtvxuUN0-7\n])")
_LONGEST: Final = 4_000
"""Characters of a text that are looked through: its last ones."""
_DEEPEST: Final = 20


def literal(text: str) -> Any:
    """Read a whole text as a value: a Python literal, or JSON.

    Raises:
        ValueError: it isn't one.
    """
    if _UNKNOWN_ESCAPE.search(text):
        raise ValueError("it has an escape that Python doesn't know")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        try:
            return json.loads(text)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def is_collection_or_string(text: str) -> bool:
    """Return whether a whole text is a value of the kinds that are found in sentences, too: no number, no truth."""
    try:
        return isinstance(literal(text), Collection)
    except ValueError:
        return False


def gives_literal(golds: Sequence[str], question: str, text: str) -> bool:
    """Return whether a text gives one of several values as its own.

    It does where the whole text is the value, a string also without its quotes; or where the last value in it is, or
    the last one that doesn't repeat the question. What a text only calculates with (``[1] + [2]``) isn't given.
    """
    values = [literal(gold) for gold in golds]
    plain = _MARKUP.sub("", _FENCE.sub("", text)).strip()
    bare = plain.strip(_BARE_MARKS)
    if any(isinstance(value, str) and value in (plain, bare, bare.removesuffix(".")) for value in values):
        return True
    try:
        given = [literal(bare)]
    except ValueError:
        found = list(_values_in(plain[-_LONGEST:]))
        asked = list(_values_in(question[-_LONGEST:], operands=True))
        given = found[-1:] + [value for value in found if not any(_is_same(value, other) for other in asked)][-1:]
    return any(_is_same(value, gold) for value in given for gold in values)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of one type: neither is ``True`` 1, nor a list a tuple."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _values_in(text: str, *, operands: bool = False) -> Iterator[Any]:
    """The strings and collections that stand in a text, from left to right.

    Args:
        text: an answer, or a question.
        operands: also those that a longer expression works on.
    """
    end = 0
    for start, stop in sorted(_spans(text)):
        if start < end:
            continue
        if not operands and (_OPERATED.search(text, max(start - 20, 0), start) or _OPERAND.match(text, stop)):
            end = stop  # with what is inside: arguments are no results
            continue
        try:
            value = literal(text[start:stop])
        except ValueError:
            continue
        if isinstance(value, Collection):
            end = stop
            yield value


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where strings and brackets begin and end."""
    opened: list[int] = []
    place = 0
    while place < len(text):
        if string := _STRING.match(text, place):
            yield string.span()
            place = string.end()
            continue
        character = text[place]
        if character in _BRACKETS:
            opened.append(place)
        elif opened and character in _BRACKETS.values():
            start = opened.pop()
            if _BRACKETS[text[start]] == character and len(opened) < _DEEPEST:
                yield start, place + 1
        place += 1
