"""Which requests a stage's rules can't tell apart: the engine is asked once for all of them.

Where every mention of a number in the rules' conditions is a comparison with a literal, only the literals tell its
values apart, as in `policy.reach`: all values between two of them are alike. Of any other number every difference may
count: a policy that adds two of them up, for instance, is asked about nearly every request alone.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from ilis_guard.policy.engine import BoundRule
from ilis_guard.policy.facts import VISIBLE
from ilis_guard.policy.recordings import Categorical
from ilis_guard.types import Action

LABELS: Final = "labels"
"""The name under which conditions find all labels."""
Column = np.ndarray | Categorical[Any]
Codes = Int64[np.ndarray, " rows"]
"""Whole numbers from 0; rows of one number are alike."""

_MOST: Final = 2**62
_OF_THE_ENGINE: Final[Mapping[str, frozenset[float] | None]] = {
    "uncertainty": frozenset(),
    "error": None,
    "certified": None,
    "last_tier": None,
}
"""What the engine itself looks at, whatever the conditions are."""
_ABLE_BY: Final[Mapping[Action, frozenset[str]]] = {
    Action.ANSWER: frozenset({"uncertainty", "certified", "error"}),
    Action.ABSTAIN: frozenset(),
    Action.RETRY: frozenset({"last_tier"}),
    Action.ESCALATE: frozenset(),
}
"""The facts that decide whether a rule that holds can act."""

_NUMBER: Final = r"-?(?:\d*\.\d+(?:[eE][-+]?\d+)?|\d+(?:[eE][-+]?\d+)?)"
# Whatever stands before and behind it, here a comparison stands alone: nothing binds closer than it does.
_BEFORE, _BEHIND = r"(?:^|[(\[,?:]|&&|\|\|)\s*", r"\s*(?=$|[)\],?:]|&&|\|\|)"
_OPERATOR: Final = r"\s*(?:<=|>=|==|!=|<|>)\s*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How the rules of one stage look at facts."""

    literals: Mapping[str, frozenset[float] | None]
    """By fact that is looked at: what alone tells its values apart; None where every difference may."""
    first: Mapping[str, int]
    """By fact: index of the first rule that looks at it, or can act only by it."""

    @classmethod
    def of(cls, rules: Sequence[BoundRule]) -> "Sight":
        """Of a stage's rules, in order."""
        literals, first = dict(_OF_THE_ENGINE), dict[str, int]()
        for index, bound in enumerate(rules):
            looked_at = _looked_at(bound.condition.text)
            for name, found in looked_at.items():
                known = literals.get(name, frozenset())
                literals[name] = None if known is None or found is None else known | found
            for name in looked_at.keys() | _ABLE_BY[bound.rule.do]:
                first.setdefault(name, index)
        return cls(literals=literals, first=first)

    def codes(self, name: str, column: Column) -> Codes:
        """A fact's column, in which equal numbers stand for values that no rule tells apart."""
        if isinstance(column, Categorical):
            return column.codes
        literals = self.literals[name]
        return _same(column) if literals is None else _cells(column, literals)


def alike(columns: Sequence[Codes]) -> tuple[Int64[np.ndarray, " groups"], Codes, Int64[np.ndarray, " groups"]]:
    """Group rows that are alike in all columns: the first row of each group, each row's group, and their sizes."""
    combined, width = np.zeros(len(columns[0]), dtype=np.int64), 1
    for column in columns:
        own = int(column.max(initial=0)) + 1
        if own == 1:
            continue
        if width * own > _MOST:
            combined = np.unique(combined, return_inverse=True)[1]
            width = int(combined.max(initial=0)) + 1
        combined = combined * own + column
        width *= own
    _, first, group, sizes = np.unique(combined, return_index=True, return_inverse=True, return_counts=True)
    return first, group, sizes


def _looked_at(condition: str) -> dict[str, frozenset[float] | None]:
    """The facts that a condition may look at, however it is written, and what alone tells their values apart."""
    found: dict[str, frozenset[float] | None] = {}
    for first, names in _BY_FIRST_PART.items():
        mentions = len(re.findall(rf"\b{first}\b", condition, re.ASCII))
        compared = {name: _compared(name, condition) for name in names}
        # A comment may stand where it hides what a comparison is part of.
        are_all = "//" not in condition and mentions == sum(map(len, compared.values()))
        if are_all:
            found |= {name: frozenset(literals) for name, literals in compared.items() if literals}
        elif mentions:
            found |= dict.fromkeys(names)
    return found


def _compared(name: str, condition: str) -> list[float]:
    """The numbers that a fact is compared with, wherever that stands alone."""
    fact = re.escape(name)
    pattern = rf"{_BEFORE}(?:{fact}{_OPERATOR}({_NUMBER})|({_NUMBER}){_OPERATOR}{fact}){_BEHIND}"
    return [float(left or right) for left, right in re.findall(pattern, condition)]


def _by_first_part(names: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    parts = {name: name.partition(".")[0] for name in names}
    return {part: tuple(name for name in parts if parts[name] == part) for part in parts.values()}


_BY_FIRST_PART: Final = _by_first_part([*VISIBLE, LABELS])


def _cells(column: np.ndarray, literals: frozenset[float]) -> Codes:
    """Below, at and above each literal, and missing."""
    edges = np.array(sorted(literals))
    codes = np.searchsorted(edges, column, side="left") + np.searchsorted(edges, column, side="right")
    return np.where(np.isnan(column), 2 * len(edges) + 1, codes)


def _same(column: np.ndarray) -> Codes:
    # By their bits: 0.0 and -0.0 are equal, and one divided by them isn't.
    bits = column.view(np.int64) if column.dtype == np.float64 else column
    return np.asarray(np.unique(bits, return_inverse=True)[1])
