"""The engine: facts in, one ruling out. It does no I/O, asks no clock, and never raises.

Simulation, shadow mode and the live guard run this same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ilis_guard.policy.conditions import Condition, Conditions, Situation, Together, looked_at
from ilis_guard.policy.facts import Facts
from ilis_guard.policy.parts import Part
from ilis_guard.policy.sampling import drawn
from ilis_guard.policy.schema import Rule
from ilis_guard.sentences import NO_RULE_HELD, came_to, decided, passed_over
from ilis_guard.types import STAGES, Action, Stage

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
    due: float | None = None
    """Seconds until an escalated request's ticket is overdue; None for the queue's own time, and for other actions."""
    reasons: tuple[str, ...]
    """A sentence for each rule looked at, in order; the last one says what decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRuling:
    """What a policy says before a token is generated. It never answers: there is nothing to answer with."""

    ruling: Ruling | None
    """None where no rule of stage `prompt` held: the model goes on to answer."""
    reasons: tuple[str, ...]
    """As a ruling's; without a ruling, why each rule was passed over."""
    answer_blocked_by: str
    """As `Facts.answer_blocked_by` of the answer: a rule that couldn't be told to hold might have stopped it."""


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
        self._names = {stage: looked_at(each[stage]) for stage in STAGES}
        self._parts = {bound.rule.id: Part.of(bound.condition) for bound in rules}
        self._doubtful = {stage: Together(map(self._doubtful_where, self._at[stage])) for stage in STAGES}

    def at(self, stage: Stage) -> tuple[BoundRule, ...]:
        """The rules of a stage, in order."""
        return self._at[stage]

    def evaluate(self, facts: Facts) -> Ruling:
        """Let the first rule of stage `answer` decide that holds and whose action is possible; else abstain.

        A rule whose condition can't be evaluated doesn't hold, and one that looks at a missing number may not hold
        just because of that. Either might have kept an answer back, though: unless it would have answered itself, no
        rule after it answers.
        """
        ruling, reasons, _ = self._first("answer", facts)
        if ruling is not None:
            return ruling
        reasons.append(NO_RULE_HELD)
        return Ruling(action=Action.ABSTAIN, rule=None, to=None, say="", reasons=tuple(reasons))

    def evaluate_prompt(self, facts: Facts) -> PromptRuling:
        """Let the first rule of stage `prompt` decide that holds and whose action is possible; else go on."""
        ruling, reasons, unclear = self._first("prompt", facts)
        return PromptRuling(
            ruling=ruling, reasons=tuple(reasons) if ruling is None else ruling.reasons, answer_blocked_by=unclear
        )

    def _first(self, stage: Stage, facts: Facts) -> tuple[Ruling | None, list[str], str]:
        """The ruling of the first rule that decides, why those before it didn't, and why nothing may be answered."""
        situation = Situation(facts, self._names[stage])
        doubts = Doubts(self._at[stage], self._doubtful[stage], facts, situation)
        reasons: list[str] = []
        unclear = facts.answer_blocked_by or mislabelled(facts)
        outcomes = self._conditions[stage].check(situation)
        for index, (bound, outcome) in enumerate(zip(self._at[stage], outcomes, strict=True)):
            rule, condition = bound.rule, bound.condition
            if not in_sample(rule, facts):
                why = f"it holds for a sample of {rule.sample:g}, and this request wasn't drawn"
            elif outcome is False:
                why = came_to(condition.brief, False, situation.describe(condition.names))
                if not unclear:
                    unclear = doubts.about(index)
            elif outcome is not True:
                why = f"condition `{condition.brief}` failed: {outcome}"
                if not unclear and rule.do is not Action.ANSWER:
                    unclear = f"rule '{rule.id}' couldn't be evaluated, so nothing is answered after it: {outcome}"
            else:
                why = (
                    obstacle(bound, facts)
                    or missing_facts(bound, situation)
                    or (unclear if rule.do is Action.ANSWER else "")
                )
                if not why:
                    return _ruling(rule, self._because(bound, situation), reasons), reasons, unclear
            reasons.append(passed_over(rule.id, why))
        return None, reasons, unclear

    def _doubtful_where(self, bound: BoundRule) -> str:
        """A condition without which there is no `doubt` about a rule, whatever the facts."""
        return "false" if bound.rule.do is Action.ANSWER else self._parts[bound.rule.id].possibly(True)

    def _because(self, bound: BoundRule, situation: Situation) -> str:
        """Why a rule holds, told by those of its condition's parts that make it hold."""
        rule = bound.rule
        is_plain = bound.condition is ALWAYS
        held = "it has no condition" if is_plain else self._parts[rule.id].sentence(situation, value=True)
        return held if rule.sample is None else f"{held}, and this request was drawn (a sample of {rule.sample:g})"


def at_stage(rules: Sequence[BoundRule], stage: Stage) -> tuple[BoundRule, ...]:
    """The rules that are asked at a stage, in order."""
    return tuple(bound for bound in rules if bound.rule.stage == stage)


