"""Explanations: what the engine ruled on some facts, rule by rule, with what each part of a condition came to."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ilis_guard.policy.conditions import Situation
from ilis_guard.policy.engine import ALWAYS, BoundRule, Engine, Ruling, in_sample
from ilis_guard.policy.facts import Facts, seen
from ilis_guard.policy.parts import Finding, Part
from ilis_guard.policy.schema import Rule
from ilis_guard.sentences import GOES_ON, paragraph, passed_over, why_of
from ilis_guard.types import Mode, Stage

Outcome = Literal["decided", "passed over", "not reached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedRule:
    """One rule, and what became of it."""

    rule: Rule
    outcome: Outcome
    why: str = ""
    """Why it decided or was passed over; empty where it wasn't reached."""
    condition: Finding | None = None
    """What its condition came to; None where it has none, and where it wasn't reached."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "rule": self.rule.id,
            "do": self.rule.do.value,
            "outcome": self.outcome,
            "why": self.why,
            "condition": None if self.condition is None else self.condition.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a policy says what it says to some facts."""

    mode: Mode
    """`shadow` where what is ruled isn't done."""
    stage: Stage
    facts: Facts
    ruling: Ruling | None
    """The engine's own. None at stage `prompt` where no rule held, and the model goes on to answer."""
    rules: tuple[ExplainedRule, ...]
    """The rules of the stage, in order."""
    answer_blocked_by: str
    """What `Facts.answer_blocked_by` must say of the answer, at stage `prompt`."""

    @property
    def decisive(self) -> Finding | None:
        """What the condition came to of the rule that decided; None where none did, or it has none."""
        return next((one.condition for one in self.rules if one.outcome == "decided"), None)

    @property
    def paragraph(self) -> str:
        """The same in a few sentences."""
        facts, ruling = self.facts, self.ruling
        attempt = {"tier": facts.tier, "stage": self.stage, "uncertainty": facts.uncertainty, "error": facts.error}
        reasons = [passed_over(one.rule.id, one.why) for one in self.rules if one.outcome == "passed over"]
        reasons.append(GOES_ON if ruling is None else ruling.reasons[-1])
        return paragraph(action="" if ruling is None else ruling.action.value, attempts=[attempt], reasons=reasons)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with the facts as conditions see them: a number that is missing is null."""
        ruling = self.ruling
        return {
            "mode": self.mode,
            "stage": self.stage,
            "action": None if ruling is None else ruling.action.value,
            "rule": None if ruling is None else ruling.rule,
            "to": None if ruling is None else ruling.to,
            "say": "" if ruling is None else ruling.say,
            "paragraph": self.paragraph,
            "rules": [one.to_dict() for one in self.rules],
            "facts": {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in seen(self.facts).items()
            },
        }


def explain(engine: Engine, facts: Facts, stage: Stage = "answer", *, mode: Mode = "enforce") -> Explanation:
    """Let the engine rule on some facts, and tell what it did with each rule of that stage."""
    answer_blocked_by = ""
    ruling: Ruling | None
    if stage == "answer":
        ruling = engine.evaluate(facts)
        reasons = ruling.reasons
    else:
        early = engine.evaluate_prompt(facts)
        ruling, reasons, answer_blocked_by = early.ruling, early.reasons, early.answer_blocked_by
    rules = engine.at(stage)
    decisive = next((index for index, one in enumerate(rules) if ruling and one.rule.id == ruling.rule), len(rules))
    situation = Situation(facts)
    return Explanation(
        mode=mode,
        stage=stage,
        facts=facts,
        ruling=ruling,
        rules=(
            *(_passed_over(bound, situation, facts, reasons[index]) for index, bound in enumerate(rules[:decisive])),
            *(_decided(bound, situation, reasons[decisive]) for bound in rules[decisive : decisive + 1]),
            *(ExplainedRule(rule=bound.rule, outcome="not reached") for bound in rules[decisive + 1 :]),
        ),
        answer_blocked_by=answer_blocked_by,
    )


def _decided(bound: BoundRule, situation: Situation, reason: str) -> ExplainedRule:
    condition = None if bound.condition is ALWAYS else Part.of(bound.condition).check(situation)
    return ExplainedRule(rule=bound.rule, outcome="decided", why=why_of(reason), condition=condition)


def _passed_over(bound: BoundRule, situation: Situation, facts: Facts, reason: str) -> ExplainedRule:
    if bound.condition is ALWAYS:
        return ExplainedRule(rule=bound.rule, outcome="passed over", why=why_of(reason))
    part = Part.of(bound.condition)
    finding = part.check(situation)
    # The engine, which is in a hurry, tells a false condition as a whole; its parts say which of them made it false.
    is_false = finding.value is False and in_sample(bound.rule, facts)
    why = part.sentence(situation, value=False) if is_false else why_of(reason)
    return ExplainedRule(rule=bound.rule, outcome="passed over", why=why, condition=finding)
