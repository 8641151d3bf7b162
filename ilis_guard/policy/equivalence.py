"""Equivalence classes of facts: sets of facts that no condition distinguishes.

A condition's value changes only at the literals that it compares facts with, as `syntax.literals` reads them. So the
values of a fact fall into finitely many classes, and an answer for one representative holds for its whole class. A
reachability analysis enumerates representatives; a simulation groups recorded rows, and evaluates one row of each
group. Where a condition reads a fact in any other way, every difference between its values may count.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from jaxtyping import Int64

from ilis_guard.policy.engine import BoundRule
from ilis_guard.policy.facts import VISIBLE, Facts, Kind
from ilis_guard.policy.syntax import Literals, literals
from ilis_guard.types import Action, Label, Statistics

LABELS: Final = "labels"
"""The name under which conditions find all labels."""
Codes = Int64[np.ndarray, " rows"]
"""Whole numbers from 0; rows of one number are equivalent."""
ClassLiterals = Mapping[str, frozenset[Label]]
"""By fact: the literals that delimit its classes."""

_MAX_CODE: Final = 2**62
_READ_BY_ENGINE: Final[Literals] = {
    "uncertainty": frozenset(),
    "rank": frozenset(),
    "error": None,
    "certified": None,
    "last_tier": None,
}
_OBSTACLE_FACTS: Final[Mapping[Action, frozenset[str]]] = {
    Action.ANSWER: frozenset({"uncertainty", "rank", "certified", "error"}),
    Action.ABSTAIN: frozenset(),
    Action.RETRY: frozenset({"last_tier"}),
    Action.ESCALATE: frozenset(),
}
"""The facts that decide whether a rule that holds can act."""


class CodedColumn(Protocol):
    """A fact's values by row, as numbers of its distinct values."""

    @property
    def codes(self) -> Codes:
        """Each row's number."""


Column = np.ndarray | CodedColumn


@dataclass(frozen=True, slots=True)
class Interval:
    """The numbers from `low` to `high`, both included, as one class."""

    low: float
    high: float


MISSING: Final = Interval(math.nan, math.nan)
"""A number that isn't known."""


def united(one: ClassLiterals, other: ClassLiterals) -> ClassLiterals:
    """The literals of both."""
    return {name: one.get(name, frozenset()) | other.get(name, frozenset()) for name in [*one, *other]}


def class_count(delimiters: ClassLiterals) -> int:
    """How many classes of facts there are; an upper bound."""
    return math.prod(len(_classes(VISIBLE[name], found)) for name, found in delimiters.items())


def representatives(delimiters: ClassLiterals, fixed: Mapping[str, Any]) -> Iterator[Facts]:
    """Yield one set of facts from every class.

    Args:
        delimiters: the facts that vary; all other facts are as `Facts` has them by default.
        fixed: facts, by the names that conditions know them by, that have this one value; fractions as `Interval`s.
    """
    choices = {name: _classes(VISIBLE[name], found) for name, found in delimiters.items()}
    choices |= {name: [value] for name, value in fixed.items()}
    for values in itertools.product(*choices.values()):
        facts = _facts(dict(zip(choices, values, strict=True)))
        if facts is not None:
            yield facts


def _facts(values: dict[str, Any]) -> Facts | None:
    """Facts from these classes; None where there are none, because two of them contradict each other."""
    if values.get("calibrated") and values.get("uncertainty") is MISSING:
        return None
    is_certified = values.pop("certified", None)
    intervals = {name: value for name, value in values.items() if isinstance(value, Interval)}
    if is_certified is not None and "threshold" not in intervals:
        intervals["threshold"] = Interval(1.0, 1.0) if is_certified else MISSING
    ends: dict[str, Any] = {name: interval.low for name, interval in intervals.items()}
    # Conditions don't distinguish the numbers of an interval, so those are taken that make it certified, or not.
    if is_certified:
        ends["threshold"] = intervals["threshold"].high
    elif is_certified is not None:
        ends["uncertainty"] = intervals["uncertainty"].high
    statistics = {
        name: ends.pop(f"statistics.{name}", math.nan)
        for name in ("logprob_sum", "logprob_mean", "entropy_mean", "margin_min")
    }
    others = {name: value for name, value in values.items() if name not in intervals}
    known: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in ends.items()}
    facts = Facts(**others, **known, statistics=Statistics(**statistics))
    return facts if is_certified in (None, facts.certified) else None


