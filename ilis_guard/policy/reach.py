"""Which rules can never decide, whatever the facts.

Conditions made only of comparisons of facts with literals, joined by ``&& || !``, change their value only at those
literals. So the facts fall into finitely many cells, in each of which such a condition is constant, and one set of
facts from each cell, given to the real conditions, answers for all. A rule with any other condition is opaque: it is
taken to hold in every cell where that helps it, and never to keep a later rule from deciding. So no rule that some
facts can reach is ever called unreachable; an unreachable one may be missed.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ilis_guard.policy.conditions import Situation
from ilis_guard.policy.engine import BoundRule, blind_spot, obstacle
from ilis_guard.policy.facts import VISIBLE, Facts, Kind
from ilis_guard.policy.schema import Rule
from ilis_guard.types import Action, Statistics

MAX_CELLS: Final = 10_000
"""Rules whose literals would make more cells than this are opaque. Takes about 0.1 s with 20 rules."""

Literals = Mapping[str, frozenset[Any]]
"""By fact: the literals it is compared with."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Numbers from `low` to `high`, both in it, that no condition tells apart."""

    low: float
    high: float


_MISSING: Final = _Span(math.nan, math.nan)
_ALWAYS_TOLD_APART: Final[Literals] = {
    "uncertainty": frozenset(),
    "error": frozenset({""}),
    "last_tier": frozenset(),
}
"""The facts that the engine itself looks at."""

_TOKEN: Final = re.compile(
    r"\s+|(?P<f>-?(?:\d*\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+))|(?P<i>-?\d+)|(?P<s>'[^'\\\n]*'|\"[^\"\\\n]*\")"
    r"|(?P<t>\b(?:true|false)\b)|(?P<n>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)|(?P<e>==|!=)|(?P<c><=|>=|<|>)"
    r"|(?P<o>&&|\|\|)|(?P<x>!)|(?P<l>\()|(?P<r>\))"
)
_COMPARISON: Final = re.compile(r"n[ec][fi]|[fi][ec]n|ne[st]|[st]en")


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A rule that can never decide."""

    rule: str
    shadowed_by: tuple[str, ...]
    """The rules that decide wherever this one would; empty where it can't act even if it comes first."""


def unreachable(rules: Sequence[BoundRule]) -> list[Unreachable]:
    """The rules that can never decide, in order."""
    transparent, literals = _transparent(rules)
    # For each rule not reached yet: in each cell where it would act, all rules before it that act there.
    before: dict[str, list[list[str]]] = {bound.rule.id: [] for bound in rules}
    for facts in _cells(literals):
        acting: list[str] = []
        for rule in _able(rules, facts, transparent):
            if not acting:
                before.pop(rule.id, None)
            elif rule.id in before:
                before[rule.id].append(acting.copy())
            # A sample may leave this one out. A retry to a certain tier depends on the tiers of the day.
            is_sure = rule.sample is None and not (rule.do is Action.RETRY and rule.to is not None)
            if rule.id in transparent and is_sure:
                acting.append(rule.id)
        if not before:
            break
    return [Unreachable(rule, _culprits(cells)) for rule, cells in before.items()]


def _able(rules: Sequence[BoundRule], facts: Facts, transparent: set[str]) -> Iterator[Rule]:
    """The rules that could act on these facts, if no other did before."""
    situation = Situation(facts)
    for bound in rules:
        if obstacle(bound, facts):
            continue
        is_opaque = bound.rule.id not in transparent
        if is_opaque or (bound.condition.check(situation) is True and not blind_spot(bound, facts)):
            yield bound.rule


def _culprits(cells: list[list[str]]) -> tuple[str, ...]:
    """One rule that acts in all cells if there is one, otherwise the rules that act first."""
    everywhere = [rule for rule in (cells[0] if cells else []) if all(rule in acting for acting in cells)]
    return tuple(everywhere[:1] or dict.fromkeys(acting[0] for acting in cells))


def literals_of(condition: str) -> Literals | None:
    """The literals that a condition compares facts with; None where it does anything else.

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


def _transparent(rules: Sequence[BoundRule]) -> tuple[set[str], Literals]:
    """The ids of the rules that can be looked through, as many as fit into the cells, and their literals."""
    transparent: set[str] = set()
    literals = dict(_ALWAYS_TOLD_APART)
    if any(bound.is_guaranteed for bound in rules):
        literals["certified"] = frozenset()
    for bound in rules:
        own = literals_of(bound.condition.text)
        if own is None:
            continue
        merged = {name: literals.get(name, frozenset()) | own.get(name, frozenset()) for name in [*literals, *own]}
        if math.prod(len(_values(VISIBLE[name], found)) for name, found in merged.items()) <= MAX_CELLS:
            transparent.add(bound.rule.id)
            literals = merged
    return transparent, literals


def _cells(literals: Literals) -> Iterator[Facts]:
    """One set of facts from every cell."""
    choices = [_values(VISIBLE[name], found) for name, found in literals.items()]
    for values in itertools.product(*choices):
        facts = _facts(dict(zip(literals, values, strict=True)))
        if facts is not None:
            yield facts


def _facts(values: dict[str, Any]) -> Facts | None:
    """Facts from the cell of these values; None where there are none, because what is certified contradicts them."""
    is_certified = values.pop("certified", None)
    spans = {name: value for name, value in values.items() if isinstance(value, _Span)}
    if is_certified is not None and "threshold" not in spans:
        spans["threshold"] = _Span(1.0, 1.0) if is_certified else _MISSING
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
        _Span(math.nextafter(low, math.inf), math.nextafter(high, -math.inf)) for low, high in itertools.pairwise(edges)
    ]
    spans = [*(_Span(edge, edge) for edge in edges), *(gap for gap in gaps if gap.low <= gap.high)]
    return [*spans, *([_MISSING] if kind.may_be_missing else [])]
