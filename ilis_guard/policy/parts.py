"""The parts of a condition: the operands of its ``||``, ``&&`` and ``!`` as CEL reads them, with their values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ilis_guard.policy.conditions import Condition, Situation
from ilis_guard.policy.facts import VISIBLE
from ilis_guard.policy.syntax import Node, Operator, without_strings
from ilis_guard.types import FactValue, PartOutcome
from ilis_guard.types.rulings import json_values

MAX_OPERATORS: Final = 40
"""A condition with more logical operators than this stays in one part: nobody would read them all."""
MAX_OUTCOMES: Final = 5
"""Parts that are listed one by one; where more matter, the whole condition is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The value of a condition, or of a part of one, on some facts."""

    text: str
    value: bool | str
    """A string where it can't be evaluated, and says why."""
    facts: Mapping[str, FactValue | None]
    """The facts that it reads; None where one is missing."""
    operator: Operator | None = None
    """What joins its parts; None where it has none."""
    parts: tuple["Finding", ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; of `value` and `failed` one is null."""
        failed = isinstance(self.value, str)
        return {
            "text": self.text,
            "value": None if failed else self.value,
            "failed": self.value if failed else None,
            "facts": json_values(self.facts),
            "operator": self.operator,
            "parts": [part.to_dict() for part in self.parts],
        }


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A condition, or a part of one, with its own parts."""

    condition: Condition
    operator: Operator | None = None
    """What joins its parts; None where it has none."""
    parts: tuple["Part", ...] = ()

    @classmethod
    def of(cls, condition: Condition) -> "Part":
        """Split a condition at all its logical operators."""
        if sum(node.operator is not None for node in condition.tree.walk()) > MAX_OPERATORS:
            return cls(condition)
        return _split(condition, condition.tree, _Source(condition.text), 0, len(condition.text))

    def outcomes(self, situation: Situation, *, value: bool) -> tuple[PartOutcome, ...]:
        """The parts that made its value what it is; the whole condition where these are too many."""
        decisive = list(self.decisive(situation, value))
        if len(decisive) > MAX_OUTCOMES:
            decisive = [(self.condition, value)]
        return tuple(
            PartOutcome(condition=one.brief, value=came_to, facts=situation.facts(one.names))
            for one, came_to in decisive
        )

    def decisive(self, situation: Situation, value: bool) -> Iterator[tuple[Condition, bool]]:
        """Yield the smallest parts that made its value what it is, whatever the others are, with their own values."""
        if not self.parts:
            yield self.condition, value
        elif self.operator == "!":
            yield from self.parts[0].decisive(situation, not value)
        else:
            # CEL needn't evaluate again what follows: where `a && b` is true, both are.
            all_alike = value is (self.operator == "&&")
            for part in self.parts:
                if all_alike or part.condition.check(situation) is value:
                    yield from part.decisive(situation, value)

    def may_be(self, value: bool) -> str:
        """A condition that is false only where this part can't be `value`, whatever the missing numbers are.

        It may be true although the part can't be `value`: a part without operands, such as ``a ? b : c``, counts as
        possible wherever it reads a missing number. `Condition.might_hold` is exact, one condition at a time.
        """
        if self.operator == "!":
            return self.parts[0].may_be(not value)
        if self.parts:
            all_count = value is (self.operator == "&&")
            return f"({(' && ' if all_count else ' || ').join(part.may_be(value) for part in self.parts)})"
        # Only a number that is missing differs from itself.
        numbers = (name for name in self.condition.names if name in VISIBLE and VISIBLE[name].cel == "double")
        is_missing = "".join(f" || {name} != {name}" for name in numbers)
        return f"({'' if value else '!'}({self.condition.text}){is_missing})"

    def check(self, situation: Situation) -> Finding:
        """Evaluate it and each part of it."""
        return Finding(
            text=self.condition.text,
            value=self.condition.check(situation),
            facts=situation.facts(self.condition.names),
            operator=self.operator,
            parts=tuple(part.check(situation) for part in self.parts),
        )


class _Source:
    """A condition's text, with the bracket that belongs to each of its parentheses."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._partners: dict[int, int] = {}
        opened: list[int] = []
        for position, character in enumerate(without_strings(text)):
            if character == "(":
                opened.append(position)
            elif character == ")":
                start = opened.pop()
                self._partners |= {start: position, position: start}

    def trim(self, start: int, end: int) -> tuple[int, int]:
        """Narrow a stretch of text to the operand in it, without spaces and parentheses around it."""
        while True:
            if self.text[start].isspace():
                start += 1
            elif self.text[end - 1].isspace():
                end -= 1
            elif self.text[start] == "(" and self._partners[start] >= end - 1:
                # Its partner is the last character here, or stands behind an operator further out.
                end -= self._partners[start] == end - 1
                start += 1
            elif self.text[end - 1] == ")" and self._partners.get(end - 1, start) < start:
                end -= 1
            else:
                return start, end


def _split(condition: Condition, node: Node, source: _Source, start: int, end: int) -> Part:
    """Split the condition of a node, whose text stands from `start` to `end`."""
    if node.operator is None:
        return Part(condition)
    # CEL says where each operator stands, and so where its operands begin and end.
    offsets = node.operator_offsets
    starts = [offset + len(node.operator) for offset in offsets]
    spans = list(zip(starts, [*offsets[1:], end], strict=True))
    if node.operator != "!":
        spans.insert(0, (start, offsets[0]))
    parts = []
    for operand, span in zip(node.operands, spans, strict=True):
        first, last = source.trim(*span)
        parts.append(_split(Condition.part(source.text[first:last]), operand, source, first, last))
    return Part(condition, node.operator, tuple(parts))