def _classes(kind: Kind, delimiters: Iterable[Any]) -> list[Any]:
    """One value of each class below, at, between and above all literals, in range; an interval of fractions."""
    if kind.cel == "bool":
        return [True, False]
    if kind.values:
        return list(kind.values)
    if kind.cel == "string":
        other = " "  # no tier has this name, see schema.Name
        while other in delimiters:
            other += " "
        return [*sorted(delimiters), other]
    if kind.cel == "int":
        near = {value for at in delimiters for value in (at - 1, at, at + 1) if value >= kind.low}
        return [*sorted({int(kind.low)} | near), *([MISSING] if kind.may_be_missing else [])]
    edges = sorted({kind.low, kind.high} | {at for at in delimiters if kind.low <= at <= kind.high})
    gaps = [
        Interval(math.nextafter(low, math.inf), math.nextafter(high, -math.inf))
        for low, high in itertools.pairwise(edges)
    ]
    intervals = [*(Interval(edge, edge) for edge in edges), *(gap for gap in gaps if gap.low <= gap.high)]
    return [*intervals, *([MISSING] if kind.may_be_missing else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """How the rules of one stage partition facts."""

    literals: Literals
    """By fact that is read."""
    first: Mapping[str, int]
    """By fact: index of the first rule that reads it, or can act only by it."""

    @classmethod
    def of(cls, rules: Sequence[BoundRule]) -> "Partition":
        """The partition by a stage's rules, in order."""
        delimiters, first = dict(_READ_BY_ENGINE), dict[str, int]()
        for index, bound in enumerate(rules):
            read = literals(bound.condition.tree)
            for name, found in read.items():
                known = delimiters.get(name, frozenset())
                delimiters[name] = None if known is None or found is None else known | found
            for name in read.keys() | _OBSTACLE_FACTS[bound.rule.do]:
                first.setdefault(name, index)
        return cls(literals=delimiters, first=first)

    def codes(self, name: str, column: Column) -> Codes:
        """Number a fact's values by their classes."""
        if not isinstance(column, np.ndarray):
            return column.codes
        delimiters = self.literals[name]
        is_number = name in VISIBLE and VISIBLE[name].cel in ("double", "int")
        return _number_classes(column, delimiters) if is_number and delimiters is not None else _distinct(column)


def group_rows(columns: Sequence[Codes]) -> tuple[Int64[np.ndarray, " groups"], Codes, Int64[np.ndarray, " groups"]]:
    """Group rows that are equivalent in all columns: each group's first row, each row's group, the groups' sizes."""
    combined, width = np.zeros(len(columns[0]), dtype=np.int64), 1
    for column in columns:
        own = int(column.max(initial=0)) + 1
        if own == 1:
            continue
        if width * own > _MAX_CODE:
            combined = np.unique(combined, return_inverse=True)[1]
            width = int(combined.max(initial=0)) + 1
        combined = combined * own + column
        width *= own
    _, first, group, sizes = np.unique(combined, return_index=True, return_inverse=True, return_counts=True)
    return first, group, sizes


def _number_classes(column: np.ndarray, delimiters: frozenset[Label]) -> Codes:
    """Below, at and above each literal, and missing."""
    edges = np.array(sorted(delimiters))
    codes = np.searchsorted(edges, column, side="left") + np.searchsorted(edges, column, side="right")
    return np.where(np.isnan(column), 2 * len(edges) + 1, codes)


def _distinct(column: np.ndarray) -> Codes:
    # By their bits: 0.0 and -0.0 are equal, and one divided by them isn't.
    bits = column.view(np.int64) if column.dtype == np.float64 else column
    return np.asarray(np.unique(bits, return_inverse=True)[1])
