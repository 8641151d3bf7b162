"""Conditions cut into their parts at ``||``, ``&&`` and ``!``, so that what each part came to can be told.

How CEL reads a condition is what counts: a cut is kept only where CEL reads the parts, put together again, as the very
condition that was cut. So nothing here has to know how tightly operators bind or what a macro is, and where a cut
isn't possible the condition stays in one part.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ilis_guard.policy.conditions import Condition, ConditionError, Situation
from ilis_guard.policy.facts import VISIBLE
from ilis_guard.types import FactValue, PartOutcome
from ilis_guard.types.rulings import json_values

MAX_CUTS: Final = 40
"""A condition with more operators than this stays in one part: nobody would read them all."""
MAX_TOLD: Final = 5
"""Parts that are listed one by one; where more matter, the whole condition is."""

Operator = Literal["||", "&&", "!"]

_BINARY: Final[tuple[Operator, ...]] = ("||", "&&")  # the one that binds less tightly first
_TOKEN: Final = re.compile(
    r"""
    (?P<gap> \s+ )
    | [bB]?[rR][bB]? (?: '{3}.*?'{3} | "{3}.*?"{3} | '[^'\n]*' | "[^"\n]*" )
    | [bB]? (?: '{3}(?:\\.|[^\\])*?'{3} | "{3}(?:\\.|[^\\])*?"{3} | '(?:\\.|[^'\\\n])*' | "(?:\\.|[^"\\\n])*" )
    | \w+ | \|\| | && | != | .
    """,
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a condition, or a part of one, came to on some facts."""

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
        """A whole condition, cut as far as it can be."""
        tokens = _tokens(condition.text)
        if sum(token in ("||", "&&", "!") for token in tokens) > MAX_CUTS:
            return cls(condition)
        return _part(condition, _unwrapped(tokens))

    def outcomes(self, situation: Situation, *, value: bool) -> tuple[PartOutcome, ...]:
        """The parts that made it come to `value`, which it did; the whole condition where these are too many."""
        decisive = list(self.telling(situation, value))
        if len(decisive) > MAX_TOLD:
            decisive = [(self.condition, value)]
        return tuple(
            PartOutcome(condition=one.brief, value=came_to, facts=situation.facts(one.names))
            for one, came_to in decisive
        )

    def telling(self, situation: Situation, value: bool) -> Iterator[tuple[Condition, bool]]:
        """The smallest parts that made it come to `value`, whatever the others came to, with their own values."""
        if not self.parts:
            yield self.condition, value
        elif self.operator == "!":
            yield from self.parts[0].telling(situation, not value)
        else:
            # CEL needn't be asked again what follows: where `a && b` is true, both are.
            all_alike = value is (self.operator == "&&")
            for part in self.parts:
                if all_alike or part.condition.check(situation) is value:
                    yield from part.telling(situation, value)

    def possibly(self, value: bool) -> str:
        """A condition that is false only where this part can't come to `value`, whatever the missing numbers are.

        It may be true where the part can't either: what is inside a part that isn't cut, as in ``a ? b : c``, isn't
        told apart. `Condition.might_hold` tells, one condition at a time.
        """
        if self.operator == "!":
            return self.parts[0].possibly(not value)
        if self.parts:
            all_count = value is (self.operator == "&&")
            return f"({(' && ' if all_count else ' || ').join(part.possibly(value) for part in self.parts)})"
        # Only a number that is missing differs from itself.
        numbers = (name for name in self.condition.names if name in VISIBLE and VISIBLE[name].cel == "double")
        is_missing = "".join(f" || {name} != {name}" for name in numbers)
        return f"({'' if value else '!'}({self.condition.text}){is_missing})"

    def check(self, situation: Situation) -> Finding:
        """What it comes to, and each part of it, as CEL evaluates them."""
        return Finding(
            text=self.condition.text,
            value=self.condition.check(situation),
            facts=situation.facts(self.condition.names),
            operator=self.operator,
            parts=tuple(part.check(situation) for part in self.parts),
        )


def _part(condition: Condition, tokens: list[str]) -> Part:
    for operator, pieces in _cuts(tokens):
        try:
            conditions = [Condition.part("".join(piece)) for piece in pieces]
            texts = [f"({part.text})" for part in conditions]
            together = Condition.part(f"!{texts[0]}" if operator == "!" else f" {operator} ".join(texts))
        except ConditionError:  # cut where it can't be, as inside `c ? a || b : d`
            continue
        if condition.tree == together.tree:
            return Part(condition, operator, tuple(map(_part, conditions, pieces)))
    return Part(condition)


def _cuts(tokens: list[str]) -> Iterator[tuple[Operator, list[list[str]]]]:
    """The ways in which a condition may be cut, the outermost operator first."""
    for operator in _BINARY:
        pieces: list[list[str]] = [[]]
        for token, depth in _with_depths(tokens):
            if token == operator and depth == 0:
                pieces.append([])
            else:
                pieces[-1].append(token)
        if len(pieces) > 1:
            yield operator, [_unwrapped(piece) for piece in pieces]
    if tokens[:1] == ["!"]:
        yield "!", [_unwrapped(tokens[1:])]


def _tokens(text: str) -> list[str]:
    """Strings, names, operators and single characters; spaces between them are one space each."""
    return [" " if match["gap"] else match.group() for match in _TOKEN.finditer(text)]


def _unwrapped(tokens: list[str]) -> list[str]:
    """Without the spaces and the parentheses around all of it."""
    while tokens and (tokens[0] == " " or tokens[-1] == " "):
        tokens = tokens[tokens[0] == " " : len(tokens) - (tokens[-1] == " ")]
    is_wrapped = tokens[:1] == ["("] and all(depth > 0 for _, depth in _with_depths(tokens))
    return _unwrapped(tokens[1:-1]) if is_wrapped else tokens


def _with_depths(tokens: list[str]) -> Iterator[tuple[str, int]]:
    """Each token, and how many brackets it stands in; a bracket stands in itself."""
    depth = 0
    for token in tokens:
        depth += token in ("(", "[", "{")
        yield token, depth
        depth -= token in (")", "]", "}")
