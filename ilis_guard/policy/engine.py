"""The engine: facts in, one ruling out. It does no I/O, reads no clock, and never raises.

Simulation, shadow mode and the live guard run this same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ilis_guard.policy.conditions import Condition, ConditionBatch, Conditions, Situation, names_read
from ilis_guard.policy.facts import Facts, is_sampled
from ilis_guard.policy.parts import Part
from ilis_guard.policy.schema import Rule
from ilis_guard.types import (
    STAGES,
    Action,
    Obstacle,
    PartOutcome,
    PromptRuling,
    RuleOutcome,
    Ruling,
    Stage,
)

DEFAULT_QUEUE: Final = "default"
"""The queue of an escalate rule without `to`."""
ALWAYS: Final = Condition.of("true")
"""The condition of a rule without one."""


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule with its condition compiled."""

    rule: Rule
    condition: Condition
    """`ALWAYS` where the rule has none."""
    is_guaranteed: bool = False
    """Whether its policy gives a guarantee: then it answers nothing that isn't certified."""


class Engine:
    """Rules, ready to decide."""

    def __init__(self, rules: Sequence[BoundRule]) -> None:
        self.rules = tuple(rules)
        self._at: dict[Stage, tuple[BoundRule, ...]] = {stage: at_stage(rules, stage) for stage in STAGES}
        each = {stage: [bound.condition for bound in self._at[stage]] for stage in STAGES}
        self._conditions = {stage: Conditions(each[stage]) for stage in STAGES}
        self._names = {stage: names_read(each[stage]) for stage in STAGES}
        self._parts = {bound.rule.id: Part.of(bound.condition) for bound in rules}
        self._undetermined = {stage: ConditionBatch(map(self._undetermined_where, self._at[stage])) for stage in STAGES}

    def at(self, stage: Stage) -> tuple[BoundRule, ...]:
        """The rules of a stage, in order."""
        return self._at[stage]

    def evaluate(self, facts: Facts) -> Ruling:
        """Let the first rule of stage `answer` decide that holds and whose action is possible; else abstain.

        A rule whose condition can't be evaluated doesn't hold, and one that reads a missing number may not hold just
        because of that. Either might have kept an answer back, though: unless it would have answered itself, no rule
        after it answers.
        """
        decisive, outcomes, _ = self._first("answer", facts)
        if decisive is None:
            return Ruling(action=Action.ABSTAIN, rule=None, outcomes=outcomes)
        return _ruling(decisive, outcomes)

    def evaluate_prompt(self, facts: Facts) -> PromptRuling:
        """Let the first rule of stage `prompt` decide that holds and whose action is possible; else go on."""
        decisive, outcomes, blocked_by = self._first("prompt", facts)
        ruling = None if decisive is None else _ruling(decisive, outcomes)
        return PromptRuling(ruling=ruling, outcomes=outcomes, answer_blocked_by=blocked_by)

    def _first(self, stage: Stage, facts: Facts) -> tuple[Rule | None, tuple[RuleOutcome, ...], Obstacle | None]:
        """The first rule that decides, the outcomes up to it, and what blocks any answer by then."""
        situation = Situation(facts, self._names[stage])
        undetermined = UndeterminedRules(self._at[stage], self._undetermined[stage], facts, situation)
        outcomes: list[RuleOutcome] = []
        blocked_by = facts.answer_blocked_by or invalid_labels(facts)
        values = self._conditions[stage].check(situation)
        for index, (bound, value) in enumerate(zip(self._at[stage], values, strict=True)):
            rule, condition = bound.rule, bound.condition
            if not in_sample(rule, facts):
                outcomes.append(RuleOutcome(rule=rule.id, stage=stage, outcome="not_sampled", sample=rule.sample))
            elif value is False:
                part = PartOutcome(condition=condition.brief, value=False, facts=situation.facts(condition.names))
                outcomes.append(
                    RuleOutcome(rule=rule.id, stage=stage, outcome="not_held", parts=(part,), sample=rule.sample)
                )
                if not blocked_by:
                    blocked_by = undetermined.obstacle(index)
            elif value is not True:
                outcomes.append(
                    RuleOutcome(
                        rule=rule.id,
                        stage=stage,
                        outcome="failed",
                        condition=condition.brief,
                        detail=value,
                        sample=rule.sample,
                    )
                )
                if not blocked_by and rule.do is not Action.ANSWER:
                    blocked_by = Obstacle(kind="rule_failed", rule=rule.id, detail=value)
            else:
                obstacle = obstacle_to(bound, facts) or missing_facts(bound, situation)
                if obstacle is None and rule.do is Action.ANSWER:
                    obstacle = blocked_by
                outcomes.append(self._held(bound, situation, obstacle))
                if obstacle is None:
                    return rule, tuple(outcomes), blocked_by
        return None, tuple(outcomes), blocked_by

    def _held(self, bound: BoundRule, situation: Situation, obstacle: Obstacle | None) -> RuleOutcome:
        """The outcome of a rule whose condition is true."""
        is_plain = bound.condition is ALWAYS
        return RuleOutcome(
            rule=bound.rule.id,
            stage=bound.rule.stage,
            outcome="decided" if obstacle is None else "obstructed",
            parts=() if is_plain else self._parts[bound.rule.id].outcomes(situation, value=True),
            sample=bound.rule.sample,
            obstacle=obstacle,
        )

    def _undetermined_where(self, bound: BoundRule) -> str:
        """A condition that is false only where a rule can't be undetermined, whatever the facts."""
        return "false" if bound.rule.do is Action.ANSWER else self._parts[bound.rule.id].may_be(True)


