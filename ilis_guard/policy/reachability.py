"""Reachability analysis: what can be said of a policy's rules for all facts at once, or for facts still partly open.

A rule with a condition that isn't plain (see `syntax.is_plain`) is opaque: it is taken to hold in every equivalence
class where that helps it, and never to keep a later rule from deciding. So no rule that some facts can reach is ever
called unreachable; an unreachable one may be missed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ilis_guard.policy.conditions import Conditions, Situation, names_read
from ilis_guard.policy.engine import (
    BoundRule,
    at_stage,
    in_sample,
    invalid_labels,
    missing_facts,
    obstacle_to,
    undetermined,
)
from ilis_guard.policy.equivalence import MISSING, ClassLiterals, class_count, representatives, united
from ilis_guard.policy.explain import facts_text
from ilis_guard.policy.facts import VISIBLE, Facts
from ilis_guard.policy.syntax import is_plain, literals
from ilis_guard.types import STAGES, Action, Stage

MAX_MATCHES: Final = 200_000
"""A rule whose literals would make more classes than this number, divided by that of all rules, is opaque: so often is
a rule matched with a class, which takes about a second. With 20 rules there are up to 10,000 classes."""
UNKNOWN_UNTIL_END: Final = frozenset(
    {"cost", "finish_reason", "seconds", "typicality", "text_length", "tokens"}
    | {"statistics.entropy_mean", "statistics.logprob_mean"}
)
"""Facts that an answer has only at its end: until then they are unknown, however they stand. The other statistics only
fall on the way, so that a rule against low ones holds on."""

_READ_BY_ENGINE: Final[Mapping[Stage, ClassLiterals]] = {
    "prompt": {"uncertainty": frozenset(), "last_tier": frozenset()},
    "answer": {"uncertainty": frozenset(), "last_tier": frozenset(), "error": frozenset({""})},
}
_SHARED: Final = ("tier", "last_tier", "attempt", "prompt_length")
"""The facts that are the same at both stages of an attempt."""


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """A rule that could act on the facts of a class."""

    bound: BoundRule
    preempted_by: tuple[str, ...]
    """The rules before it that surely decide there, or surely block answers; empty where it may decide."""
    is_certain: bool
    """Whether it acts there unless a rule before it does."""


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """An equivalence class of facts, and the rules that could act on them."""

    facts: Facts
    """Its representative."""
    decided_at_prompt_by: tuple[str, ...]
    """The rules of stage `prompt` that surely decide before there can be such facts."""
    matches: tuple[RuleMatch, ...]

    @property
    def is_decided(self) -> bool:
        """Whether some rule surely decides."""
        return bool(self.decided_at_prompt_by) or any(
            match.is_certain and not match.preempted_by for match in self.matches
        )


@dataclass(frozen=True, slots=True)
class UnreachableRule:
    """A rule that can never decide."""

    rule: str
    shadowed_by: tuple[str, ...]
    """The rules that decide wherever this one would, or block its answer; empty where it can't act even if it comes
    first."""


class ReachabilityAnalysis:
    """A policy's rules, matched with all equivalence classes of facts."""

    def __init__(self, rules: Sequence[BoundRule]) -> None:
        self._rules = {stage: at_stage(rules, stage) for stage in STAGES}
        self._order = [bound.rule.id for stage in STAGES for bound in self._rules[stage]]
        self._plain: set[str] = set()
        self._decided_at_prompt: dict[tuple[Any, ...], tuple[str, ...]] = {}
        prompt = self._delimiters("prompt", {})
        shared = {name: found for name, found in prompt.items() if name in _SHARED}
        self._literals = {"prompt": prompt, "answer": self._delimiters("answer", shared)}
        plain = {
            stage: [bound.condition for bound in self._rules[stage] if bound.rule.id in self._plain] for stage in STAGES
        }
        self._conditions = {stage: Conditions(plain[stage]) for stage in STAGES}
        self._names = {stage: names_read(plain[stage]) for stage in STAGES}
        # A rule of stage `prompt` that may have stopped an answer, and was undetermined, blocks the answer later.
        self._prompt_may_block = any(
            bound.rule.id not in self._plain or any(VISIBLE[name].may_be_missing for name in bound.condition.names)
            for bound in self._rules["prompt"]
        )

    def distinguishing_facts(self, stage: Stage) -> tuple[str, ...]:
        """The facts by which a stage's classes differ."""
        return tuple(self._literals[stage])

    def classes(self, stage: Stage, fixed: Mapping[str, Any]) -> Iterator[ClassMatches]:
        """Yield every class of facts at a stage, with the stage's rules that could act there.

        Args:
            stage: the stage.
            fixed: as `equivalence.representatives` takes it.
        """
        fixed = {"error": "", **fixed} if stage == "prompt" else fixed
        for facts in representatives(self._literals[stage], fixed):
            # Where a model fails, its rules of stage `prompt` may never have been evaluated.
            preempted_by = self._preempted_by(facts) if stage == "answer" and not facts.error else ()
            yield ClassMatches(facts, preempted_by, tuple(self._matches(stage, facts, preempted_by)))

    def unreachable(self) -> list[UnreachableRule]:
        """The rules that can never decide, in order, those of stage `prompt` first."""
        return [item for stage in STAGES for item in self._unreachable(stage)]

    def undecided_where_uncertified(self, tier: str) -> str:
        """As `undecided`, of an answer of this tier if nothing is certified there."""
        return self.undecided({"tier": tier, "error": "", "threshold": MISSING, "certified": False})

    def undecided(self, fixed: Mapping[str, Any]) -> str:
        """Facts on which no rule of stage `answer` surely decides, in words; empty where there are none.

        Args:
            fixed: as `equivalence.representatives` takes it.
        """
        for one in self.classes("answer", fixed):
            if not one.is_decided:
                named = tuple(name for name in self._literals["answer"] if name not in fixed)
                return facts_text(Situation(one.facts).facts(named))
        return ""

    def _delimiters(self, stage: Stage, shared: ClassLiterals) -> ClassLiterals:
        """The literals of as many of a stage's rules as the classes allow; these rules are plain."""
        delimiters = united(_READ_BY_ENGINE[stage], shared)
        if stage == "answer" and any(bound.is_guaranteed for bound in self._rules[stage]):
            delimiters = {**delimiters, "certified": frozenset()}
        for bound in self._rules[stage]:
            if not is_plain(bound.condition.tree):
                continue
            own = {name: found or frozenset() for name, found in literals(bound.condition.tree).items()}
            if class_count(more := united(delimiters, own)) <= MAX_MATCHES // len(self._rules[stage]):
                self._plain.add(bound.rule.id)
                delimiters = more
        return delimiters

    def _preempted_by(self, facts: Facts) -> tuple[str, ...]:
        """The rules of stage `prompt` that decide, whatever the prompt's score; none where it may come to an answer."""
        if not self._rules["prompt"]:
            return ()
        shared = {name: getattr(facts, name) for name in _SHARED}
        key = tuple(shared.values())
        if key not in self._decided_at_prompt:
            deciding = [
                next((match.bound.rule.id for match in one.matches if match.is_certain), "")
                for one in self.classes("prompt", shared)
            ]
            self._decided_at_prompt[key] = tuple(dict.fromkeys(deciding)) if all(deciding) else ()
        return self._decided_at_prompt[key]

    def _matches(self, stage: Stage, facts: Facts, preempted_by: tuple[str, ...]) -> Iterator[RuleMatch]:
        situation = Situation(facts, self._names[stage])
        deciding, blocking = list(preempted_by), list[str]()
        may_be_blocked = stage == "answer" and self._prompt_may_block
        values = iter(self._conditions[stage].check(situation))
        for bound in self._rules[stage]:
            rule, plain, answers = bound.rule, bound.rule.id in self._plain, bound.rule.do is Action.ANSWER
            # A sample may leave it out. A retry to a certain tier depends on the tiers of the day.
            is_certain = plain and rule.sample is None and not (rule.do is Action.RETRY and rule.to is not None)
            holds = not plain or (next(values) is True and not missing_facts(bound, situation))
            if holds and not obstacle_to(bound, facts):
                acts = is_certain and not (answers and may_be_blocked)
                yield RuleMatch(bound, tuple([*deciding, *blocking] if answers else deciding), acts)
                if acts and not (answers and blocking):
                    deciding.append(rule.id)
            elif plain and undetermined(bound, facts, situation):
                blocking += [rule.id] if is_certain else []
                may_be_blocked = may_be_blocked or not is_certain
            # It may fail on these facts.
            may_be_blocked = may_be_blocked or not (plain or answers)

    def _unreachable(self, stage: Stage) -> Iterator[UnreachableRule]:
        # For each rule not reached yet: in each class where it could act, all rules that preempt it.
        preempted: dict[str, list[tuple[str, ...]]] = {bound.rule.id: [] for bound in self._rules[stage]}
        for one in self.classes(stage, {}):
            for match in one.matches:
                if not match.preempted_by:
                    preempted.pop(match.bound.rule.id, None)
                elif match.bound.rule.id in preempted:
                    preempted[match.bound.rule.id].append(match.preempted_by)
            if not preempted:
                break
        for rule, each in preempted.items():
            yield UnreachableRule(rule, tuple(sorted(_shadowing(each), key=self._order.index)))


