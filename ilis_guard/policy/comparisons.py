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
from collections.abc import Callable, Mapping, Sequence
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

_DYNAMIC, _LIST, _MAP, _PARAMETER = 1, 6, 7, 10
"""Fields of a ``cel.expr.Type``."""
_UNTYPED: Final = Message(b"")


class UnlikeTypesError(TypeError):
    """Values of unlike types can't be compared."""

    def __init__(self, operator: str, one: str, other: str) -> None:
        super().__init__(f"No matching overloads found : {operator}({one}, {other})")


def functions() -> list[cel.FunctionDecl]:
    """What the comparisons are replaced by, for CEL's environment."""
    numbers, others = ("INT", "UINT", "DOUBLE"), ("BOOL", "STRING", "BYTES", "LIST", "MAP")
    kinds = {name: getattr(cel.Type, name) for name in (*numbers, *others)}
    alike = [*((name, name) for name in others), *itertools.product(numbers, numbers)]
    contained = list(itertools.product(kinds, ("LIST", "MAP")))

    def declared(name: str, pairs: list[tuple[str, str]], function: Callable[[Any, Any], bool]) -> cel.FunctionDecl:
        overloads = [
            cel.Overload(f"{name}_{one}_{other}", cel.Type.BOOL, [kinds[one], kinds[other]], False, function)
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
    return _changed(serialized, {2: lambda checked: _changed(checked, {4: _Rewriter(checked).expression})})


class _Rewriter:
    """Rewrites the expressions of a ``cel.expr.CheckedExpr``."""

    def __init__(self, checked: bytes) -> None:
        self._types = {entry.number(1): Message(entry.message(2)) for entry in Message(checked).messages(3)}

    def expression(self, data: bytes) -> bytes:
        """A ``cel.expr.Expr``: its fields 3 to 9 are its kinds."""
        return _changed(
            data,
            {
                3: lambda constant: _changed(constant, {6: lambda text: nfc(text.decode()).encode()}),
                5: lambda selected: _changed(selected, self._each(1)),
                6: self._call,
                7: lambda items: _changed(items, self._each(1)),
                8: lambda mapping: _changed(mapping, {2: lambda entry: _changed(entry, self._each(3, 4))}),
                9: lambda macro: _changed(macro, self._each(2, 4, 5, 6, 7)),
            },
        )

    def _call(self, data: bytes) -> bytes:
        call = Message(data)
        name = call.string(2)
        if name in _REPLACED and self._may_be_unlike(name, call.messages(3)):
            name = _REPLACED[name]
        return _changed(data, {2: lambda _: name.encode(), **self._each(1, 3)})

    def _each(self, *fields: int) -> Mapping[int, Callable[[bytes], bytes]]:
        return dict.fromkeys(fields, self.expression)

    def _may_be_unlike(self, name: str, operands: Sequence[Message]) -> bool:
        one, other = (self._types.get(operand.number(2), _UNTYPED) for operand in operands)
        if _REPLACED[name] != MEMBER:
            return _is_open(one) or _is_open(other)
        # Of a mapping, the keys.
        items = Message(Message(other.message(_LIST) or other.message(_MAP)).message(1))
        return _is_open(one) or _is_open(items)


def _changed(data: bytes, changes: Mapping[int, Callable[[bytes], bytes]]) -> bytes:
    """A message with each of these fields changed."""
    message = Message(data)
    for field, change in changes.items():
        message.change(field, change)
    return message.encode()


def unlike_types(complaint: str) -> tuple[str, tuple[str, ...]] | None:
    """The function or operator that CEL has no overload of, with the types that it got; None for other complaints."""
    match = _NO_OVERLOAD.search(complaint.partition("\n")[0])
    if match is None:
        return None
    names = [match[1], *(match[3] or "").split(", ")]
    operator = match[2].removeprefix("@strict").removeprefix("@").strip("_")
    return _CALLED.get(operator, operator), tuple(_CEL_NAMES.get(name, name) for name in names if name)


def type_name(value: object) -> str:
    """What conditions call the type of a value."""
    return _TYPE_NAMES.get(type(value), "map")


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
        return len(one) == len(other) and all(_equal(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict):
        _check_keys(one, other)
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _check_keys(one: dict[Any, Any], other: dict[Any, Any]) -> None:
    """Refuse keys of unlike types; Python, unlike CEL, would also take true for 1."""
    mine, others = ({type_name(key) for key in each} for each in (one, other))
    if mine and others and mine != others:
        raise UnlikeTypesError(EQUAL, " and a ".join(sorted(mine)), " and a ".join(sorted(others)))


def _is_member(one: Any, many: list[Any] | dict[Any, Any]) -> bool:
    # As `exists`: one that is equal decides, and otherwise one that can't be compared.
    if any(_equal(one, each) for each in many if type_name(each) == type_name(one)):
        return True
    if unlike := {name for name in map(type_name, many) if name != type_name(one)}:
        raise UnlikeTypesError(MEMBER, type_name(one), " and a ".join(sorted(unlike)))
    return False
