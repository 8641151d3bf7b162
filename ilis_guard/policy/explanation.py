"""Explanations of a policy on given facts: what became of each rule, and of each part of its condition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ilis_guard.policy.conditions import Situation
from ilis_guard.policy.engine import ALWAYS, BoundRule, Engine
from ilis_guard.policy.explain import attempt_text, outcome_text, passed_over_text, ruling_text, uncalibrated_text
from ilis_guard.policy.facts import Facts, fact_values
from ilis_guard.policy.parts import Finding, Part
from ilis_guard.policy.schema import Rule
from ilis_guard.types import (
    Attempt,
    ErrorInfo,
    Mode,
    Obstacle,
    RuleOutcome,
    Ruling,
    Stage,
)
from ilis_guard.types.rulings import json_values


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedRule:
    """One rule of a policy, and what became of it on some facts."""

    rule: Rule
    outcome: RuleOutcome | None = None
    """None where it wasn't reached."""
    condition: Finding | None = None
    """What its condition came to; None where it has none, and where it wasn't reached."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "rule": self.rule.id,
            "do": self.rule.do.value,
            "outcome": "not_reached" if self.outcome is None else self.outcome.outcome,
            "why": "" if self.outcome is None else outcome_text(self.outcome),
            "condition": None if self.condition is None else self.condition.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a policy rules as it does on some facts."""

    mode: Mode
    """`shadow` where what is ruled isn't done."""
    stage: Stage
    facts: Facts
    ruling: Ruling | None
    """The engine's own. None at stage `prompt` where no rule held, and the model goes on to answer."""
    rules: tuple[ExplainedRule, ...]
    """The rules of the stage, in order."""
    answer_blocked_by: Obstacle | None
    """As `PromptRuling.answer_blocked_by`, at stage `prompt`."""

    @property
    def decisive(self) -> Finding | None:
        """What the condition came to of the rule that decided; None where none did, or it has none."""
        return next((one.condition for one in self.rules if one.outcome and one.outcome.outcome == "decided"), None)

    @property
    def paragraph(self) -> str:
        """The same in a few sentences."""
        facts = self.facts
        error = ErrorInfo(kind=facts.error, message="") if facts.error else None
        attempt = Attempt(
            tier=facts.tier, stage=self.stage, uncertainty=facts.uncertainty, rank=facts.rank, error=error
        )
        outcomes = tuple(one.outcome for one in self.rules if one.outcome is not None)
        passed = tuple(one for one in outcomes if one.outcome != "decided")
        ruled = "No rule held, so the model goes on to answer." if self.ruling is None else ruling_text(self.ruling)
        is_uncalibrated = facts.has_uncertainty and not facts.calibrated
        return " ".join(
            [
                attempt_text(attempt),
                *([uncalibrated_text()] if is_uncalibrated else []),
                ruled,
                *([passed_over_text(passed)] if passed else []),
            ]
        )

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
            "facts": json_values(fact_values(self.facts)),
        }


def explain(engine: Engine, facts: Facts, stage: Stage = "answer", *, mode: Mode = "enforce") -> Explanation:
    """Let the engine rule on some facts, and say what became of each rule of that stage."""
    blocked_by: Obstacle | None = None
    ruling: Ruling | None
    if stage == "answer":
        ruling = engine.evaluate(facts)
        outcomes = ruling.outcomes
    else:
        prompt = engine.evaluate_prompt(facts)
        ruling, outcomes, blocked_by = prompt.ruling, prompt.outcomes, prompt.answer_blocked_by
    situation = Situation(facts)
    return Explanation(
        mode=mode,
        stage=stage,
        facts=facts,
        ruling=ruling,
        rules=tuple(_explained(engine.at(stage), outcomes, situation)),
        answer_blocked_by=blocked_by,
    )


def _explained(
    rules: Sequence[BoundRule], outcomes: Sequence[RuleOutcome], situation: Situation
) -> Iterator[ExplainedRule]:
    for index, bound in enumerate(rules):
        if index >= len(outcomes):
            yield ExplainedRule(rule=bound.rule)
        elif bound.condition is ALWAYS:
            yield ExplainedRule(rule=bound.rule, outcome=outcomes[index])
        else:
            part, outcome = Part.of(bound.condition), outcomes[index]
            # The engine, which is in a hurry, keeps a false condition whole; here the parts that made it false count.
            if outcome.outcome == "not_held":
                outcome = replace(outcome, parts=part.outcomes(situation, value=False))
            yield ExplainedRule(rule=bound.rule, outcome=outcome, condition=part.check(situation))