def _shadowing(each: list[tuple[str, ...]]) -> set[str]:
    """One rule that preempts in all classes if there is one, otherwise the rules that are the first to do so."""
    everywhere = [rule for rule in (each[0] if each else ()) if all(rule in preempted_by for preempted_by in each)]
    return set(everywhere[:1]) or {preempted_by[0] for preempted_by in each}


def may_answer(rules: Iterable[BoundRule], facts: Facts, *, tiers_may_go: bool) -> bool:
    """Whether some rule may still answer with an answer under way, if its uncertainty stays as it is.

    Conditions are evaluated without the facts in `UNKNOWN_UNTIL_END`: a rule that depends on one of them may hold or
    not, and counts in favour of the answer both times. So nothing is ruled out that a full answer with this score might
    come to.

    Args:
        rules: of stage `answer`, in order.
        facts: of the attempt as far as it has come.
        tiers_may_go: whether a larger tier that is left now may be out of reach at the answer's end.
    """
    if facts.error or facts.answer_blocked_by or invalid_labels(facts):
        return False
    is_open = tiers_may_go and not facts.last_tier
    unknown = UNKNOWN_UNTIL_END | {"last_tier"} if is_open else UNKNOWN_UNTIL_END
    situation = Situation(facts, unknown=unknown)
    for bound in rules:
        holds = bound.condition.known_value(situation) if in_sample(bound.rule, facts) else False
        if holds is False or obstacle_to(bound, facts):
            continue
        if bound.rule.do is Action.ANSWER:
            if not missing_facts(bound, situation):
                return True
        elif holds and not (bound.rule.do is Action.RETRY and is_open):
            return False
    return False
