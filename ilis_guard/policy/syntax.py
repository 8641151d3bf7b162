"""The syntax tree of a condition, read from what CEL's compiler made of it.

Whoever searches a condition's text for names is led astray by comments, strings and the variables of macros. CEL hands
its checked tree out as a protocol buffer, ``cel.expr.CheckedExpr`` of github.com/google/cel-spec; only the few fields
below are wanted, so they are read here without a protobuf library.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MACRO_PARTS: Final = (2, 4, 5, 6, 7)
"""Numbers of a comprehension's fields: what it goes over, what the result starts as, whether to go on, a step, the
result."""
_PRIMITIVES: Final = {1: "bool", 2: "number", 3: "number", 4: "number", 5: "string", 6: "bytes"}


class Kind(StrEnum):
    """What a part of a condition is."""

    CONSTANT = "constant"
    NAME = "name"
    FIELD = "field"
    CALL = "call"
    LIST = "list"
    MAPPING = "mapping"
    MACRO = "macro"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A part of a condition."""

    kind: Kind
    text: str = ""
    """The name, the field, the function or operator (``_<_``), a string constant, a mapping's message type, a macro's
    variable."""
    type: str = ""
    """``bool``, ``number``, ``string``, ``bytes``, ``null``, or ``list`` of one of them (``list string``); empty where
    that isn't known before it's evaluated."""
    parts: tuple["Node", ...] = ()
    """What it's made of; a call's target comes first. A macro's first part is what it goes over, the second what its
    result starts as; all but the first see its variable."""
    overloads: tuple[str, ...] = ()
    """What a call may turn out to be, by the types of its arguments: ``add_int64``."""
    offset: int = 0
    """Characters before the place in the condition's text that stands for it."""

    def walk(self) -> Iterator["Node"]:
        """This part and all those in it, from the outside in."""
        yield self
        for part in self.parts:
            yield from part.walk()


def tree(serialized: bytes) -> Node:
    """The tree in a compiled expression's serialized form."""
    return _Reader(_Message(_Message(serialized).message(2))).tree()


def expression(serialized: bytes) -> bytes:
    """The same tree as CEL wrote it, without places and types: equal for texts that mean the same."""
    return _Message(_Message(serialized).message(2)).message(4)


class _Message:
    """The fields of one protobuf message by number."""

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[bytes | int]] = {}
        position = 0
        while position < len(data):
            key, position = _varint(data, position)
            if key & 7 == _VARINT:
                value, position = _varint(data, position)
                self._fields.setdefault(key >> 3, []).append(value)
                continue
            length, position = _varint(data, position) if key & 7 == _BYTES else (_fixed_size(key & 7), position)
            self._fields.setdefault(key >> 3, []).append(data[position : position + length])
            position += length

    def __contains__(self, field: int) -> bool:
        return field in self._fields

    def messages(self, field: int) -> list[bytes]:
        return [value for value in self._fields.get(field, []) if isinstance(value, bytes)]

    def message(self, field: int) -> bytes:
        """Empty where the field is absent, as protobuf has it."""
        found = self.messages(field)
        return found[-1] if found else b""

    def number(self, field: int) -> int:
        found = self._fields.get(field, [0])[-1]
        assert isinstance(found, int), "a number's field holds a number"
        return found

    def string(self, field: int) -> str:
        return self.message(field).decode()


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _fixed_size(wire_type: int) -> int:
    return {_FIXED64: 8, _FIXED32: 4}[wire_type]


class _Reader:
    """Builds nodes from ``cel.expr.CheckedExpr``."""

    def __init__(self, checked: _Message) -> None:
        self._checked = checked
        self._references = dict(_entries(checked.messages(2)))
        self._types = dict(_entries(checked.messages(3)))
        self._positions = {
            position.number(1): position.number(2)
            for position in map(_Message, _Message(checked.message(5)).messages(4))
        }

    def tree(self) -> Node:
        return self._node(self._checked.message(4))

    def _node(self, data: bytes) -> Node:
        expression = _Message(data)
        number = expression.number(2)
        reference = _Message(self._references.get(number, b""))
        kind, text, parts = _shape(expression)
        return Node(
            kind=kind,
            text=text,
            type=_type(_Message(self._types.get(number, b""))),
            parts=tuple(self._node(part) for part in parts),
            overloads=tuple(name.decode() for name in reference.messages(3)),
            offset=self._positions.get(number, 0),
        )


def _entries(entries: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """The keys and values of a protobuf map."""
    for entry in map(_Message, entries):
        yield entry.number(1), entry.message(2)


def _shape(expression: _Message) -> tuple[Kind, str, list[bytes]]:  # noqa: PLR0911  # one for each kind
    """Kind, text and parts of a ``cel.expr.Expr``; its fields 3 to 9 are the kinds."""
    if 4 in expression:
        return Kind.NAME, _Message(expression.message(4)).string(1), []
    if 5 in expression:
        select = _Message(expression.message(5))
        return Kind.FIELD, select.string(2), [select.message(1)]
    if 6 in expression:
        call = _Message(expression.message(6))
        return Kind.CALL, call.string(2), [*call.messages(1), *call.messages(3)]
    if 7 in expression:
        return Kind.LIST, "", _Message(expression.message(7)).messages(1)
    if 8 in expression:
        struct = _Message(expression.message(8))
        entries = [_Message(entry) for entry in struct.messages(2)]
        return (
            Kind.MAPPING,
            struct.string(1),
            [part for entry in entries for part in entry.messages(3) + entry.messages(4)],
        )
    if 9 in expression:
        macro = _Message(expression.message(9))
        return Kind.MACRO, macro.string(1), [macro.message(field) for field in _MACRO_PARTS]
    return Kind.CONSTANT, _Message(expression.message(3)).string(6), []


def _type(declared: _Message) -> str:
    """The name of a ``cel.expr.Type``."""
    if 3 in declared:
        return _PRIMITIVES.get(declared.number(3), "")
    if 6 in declared:
        items = _type(_Message(_Message(declared.message(6)).message(1)))
        return f"list {items}" if items else ""
    return "null" if 2 in declared else ""
