"""The engine: facts in, one ruling out. It does no I/O, asks no clock, and never raises.

Simulation, shadow mode and the live guard run this same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ilis_guard.policy.conditions import Condition, Conditions, Situation
from ilis_guard.policy.facts import Facts
from ilis_guard.policy.schema import Rule
from ilis_guard.types import Action

DEFAULT_QUEUE: Final = "default"
"""Where an escalate rule without `to` sends."""
ALWAYS: Final = Condition.of("true")
"""The condition of a rule without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What a policy says to one set of facts."""

    action: Action
    rule: str | None
    """Id of the rule that decided; None where no rule held."""
    to: str | None
    """A queue's name for escalate; a tier's for retry, or None for the next larger; None for other actions."""
    say: str
    """What the caller is told; may be empty."""
    reasons: tuple[str, ...]
    """A sentence for each rule looked at, in order; the last one says what decided."""


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule with its condition compiled."""

    rule: Rule
    condition: Condition
    """`ALWAYS` where the rule has none."""


class Engine:
    """Rules, ready to decide."""

    def __init__(self, rules: Sequence[BoundRule]) -> None:
        self._rules = tuple(rules)
        self._conditions = Conditions([bound.condition for bound in rules])

    def evaluate(self, facts: Facts) -> Ruling:
        """Let the first rule decide that holds and whose action is possible; abstain where there is none.

        A rule whose condition can't be evaluated doesn't hold. It might have kept an answer back, though: unless it
        would have answered itself, no rule after it answers.
        """
        situation = Situation(facts)
        reasons: list[str] = []
        unclear = ""
        for bound, outcome in zip(self._rules, self._conditions.check(situation), strict=True):
            rule, condition = bound.rule, bound.condition
            if outcome is False:
                why = f"{situation.describe(condition.names)}condition `{condition.brief}` is false"
            elif outcome is not True:
                why = f"condition `{condition.brief}` failed: {outcome}"
                if not unclear and rule.do is not Action.ANSWER:
                    unclear = f"rule '{rule.id}' couldn't be evaluated, so nothing is answered after it: {outcome}"
            else:
                why = obstacle(rule, facts) or blind_spot(bound, facts) or (unclear if rule.do is Action.ANSWER else "")
                if not why:
                    return _ruling(bound, situation, reasons)
            reasons.append(f"rule '{rule.id}' passed over: {why}")
        reasons.append("no rule held: abstained")
        return Ruling(action=Action.ABSTAIN, rule=None, to=None, say="", reasons=tuple(reasons))


def obstacle(rule: Rule, facts: Facts) -> str:
    """Why a rule that holds can't act all the same; empty where it can.

    No policy can answer without a score, however it is written. A retry needs a larger tier to go to.
    """
    if rule.do is Action.ANSWER:
        if facts.error:
            return "it would answer, but the attempt failed"
        if not facts.has_score:
            return "it would answer, but the attempt has no uncertainty from 0 to 1"
    if rule.do is Action.RETRY:
        if facts.last_tier:
            return "it would retry, but there is no larger tier"
        if rule.to is not None and rule.to == facts.tier:
            return f"it would retry on {rule.to!r}, but that tier made this attempt"
        if rule.to is not None and facts.larger_tiers is not None and rule.to not in facts.larger_tiers:
            return f"it would retry on {rule.to!r}, but that isn't one of the larger tiers left"
    return ""


def blind_spot(bound: BoundRule, facts: Facts) -> str:
    """Why an answer rule that holds would answer blindly; empty where it wouldn't.

    `!(shift < 0.01)` holds where there is no shift: an answer must not rest on a number that is missing.
    """
    missing = facts.missing(bound.condition.names) if bound.rule.do is Action.ANSWER else ""
    return f"it would answer, but it looks at {missing}, which is missing" if missing else ""


def _ruling(bound: BoundRule, situation: Situation, passed_over: list[str]) -> Ruling:
    rule, condition = bound.rule, bound.condition
    held = f"{situation.describe(condition.names)}condition `{condition.brief}` is true"
    because = "it has no condition" if condition is ALWAYS else held
    return Ruling(
        action=rule.do,
        rule=rule.id,
        to=rule.to or DEFAULT_QUEUE if rule.do is Action.ESCALATE else rule.to,
        say=rule.say or "",
        reasons=(*passed_over, f"rule '{rule.id}' decided: {rule.do.value}, because {because}"),
    )
