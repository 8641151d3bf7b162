"""The syntax tree of a condition: the one reader of what a condition says.

CEL's compiler hands out its checked tree as a protocol buffer, ``cel.expr.CheckedExpr`` of github.com/google/cel-spec.
A search in the text would be misled by comments, strings and the variables of macros.
"""

import itertools
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from ilis_guard.policy.facts import VISIBLE
from ilis_guard.policy.protobuf import Message
from ilis_guard.types import Label
from ilis_guard.types.requests import nfc

Operator = Literal["||", "&&", "!"]
Literals = Mapping[str, frozenset[Label] | None]
"""By fact: the literals that a condition compares it with; None where any difference between its values may count."""

_OPERATORS: Final[Mapping[str, Operator]] = {"_||_": "||", "_&&_": "&&", "!_": "!"}
_EQUALITIES: Final = frozenset({"_==_", "_!=_"})
_COMPARISONS: Final = _EQUALITIES | {"_<_", "_<=_", "_>_", "_>=_"}
_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_STRING: Final = re.compile(
    r"""[bB]?[rR][bB]?(?:'''.*?'''|\"\"\".*?\"\"\"|'[^'\n]*'|"[^"\n]*")"""
    r"""|'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""",
    re.DOTALL,
)

_COMPREHENSION_FIELDS: Final = (2, 4, 5, 6, 7)
"""Of a comprehension: its range, the initial result, whether to go on, the step, the result."""
_PRIMITIVES: Final = {1: "bool", 2: "number", 3: "number", 4: "number", 5: "string", 6: "bytes"}


class Kind(StrEnum):
    """What a node is."""

    CONSTANT = "constant"
    NAME = "name"
    FIELD = "field"
    PRESENCE = "presence"
    """``has(x.y)``."""
    CALL = "call"
    LIST = "list"
    MAPPING = "mapping"
    MACRO = "macro"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A condition, or an expression in it. Equal to a node that means the same, wherever the two stand."""

    kind: Kind
    text: str = ""
    """The name, the field, the function or operator (``_<_``), a mapping's message type, a macro's variable."""
    value: Label | None = None
    """A constant's; None for null, bytes and unsigned integers, which no fact can be compared with."""
    type: str = ""
    """``bool``, ``number``, ``string``, ``bytes``, ``null``, or ``list`` of one of them (``list string``); empty where
    only an evaluation can tell."""
    parts: tuple["Node", ...] = ()
    """The expressions in it; a call's target comes first. A macro's first part is its range, the second its initial
    result; all but the first see its variable."""
    overloads: tuple[str, ...] = ()
    """The functions that a call may stand for, by the types of its arguments: ``add_int64``."""
    offset: int = field(default=0, compare=False)
    """Characters before its place in the text: an operator's own, a call's parenthesis."""

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all nodes in it, from the outside in."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def operator(self) -> Operator | None:
        """The logical operator that joins its operands; None where it is no such operation."""
        return _OPERATORS.get(self.text) if self.kind is Kind.CALL else None

    @property
    def operands(self) -> tuple["Node", ...]:
        """What its operator joins: of ``a || b || c`` three; empty where it has none."""
        if self.operator is None:
            return ()
        return tuple(
            operand
            for part in self.parts
            for operand in (part.operands if self.operator != "!" and part.operator == self.operator else (part,))
        )

    @property
    def operator_offsets(self) -> tuple[int, ...]:
        """Where its operator stands between its operands, from left to right."""
        if self.operator in (None, "!"):
            return (self.offset,)
        first, second = (part.operator_offsets if part.operator == self.operator else () for part in self.parts)
        return (*first, self.offset, *second)

    def leaves(self) -> Iterator["Node"]:
        """Yield what ``||``, ``&&`` and ``!`` are applied to."""
        if self.operator is None:
            yield self
        for operand in self.operands:
            yield from operand.leaves()


def names(condition: Node) -> tuple[str, ...]:
    """The facts that a condition reads, in order, each once; labels as ``labels.NAME``."""
    found = dict[str, None]()
    for node in condition.walk():
        if node.kind is Kind.NAME and node.text in VISIBLE:
            found[node.text] = None
        elif (label := read_label(node)) is not None:
            found[f"labels.{label}"] = None
    return tuple(found)


def tested_labels(condition: Node) -> frozenset[str]:
    """The labels whose presence a condition tests with ``has``, as ``labels.NAME``."""
    tests = (node for node in condition.walk() if node.kind is Kind.PRESENCE)
    return frozenset(f"labels.{label}" for label in map(read_label, tests) if label is not None)


