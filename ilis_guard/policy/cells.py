"""Facts cut into cells: in each of them, conditions made of plain comparisons don't change their value.

A condition is plain if it is made only of comparisons of facts with literals, joined by ``&& || !``: its value changes
only at those literals. So the facts fall into finitely many cells, and one set of facts from each, given to the real
conditions, answers for all.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ilis_guard.policy.facts import VISIBLE, Facts, Kind
from ilis_guard.types import Statistics

Literals = Mapping[str, frozenset[Any]]
"""By fact: the literals it is compared with."""

_TOKEN: Final = re.compile(
    r"\s+|(?P<f>-?(?:\d*\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+))|(?P<i>-?\d+)|(?P<s>'[^'\\\n]*'|\"[^\"\\\n]*\")"
    r"|(?P<t>\b(?:true|false)\b)|(?P<n>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)|(?P<e>==|!=)|(?P<c><=|>=|<|>)"
    r"|(?P<o>&&|\|\|)|(?P<x>!)|(?P<l>\()|(?P<r>\))"
)
_COMPARISON: Final = re.compile(r"n[ec][fi]|[fi][ec]n|ne[st]|[st]en")


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers from `low` to `high`, both in it, that no condition tells apart."""

    low: float
    high: float


MISSING: Final = Span(math.nan, math.nan)
"""A number that isn't known."""


def literals_of(condition: str) -> Literals | None:
    """The literals that a condition compares facts with; None where it isn't plain.

    `condition` has passed CEL's type check, so only those forms are told apart that CEL takes.
    """
    tokens = _tokens(condition)
    if tokens is None:
        return None
    kinds = "".join(kind for kind, _ in tokens)
    found: dict[str, set[Any]] = {text: set() for kind, text in tokens if kind == "n"}
    for match in _COMPARISON.finditer(kinds):
        compared = dict(tokens[match.start() : match.end()])
        name = compared.pop("n")
        found[name].update(_literal(kind, text) for kind, text in compared.items() if kind in "fis")
    rest = _COMPARISON.sub("b", kinds)
    # A literal or an operator left over, or two values side by side, means arithmetic or something else unforeseen.
    if re.search(r"[fisec]|[bntr][bntlx]", rest) or not found.keys() <= VISIBLE.keys():
        return None
    return {name: frozenset(values) for name, values in found.items()}


def merged(one: Literals, other: Literals) -> Literals:
    """The literals of both."""
    return {name: one.get(name, frozenset()) | other.get(name, frozenset()) for name in [*one, *other]}


def count(literals: Literals) -> int:
    """How many cells there are, or a few more."""
    return math.prod(len(_values(VISIBLE[name], found)) for name, found in literals.items())


def cells(literals: Literals, fixed: Mapping[str, Any]) -> Iterator[Facts]:
    """One set of facts from every cell.

    Args:
        literals: what the facts are told apart by; all other facts are as `Facts` has them by default.
        fixed: facts, by the names that conditions know them by, that have this one value; `Span`s for fractions.
    """
    choices = {name: _values(VISIBLE[name], found) for name, found in literals.items()}
    choices |= {name: [value] for name, value in fixed.items()}
    for values in itertools.product(*choices.values()):
        facts = _facts(dict(zip(choices, values, strict=True)))
        if facts is not None:
            yield facts


def _tokens(condition: str) -> list[tuple[str, str]] | None:
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(condition):
        match = _TOKEN.match(condition, position)
        if match is None:
            return None
        if match.lastgroup is not None:
            tokens.append((match.lastgroup, match.group()))
        position = match.end()
    return tokens


def _literal(kind: str, text: str) -> Any:
    if kind == "s":
        return text[1:-1]
    return float(text) if kind == "f" else int(text)


def _facts(values: dict[str, Any]) -> Facts | None:
    """Facts from the cell of these values; None where there are none, because what is certified contradicts them."""
    is_certified = values.pop("certified", None)
    spans = {name: value for name, value in values.items() if isinstance(value, Span)}
    if is_certified is not None and "threshold" not in spans:
        spans["threshold"] = Span(1.0, 1.0) if is_certified else MISSING
    ends: dict[str, Any] = {name: span.low for name, span in spans.items()}
    # All numbers of a span are alike to the conditions, so those are taken that make it certified if any do, or not.
    if is_certified:
        ends["threshold"] = spans["threshold"].high
    elif is_certified is not None:
        ends["uncertainty"] = spans["uncertainty"].high
    statistics = {
        name: ends.pop(f"statistics.{name}", math.nan)
        for name in ("logprob_sum", "logprob_mean", "entropy_mean", "margin_min")
    }
    others = {name: value for name, value in values.items() if name not in spans}
    facts = Facts(**others, **ends, statistics=Statistics(**statistics))
    return facts if is_certified in (None, facts.certified) else None


def _values(kind: Kind, literals: Iterable[Any]) -> list[Any]:
    """One value, or for a number with a fraction one span, below, at, between and above all literals, in its range."""
    if kind.cel == "bool":
        return [True, False]
    if kind.values:
        return list(kind.values)
    if kind.cel == "string":
        other = " "  # no tier has this name, see schema.Name
        while other in literals:
            other += " "
        return [*sorted(literals), other]
    if kind.cel == "int":
        return sorted({int(kind.low)} | {near for at in literals for near in (at - 1, at, at + 1) if near >= kind.low})
    edges = sorted({kind.low, kind.high} | {at for at in literals if kind.low <= at <= kind.high})
    gaps = [
        Span(math.nextafter(low, math.inf), math.nextafter(high, -math.inf)) for low, high in itertools.pairwise(edges)
    ]
    spans = [*(Span(edge, edge) for edge in edges), *(gap for gap in gaps if gap.low <= gap.high)]
    return [*spans, *([MISSING] if kind.may_be_missing else [])]