def mislabelled(facts: Facts) -> str:
    """Why nothing may be answered: rules can't look at these labels. Empty where they can."""
    wrong = facts.mislabelled
    return f"{wrong}, so nothing is answered" if wrong else ""


def in_sample(rule: Rule, facts: Facts) -> bool:
    """Whether a rule that holds for a share of requests may hold for this one: in all its attempts, or in none."""
    return rule.sample is None or drawn(facts.sampling_key, rule.id) < rule.sample


def obstacle(bound: BoundRule, facts: Facts) -> str:
    """Why a rule that holds can't act all the same; empty where it can.

    No policy can answer without a score, or beyond the guarantee that it gives, however it is written. A retry needs
    a larger tier to go to.
    """
    if bound.rule.do is Action.ANSWER:
        return _answers_not(bound, facts)
    return _retries_not(bound.rule, facts) if bound.rule.do is Action.RETRY else ""


def _answers_not(bound: BoundRule, facts: Facts) -> str:
    if facts.error:
        return "it would answer, but the attempt failed"
    if not facts.has_score:
        return "it would answer, but the attempt has no uncertainty from 0 to 1"
    if bound.is_guaranteed and not facts.certified:
        covered = "no uncertainty" if facts.threshold is None else f"only an uncertainty up to {facts.threshold:.6g}"
        return f"it would answer, but on this tier the policy's guarantee covers {covered}"
    return ""


def _retries_not(rule: Rule, facts: Facts) -> str:
    if facts.last_tier:
        return "it would retry, but there is no larger tier"
    if rule.to is not None and rule.to == facts.tier:
        return f"it would retry on {rule.to!r}, but that tier made this attempt"
    if rule.to is not None and facts.larger_tiers is not None and rule.to not in facts.larger_tiers:
        return f"it would retry on {rule.to!r}, but that isn't one of the larger tiers left"
    return ""


def missing_facts(bound: BoundRule, situation: Situation) -> str:
    """Why an answer rule that holds would answer blindly; empty where it wouldn't.

    `!(typicality < 0.01)` holds where there is no typicality: an answer must not rest on a number that is missing.
    """
    missing = situation.missing(bound.condition.names) if bound.rule.do is Action.ANSWER else ""
    return f"it would answer, but it looks at {missing}, which is missing" if missing else ""


def doubt(bound: BoundRule, facts: Facts, situation: Situation) -> str:
    """Why no rule may answer after one that doesn't hold: a missing number keeps it from holding, or may do so.

    `typicality < 0.05` is false where there is no typicality, and says nothing against escalating. Who answers then
    would answer on a blind spot, as `missing_facts` says of an answer rule's own numbers. Empty where the rule
    wouldn't hold whatever the number was, couldn't act if it did, and where there's no score: then nothing is answered
    anyway, or, at the prompt, the tier scores no prompts and the answer's own score is still to come.
    """
    missing = situation.missing(bound.condition.names)
    if not missing or bound.rule.do is Action.ANSWER or facts.error or not facts.has_score:
        return ""
    if obstacle(bound, facts) or not bound.condition.might_hold(situation):
        return ""
    return f"rule '{bound.rule.id}' might have held: it looks at {missing}, which is missing, so nothing is answered"


class Doubts:
    """What `doubt` says of a stage's rules on some facts, without CEL being asked about every one of them.

    Args:
        rules: the stage's, in order.
        doubtful: by rule, a condition without which there is no doubt about it.
        facts: what they look at.
        situation: the same.
    """

    __slots__ = ("_are_doubtful", "_are_none", "_doubtful", "_facts", "_rules", "_situation")

    def __init__(self, rules: Sequence[BoundRule], doubtful: Together, facts: Facts, situation: Situation) -> None:
        self._rules = rules
        self._doubtful = doubtful
        self._facts = facts
        self._situation = situation
        self._are_none = situation.is_complete or bool(facts.error) or not facts.has_score
        self._are_doubtful: Sequence[bool] | None = None

    def about(self, index: int) -> str:
        """As `doubt`, of the rule at this index, whose condition is false."""
        if self._are_none:
            return ""
        if self._are_doubtful is None:
            found = self._doubtful.evaluate(self._situation.activation)
            self._are_doubtful = [True] * len(self._rules) if found is None else found
        return doubt(self._rules[index], self._facts, self._situation) if self._are_doubtful[index] else ""


def _ruling(rule: Rule, because: str, before: list[str]) -> Ruling:
    return Ruling(
        action=rule.do,
        rule=rule.id,
        to=rule.to or DEFAULT_QUEUE if rule.do is Action.ESCALATE else rule.to,
        say=rule.say or "",
        due=rule.due_seconds,
        reasons=(*before, decided(rule.id, rule.do.value, because, at_prompt=rule.stage == "prompt")),
    )