def compared_labels(condition: Node) -> Iterator[tuple[str, str]]:
    """Yield each label that a comparison looks at, with the type of what it is compared with, as `Node.type` has it."""
    for node in condition.walk():
        if node.kind is Kind.CALL and node.text in (*_COMPARISONS, "@in"):
            for one, other in itertools.permutations(node.parts, 2):
                if (label := read_label(one)) is not None:
                    yield label, other.type.removeprefix("list ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedFact:
    """A comparison of a fact with a literal."""

    fact: str
    operator: str
    """As if the fact stood on its left: ``>`` of ``0.2 < uncertainty``."""
    literal: Label
    offset: int
    """As `Node.offset`, of the operator."""

    @property
    def text(self) -> str:
        """The comparison, with the fact on its left."""
        literal = str(self.literal).lower() if isinstance(self.literal, bool) else repr(self.literal)
        return f"{self.fact} {self.operator} {literal}"


def compared_facts(condition: Node) -> Iterator[ComparedFact]:
    """Yield the comparisons of facts with literals, from left to right."""
    for node in condition.walk():
        if (found := _comparison(node)) is not None:
            operator = node.text.strip("_")
            is_turned = node.parts[0].kind is Kind.CONSTANT
            yield ComparedFact(
                fact=found[0],
                operator=_TURNED[operator] if is_turned else operator,
                literal=found[1],
                offset=node.offset,
            )


def literals(condition: Node) -> Literals:
    """The facts that a condition reads, `labels` as one of them, each with the literals it is compared with.

    A condition depends on a fact only through these comparisons, so its value changes at the literals alone. A fact
    that is read in any other way, as in ``uncertainty < typicality`` or ``tier < 'b'``, has None.
    """
    found: dict[str, frozenset[Label] | None] = {}
    for fact, literal in _reads(condition):
        known = found.get(fact, frozenset())
        found[fact] = None if literal is None or known is None else known | {literal}
    return found


def is_plain(condition: Node) -> bool:
    """Whether a condition only joins Boolean facts and comparisons of facts with literals, by ``&&``, ``||``, ``!``."""
    return all(
        _comparison(leaf) is not None or (leaf.kind in (Kind.NAME, Kind.CONSTANT) and leaf.type == "bool")
        for leaf in condition.leaves()
    )


def without_strings(text: str) -> str:
    """A condition's text with blanks in place of the strings in it."""
    return _STRING.sub(lambda match: " " * len(match.group()), text)


def _reads(node: Node) -> Iterator[tuple[str, Label | None]]:
    """Each place where a fact is read: its name, and the literal that it is compared with there."""
    if (comparison := _comparison(node)) is not None:
        yield comparison
    elif node.kind is Kind.NAME and (node.text in VISIBLE or node.text == "labels"):
        yield node.text, None
    else:
        for part in node.parts:
            yield from _reads(part)


def _comparison(node: Node) -> tuple[str, Label] | None:
    """The fact and the literal that a node compares; strings only by their equality."""
    if node.kind is not Kind.CALL or node.text not in _COMPARISONS:
        return None
    fact, literal = sorted(node.parts, key=lambda part: part.kind is Kind.CONSTANT)
    if fact.kind is not Kind.NAME or fact.text not in VISIBLE or literal.kind is not Kind.CONSTANT:
        return None
    is_ordered = literal.type == "number" or node.text in _EQUALITIES
    return (fact.text, literal.value) if is_ordered and literal.value is not None else None


def read_label(node: Node) -> str | None:
    """The name of the label that a node reads: ``labels.NAME``, ``has(labels.NAME)`` or ``labels['NAME']``."""
    if not node.parts or node.parts[0].kind is not Kind.NAME or node.parts[0].text != "labels":
        return None
    if node.kind in (Kind.FIELD, Kind.PRESENCE):
        return node.text
    if node.kind is Kind.CALL and node.text == "_[_]" and isinstance(node.parts[1].value, str):
        return node.parts[1].value
    return None


def tree(serialized: bytes) -> Node:
    """Decode the tree of a compiled expression."""
    checked = Message(Message(serialized).message(2))
    references, types = (
        {entry.number(1): Message(entry.message(2)) for entry in checked.messages(field)} for field in (2, 3)
    )
    positions = {entry.number(1): entry.number(2) for entry in Message(checked.message(5)).messages(4)}

    def node(data: bytes) -> Node:
        expression = Message(data)
        number = expression.number(2)
        kind, text, parts = _shape(expression)
        return Node(
            kind=kind,
            text=text,
            value=_constant(Message(expression.message(3))) if kind is Kind.CONSTANT else None,
            type=_type(types.get(number, _EMPTY)),
            parts=tuple(map(node, parts)),
            overloads=tuple(name.decode() for name in references.get(number, _EMPTY).values(3)),
            offset=positions.get(number, 0),
        )

    return node(checked.message(4))


_EMPTY: Final = Message(b"")


def _shape(expression: Message) -> tuple[Kind, str, list[bytes]]:  # noqa: PLR0911  # one for each kind
    """Kind, text and parts of a ``cel.expr.Expr``; its fields 3 to 9 are the kinds."""
    field = next((field for field in range(4, 10) if field in expression), 3)
    of = Message(expression.message(field))
    match field:
        case 4:
            return Kind.NAME, of.string(1), []
        case 5:
            return Kind.PRESENCE if of.number(3) else Kind.FIELD, of.string(2), [of.message(1)]
        case 6:
            return Kind.CALL, of.string(2), [*of.values(1), *of.values(3)]
        case 7:
            return Kind.LIST, "", of.values(1)
        case 8:
            parts = [part for entry in of.messages(2) for part in entry.values(3) + entry.values(4)]
            return Kind.MAPPING, of.string(1), parts
        case 9:
            return Kind.MACRO, of.string(1), [of.message(part) for part in _COMPREHENSION_FIELDS]
    return Kind.CONSTANT, "", []


def _constant(constant: Message) -> Label | None:
    """The value of a ``cel.expr.Constant``."""
    if 2 in constant:
        return bool(constant.number(2))
    if 3 in constant:
        number = constant.number(3)  # 64 bits, two's complement
        return number - 2**64 if number >= 2**63 else number
    if 5 in constant:
        return float(struct.unpack("<d", constant.message(5))[0])
    return nfc(constant.string(6)) if 6 in constant else None


def _type(declared: Message) -> str:
    """The name of a ``cel.expr.Type``."""
    if 3 in declared:
        return _PRIMITIVES.get(declared.number(3), "")
    if 6 in declared:
        items = _type(Message(Message(declared.message(6)).message(1)))
        return f"list {items}" if items else ""
    return "null" if 2 in declared else ""