def at_stage(rules: Sequence[BoundRule], stage: Stage) -> tuple[BoundRule, ...]:
    """The rules of a stage, in order."""
    return tuple(bound for bound in rules if bound.rule.stage == stage)


def invalid_labels(facts: Facts) -> Obstacle | None:
    """Why nothing may be answered: rules can't read these labels. None where they can."""
    problem = facts.label_problem
    return Obstacle(kind="invalid_labels", detail=problem) if problem else None


def in_sample(rule: Rule, facts: Facts) -> bool:
    """Whether a rule that holds for a share of requests may hold for this one: in all its attempts, or in none."""
    return rule.sample is None or is_sampled(facts.sampling_key, rule.id, rule.sample)


def obstacle_to(bound: BoundRule, facts: Facts) -> Obstacle | None:
    """Why a rule that holds can't act all the same; None where it can.

    No policy can answer without a score, or beyond the guarantee that it gives, however it is written. A retry needs
    a larger tier to go to.
    """
    if bound.rule.do is Action.ANSWER:
        return _obstacle_to_answer(bound, facts)
    return _obstacle_to_retry(bound.rule, facts) if bound.rule.do is Action.RETRY else None


def _obstacle_to_answer(bound: BoundRule, facts: Facts) -> Obstacle | None:
    if facts.error:
        return Obstacle(kind="attempt_failed")
    if not facts.has_score:
        return Obstacle(kind="no_score")
    if bound.is_guaranteed and not facts.calibrated:
        return Obstacle(kind="not_calibrated")
    if bound.is_guaranteed and not facts.certified:
        return Obstacle(kind="not_certified", threshold=facts.threshold)
    return None


def _obstacle_to_retry(rule: Rule, facts: Facts) -> Obstacle | None:
    if facts.last_tier:
        return Obstacle(kind="no_larger_tier")
    if rule.to is not None and rule.to == facts.tier:
        return Obstacle(kind="same_tier", tier=rule.to)
    if rule.to is not None and facts.larger_tiers is not None and rule.to not in facts.larger_tiers:
        return Obstacle(kind="not_a_larger_tier", tier=rule.to)
    return None


def missing_facts(bound: BoundRule, situation: Situation) -> Obstacle | None:
    """Why an answer rule that holds would rest on a missing number; None where it wouldn't.

    `!(typicality < 0.01)` holds where there is no typicality: an answer must not rest on that.
    """
    fact = situation.missing(bound.condition.names) if bound.rule.do is Action.ANSWER else ""
    return Obstacle(kind="missing_fact", fact=fact) if fact else None


class UndeterminedRules:
    """Which rules of a stage don't hold only because a number is missing, or may do so: no rule may answer after them.

    `typicality < 0.05` is false where there is no typicality, and says nothing against escalating. An answer rule
    after it would answer although a person might have been wanted. CEL doesn't evaluate every rule: one expression for
    the whole stage tells which can't be undetermined.

    Args:
        rules: the stage's, in order.
        possibly: by rule, a condition that is false only where the rule is determined.
        facts: what they read.
        situation: the same.
    """

    __slots__ = ("_are_determined", "_facts", "_may_be", "_possibly", "_rules", "_situation")

    def __init__(
        self, rules: Sequence[BoundRule], possibly: ConditionBatch, facts: Facts, situation: Situation
    ) -> None:
        self._rules = rules
        self._possibly = possibly
        self._facts = facts
        self._situation = situation
        # Without a score nothing is answered anyway; at the prompt, the answer's own score is still to come.
        self._are_determined = situation.is_complete or bool(facts.error) or not facts.has_score
        self._may_be: Sequence[bool] | None = None

    def obstacle(self, index: int) -> Obstacle | None:
        """What blocks an answer after the rule at this index, whose condition is false; None where it is determined."""
        if self._are_determined:
            return None
        if self._may_be is None:
            found = self._possibly.evaluate(self._situation.activation)
            self._may_be = [True] * len(self._rules) if found is None else found
        return undetermined(self._rules[index], self._facts, self._situation) if self._may_be[index] else None


def undetermined(bound: BoundRule, facts: Facts, situation: Situation) -> Obstacle | None:
    """What blocks an answer after a rule that doesn't hold: a missing number keeps it from holding, or may do so.

    None where the rule wouldn't hold whatever the number was, couldn't act if it did, and where there is no score.
    """
    fact = situation.missing(bound.condition.names)
    if not fact or bound.rule.do is Action.ANSWER or facts.error or not facts.has_score:
        return None
    if obstacle_to(bound, facts) or not bound.condition.might_hold(situation):
        return None
    return Obstacle(kind="rule_undetermined", rule=bound.rule.id, fact=fact)


def _ruling(rule: Rule, outcomes: tuple[RuleOutcome, ...]) -> Ruling:
    return Ruling(
        action=rule.do,
        rule=rule.id,
        stage=rule.stage,
        to=rule.to or DEFAULT_QUEUE if rule.do is Action.ESCALATE else rule.to,
        say=rule.say or "",
        due=rule.due_seconds,
        outcomes=outcomes,
    )
