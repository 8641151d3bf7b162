"""Which rules can decide where: what can be said of a policy for all facts at once.

A rule whose condition isn't plain (see `cells`) is opaque: it is taken to hold in every cell where that helps it, and
never to keep a later rule from deciding. So no rule that some facts can reach is ever called unreachable; an
unreachable one may be missed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ilis_guard.policy.cells import MISSING, Literals, cells, count, literals_of, merged
from ilis_guard.policy.conditions import Situation
from ilis_guard.policy.engine import BoundRule, at_stage, missing_facts, obstacle_to, undetermined
from ilis_guard.policy.explain import facts_text
from ilis_guard.policy.facts import VISIBLE, Facts
from ilis_guard.types import STAGES, Action, Stage

MAX_TURNS: Final = 200_000
"""Rules whose literals would make more cells than this number, divided by that of all rules, are opaque: so often is a
rule looked at in a cell, which takes a second or two. With 20 rules there are up to 10,000 cells."""

_ALWAYS_TOLD_APART: Final[Mapping[Stage, Literals]] = {
    "prompt": {"uncertainty": frozenset(), "last_tier": frozenset()},
    "answer": {"uncertainty": frozenset(), "last_tier": frozenset(), "error": frozenset({""})},
}
"""The facts that the engine itself looks at."""
_SHARED: Final = ("tier", "last_tier", "attempt", "prompt_length")
"""The facts that are the same at both stages of an attempt."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A rule that could act on a cell's facts."""

    bound: BoundRule
    kept_by: tuple[str, ...]
    """The rules before it that surely decide there, or surely hold answers back; empty where it may decide."""
    is_sure: bool
    """Whether it acts there whenever its turn comes."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One set of facts, and the rules that could act on them."""

    facts: Facts
    closed_by: tuple[str, ...]
    """The rules of stage `prompt` that surely decide before there can be such facts."""
    turns: tuple[Turn, ...]

    @property
    def is_decided(self) -> bool:
        """Whether some rule surely decides."""
        return bool(self.closed_by) or any(turn.is_sure and not turn.kept_by for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A rule that can never decide."""

    rule: str
    shadowed_by: tuple[str, ...]
    """The rules that decide wherever this one would, or hold its answer back; empty where it can't act even if it
    comes first."""


class Reach:
    """A policy's rules, looked at in all cells of facts."""

    def __init__(self, rules: Sequence[BoundRule]) -> None:
        self._rules = {stage: at_stage(rules, stage) for stage in STAGES}
        self._order = [bound.rule.id for stage in STAGES for bound in self._rules[stage]]
        self._plain: set[str] = set()
        self._closers: dict[tuple[Any, ...], tuple[str, ...]] = {}
        prompt = self._read("prompt", {})
        shared = {name: found for name, found in prompt.items() if name in _SHARED}
        self._literals = {"prompt": prompt, "answer": self._read("answer", shared)}
        # Whoever may have stopped an answer at the prompt, and couldn't be told to, holds it back later.
        self._may_hold_back = any(
            bound.rule.id not in self._plain or any(VISIBLE[name].may_be_missing for name in bound.condition.names)
            for bound in self._rules["prompt"]
        )

    def told_apart(self, stage: Stage) -> tuple[str, ...]:
        """The facts by which a stage's cells differ."""
        return tuple(self._literals[stage])

    def cells(self, stage: Stage, fixed: Mapping[str, Any]) -> Iterator[Cell]:
        """Every cell at a stage, with the rules that could act in it.

        Args:
            stage: of the rules that are asked.
            fixed: as `cells.cells` takes it.
        """
        for facts in cells(self._literals[stage], {"error": "", **fixed} if stage == "prompt" else fixed):
            # Where a model fails, its rules of stage `prompt` may never have been asked.
            closed_by = self._closed_by(facts) if stage == "answer" and not facts.error else ()
            yield Cell(facts, closed_by, tuple(self._turns(stage, facts, closed_by)))

    def unreachable(self) -> list[Unreachable]:
        """The rules that can never decide, in order, those of stage `prompt` first."""
        return [item for stage in STAGES for item in self._unreachable(stage)]

    def undecided(self, tier: str) -> str:
        """Facts of an answer of this tier on which no rule surely decides, in words, if nothing is certified there.

        Empty where there are none.
        """
        fixed = {"tier": tier, "error": "", "threshold": MISSING, "certified": False}
        for cell in self.cells("answer", fixed):
            if not cell.is_decided:
                named = tuple(name for name in self._literals["answer"] if name not in fixed)
                return facts_text(Situation(cell.facts).facts(named))
        return ""

    def _read(self, stage: Stage, shared: Literals) -> Literals:
        """The literals of a stage's rules, of as many as fit into the cells; these are plain."""
        literals = merged(_ALWAYS_TOLD_APART[stage], shared)
        if stage == "answer" and any(bound.is_guaranteed for bound in self._rules[stage]):
            literals = {**literals, "certified": frozenset()}
        for bound in self._rules[stage]:
            own = literals_of(bound.condition.text)
            if own is not None and count(more := merged(literals, own)) <= MAX_TURNS // len(self._rules[stage]):
                self._plain.add(bound.rule.id)
                literals = more
        return literals

    def _closed_by(self, facts: Facts) -> tuple[str, ...]:
        """The rules of stage `prompt` that decide, whatever the prompt's score; none where it may come to an answer."""
        if not self._rules["prompt"]:
            return ()
        shared = {name: getattr(facts, name) for name in _SHARED}
        key = tuple(shared.values())
        if key not in self._closers:
            deciding = [
                next((turn.bound.rule.id for turn in cell.turns if turn.is_sure), "")
                for cell in self.cells("prompt", shared)
            ]
            self._closers[key] = tuple(dict.fromkeys(deciding)) if all(deciding) else ()
        return self._closers[key]

    def _turns(self, stage: Stage, facts: Facts, closed_by: tuple[str, ...]) -> Iterator[Turn]:
        situation = Situation(facts)
        deciding, holding_back = list(closed_by), list[str]()
        may_be_held_back = stage == "answer" and self._may_hold_back
        for bound in self._rules[stage]:
            rule, is_plain, answers = bound.rule, bound.rule.id in self._plain, bound.rule.do is Action.ANSWER
            # A sample may leave it out. A retry to a certain tier depends on the tiers of the day.
            is_sure = is_plain and rule.sample is None and not (rule.do is Action.RETRY and rule.to is not None)
            if self._could_act(bound, facts, situation):
                acts = is_sure and not (answers and may_be_held_back)
                yield Turn(bound, tuple([*deciding, *holding_back] if answers else deciding), acts)
                if acts and not (answers and holding_back):
                    deciding.append(rule.id)
            elif is_plain and undetermined(bound, facts, situation):
                holding_back += [rule.id] if is_sure else []
                may_be_held_back = may_be_held_back or not is_sure
            # It may fail on these facts.
            may_be_held_back = may_be_held_back or not (is_plain or answers)

    def _could_act(self, bound: BoundRule, facts: Facts, situation: Situation) -> bool:
        if obstacle_to(bound, facts):
            return False
        if bound.rule.id not in self._plain:
            return True
        return bound.condition.check(situation) is True and not missing_facts(bound, situation)

    def _unreachable(self, stage: Stage) -> Iterator[Unreachable]:
        # For each rule not reached yet: in each cell where it could act, all rules that keep it from that.
        kept: dict[str, list[tuple[str, ...]]] = {bound.rule.id: [] for bound in self._rules[stage]}
        for cell in self.cells(stage, {}):
            for turn in cell.turns:
                if not turn.kept_by:
                    kept.pop(turn.bound.rule.id, None)
                elif turn.bound.rule.id in kept:
                    kept[turn.bound.rule.id].append(turn.kept_by)
            if not kept:
                break
        for rule, each in kept.items():
            yield Unreachable(rule, tuple(sorted(_culprits(each), key=self._order.index)))


def unreachable(rules: Sequence[BoundRule]) -> list[Unreachable]:
    """The rules that can never decide, in order, those of stage `prompt` first."""
    return Reach(rules).unreachable()


def _culprits(each: list[tuple[str, ...]]) -> set[str]:
    """One rule that is in the way in all cells if there is one, otherwise the rules that are first in the way."""
    everywhere = [rule for rule in (each[0] if each else ()) if all(rule in kept_by for kept_by in each)]
    return set(everywhere[:1]) or {kept_by[0] for kept_by in each}
