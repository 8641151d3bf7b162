"""Comparisons of unlike types, which CEL calls not equal, and conditions call an error.

A label is whatever its caller says. In plain CEL ``labels.minor != true`` holds where the label is ``'true'``: who
writes the one for the other would switch off the rule that asks for it. CEL refuses to ask whether 'true' is smaller
than true, and here it refuses to ask whether the two are equal. What it makes of an error it makes of this one:
``a || b`` is true where `a` is, whatever `b` would be.

So a compiled condition's comparisons are replaced, where its types can't be told before it is evaluated, by functions
that have no overload for unlike types. Whole numbers and fractions are alike; true and false are no numbers.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any, Final

from cel_expr_python import cel

from ilis_guard.policy.protobuf import Message
from ilis_guard.types.requests import nfc

EQUAL, DIFFERENT, MEMBER = "@strict==", "@strict!=", "@strict_in"
"""Names that no condition can call a function by."""
_REPLACED: Final = {"_==_": EQUAL, "_!=_": DIFFERENT, "@in": MEMBER}

_TYPE_NAMES: Final = {bool: "bool", int: "number", float: "number", str: "string", bytes: "bytes", list: "list"}
_CEL_NAMES: Final = {"int64": "number", "uint64": "number", "double": "number", "int": "number", "uint": "number"}
_NO_OVERLOAD: Final = re.compile(r"No matching overloads found : (?:\((\w+)\)\.)?([^\s(]+?)(?:\((.*)\))?$")
_CALLED: Final = {"<jump_condition>": "? :", "<iter_range>": "a macro"}
"""CEL's own names for what it calls."""

_TEXT, _DYNAMIC, _LIST, _MAP, _PARAMETER = 6, 1, 6, 7, 10
"""Fields of a ``cel.expr.Constant`` and of a ``cel.expr.Type``."""
_EXPRESSIONS: Final = {5: (1,), 6: (1, 3), 7: (1,), 9: (2, 4, 5, 6, 7)}
"""By field of a ``cel.expr.Expr``, which says its kind: the fields in it that hold expressions."""


class UnlikeTypesError(TypeError):
    """Values of unlike types can't be compared."""

    def __init__(self, operator: str, one: str, other: str) -> None:
        super().__init__(f"No matching overloads found : {operator}({one}, {other})")


def functions() -> list[cel.FunctionDecl]:
    """What the comparisons are replaced by, for CEL's environment."""
    kinds = {name: getattr(cel.Type, name) for name in ("BOOL", "STRING", "BYTES", "INT", "UINT", "DOUBLE", "LIST", "MAP")}
    numbers = ("INT", "UINT", "DOUBLE")
    alike = [(name, name) for name in kinds if name not in numbers] + list(itertools.product(numbers, numbers))
    contained = list(itertools.product(kinds, ("LIST", "MAP")))

    def declared(name: str, pairs: list[tuple[str, str]], function: Callable[[Any, Any], bool]) -> cel.FunctionDecl:
        overloads = [
            cel.Overload(f"{name}_{one}_{other}", cel.Type.BOOL, [kinds[one], kinds[other]], False, function)  # noqa: FBT003
            for one, other in pairs
        ]
        return cel.FunctionDecl(name, overloads)

    return [
        declared(EQUAL, alike, _equal),
        declared(DIFFERENT, alike, lambda one, other: not _equal(one, other)),
        declared(MEMBER, contained, _is_member),
    ]


def strict(serialized: bytes) -> bytes:
    """A compiled expression, serialised, whose comparisons of unlike types are errors, and whose texts are in NFC."""
    envelope = Message(serialized)
    checked = Message(envelope.message(2))
    types = {entry.number(1): Message(entry.message(2)) for entry in checked.messages(3)}

    def expression(data: bytes) -> bytes:
        node = Message(data)
        node.change(3, _with_nfc)
        for field, fields in _EXPRESSIONS.items():
            node.change(field, lambda data, fields=fields, field=field: inner(data, field, fields))  # type: ignore[misc]
        node.change(8, mapping)
        return node.encode()

    def inner(data: bytes, field: int, fields: tuple[int, ...]) -> bytes:
        node = Message(data)
        if field == 6 and (name := _REPLACED.get(node.string(2))) and _may_be_unlike(name, node, types):
            node.change(2, lambda _: name.encode())
        for each in fields:
            node.change(each, expression)
        return node.encode()

    def mapping(data: bytes) -> bytes:
        node = Message(data)
        node.change(2, entry)
        return node.encode()

    def entry(data: bytes) -> bytes:
        node = Message(data)
        node.change(3, expression)
        node.change(4, expression)
        return node.encode()

    checked.change(4, expression)
    envelope.change(2, lambda _: checked.encode())
    return envelope.encode()


def unlike_types(complaint: str) -> tuple[str, tuple[str, ...]] | None:
    """The function or operator that CEL has no overload of, and the types that it got, where they're said; else None."""
    match = _NO_OVERLOAD.search(complaint.partition("\n")[0])
    if match is None:
        return None
    names = [match[1], *(match[3] or "").split(", ")]
    operator = match[2].removeprefix("@strict").strip("_")
    return _CALLED.get(operator, operator), tuple(_CEL_NAMES.get(name, name) for name in names if name)


def type_name(value: object) -> str:
    """What conditions call the type of a value."""
    return _TYPE_NAMES.get(type(value), "map")


def _with_nfc(constant: bytes) -> bytes:
    found = Message(constant)
    found.change(_TEXT, lambda text: nfc(text.decode()).encode())
    return found.encode()


def _may_be_unlike(name: str, call: Message, types: dict[int, Message]) -> bool:
    one, other = (types.get(operand.number(2), Message(b"")) for operand in call.messages(3))
    if name != MEMBER:
        return _is_open(one) or _is_open(other)
    items = Message(other.message(_LIST) or other.message(_MAP))
    return _is_open(one) or _is_open(other) and _is_open(Message(items.message(1)))


def _is_open(declared: Message) -> bool:
    """Whether a type, or that of something in it, is known only when it is evaluated."""
    if _LIST in declared or _MAP in declared:
        inner = Message(declared.message(_LIST) or declared.message(_MAP))
        return any(map(_is_open, (*inner.messages(1), *inner.messages(2))))
    return _DYNAMIC in declared or _PARAMETER in declared


def _equal(one: Any, other: Any) -> bool:
    if type_name(one) != type_name(other):
        raise UnlikeTypesError(EQUAL, type_name(one), type_name(other))
    if isinstance(one, list):
        return len(one) == len(other) and all([_equal(*pair) for pair in zip(one, other, strict=True)])
    if isinstance(one, dict):
        return one.keys() == other.keys() and all([_equal(value, other[key]) for key, value in one.items()])
    return bool(one == other)


def _is_member(one: Any, many: list[Any] | dict[Any, Any]) -> bool:
    alike = [each for each in many if type_name(each) == type_name(one)]
    if not alike and many:
        raise UnlikeTypesError(MEMBER, type_name(one), " and a ".join(sorted(set(map(type_name, many)))))
    return any([_equal(one, each) for each in alike])
