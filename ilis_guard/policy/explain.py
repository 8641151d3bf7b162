"""Explanations: the only place where rulings, attempts and errors become sentences. Nothing reads them back.

What is made here is for reviewers and operators: it quotes facts and labels, and errors by their kind. Prompts and
answers aren't quoted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ilis_guard.types import (
    Action,
    Attempt,
    Decision,
    Departure,
    ErrorInfo,
    FactValue,
    Mode,
    Obstacle,
    ObstacleKind,
    PartOutcome,
    RuleOutcome,
    Ruling,
    ShadowNote,
    ShadowRuling,
    SpentBudget,
    Ticket,
)

NO_RULE_HELD: Final = "no rule held: abstained"
GOES_ON: Final = "no rule held at the prompt: the model goes on to answer"
MAX_PASSED_OVER: Final = 3
"""Rules that were passed over and are listed in a paragraph; `reasons` lists them all."""
MAX_VALUE: Final = 60
"""Characters of a fact's value that are shown."""

_DONE: Final[Mapping[Action, str]] = {
    Action.ANSWER: "the answer is given",
    Action.ABSTAIN: "nothing is answered (abstain)",
    Action.RETRY: "a larger tier is tried (retry)",
    Action.ESCALATE: "a person decides (escalate)",
}
_WOULD_HAVE: Final = {
    Action.ANSWER: "have answered",
    Action.ABSTAIN: "have abstained",
    Action.RETRY: "have tried a larger tier (retry)",
    Action.ESCALATE: "have escalated",
}


def explain_decision(decision: Decision) -> str:
    """What was done and why, in a few sentences for a reviewer."""
    return paragraph(
        action=decision.action,
        attempts=decision.attempts,
        rulings=decision.rulings,
        ticket=decision.ticket,
        ticket_error=decision.ticket_error,
        mode=decision.mode,
        shadow=decision.shadow,
    )


def explain_ticket(ticket: Ticket, attempts: Sequence[Attempt], rulings: Sequence[Ruling]) -> str:
    """What happened to a ticket's request and why, in a few sentences for a reviewer."""
    action = Action.ANSWER if ticket.kind == "audited" else Action.ESCALATE
    return paragraph(action=action, attempts=attempts, rulings=rulings, ticket=ticket)


def paragraph(
    *,
    action: Action,
    attempts: Sequence[Attempt],
    rulings: Sequence[Ruling],
    ticket: Ticket | None = None,
    ticket_error: ErrorInfo | None = None,
    mode: Mode = "enforce",
    shadow: ShadowRuling | None = None,
) -> str:
    """What happened to a request and why, in a few sentences for a reviewer.

    Args:
        action: what was done in the end.
        attempts: every tier's try, in order.
        rulings: one an attempt.
        ticket: where a person looks at it; None for nowhere.
        ticket_error: why the ticket couldn't be stored.
        mode: of the policy in force.
        shadow: what a policy in shadow said.
    """
    if mode == "shadow":
        given = "The answer is given, as it would be without a policy." if action is Action.ANSWER else "No answer."
        sentences = [*map(attempt_text, attempts), given]
    elif len(rulings) == len(attempts):
        pairs = zip(map(attempt_text, attempts), map(ruling_text, rulings), strict=True)
        sentences = [sentence for pair in pairs for sentence in pair]
    else:
        sentences = [*map(attempt_text, attempts), f"In the end {_DONE[action]}."]
    if ticket_error is not None:
        effect = "the answer isn't audited" if action is Action.ANSWER else _DONE[action]
        sentences.append(f"The ticket couldn't be stored ({ticket_error.kind}), so {effect}.")
    if mode != "shadow" and rulings and (passed := _not_decisive(rulings[-1])):
        sentences.append(passed_over_text(passed))
    if ticket is not None:
        sentences.append(_ticket(ticket))
    if shadow is not None:
        sentences += _shadow(shadow, is_in_force=mode == "shadow")
    return " ".join(sentences)


def reasons(decision: Decision) -> list[str]:
    """Why a decision was made, in the order in which it came about, for operators: errors with their details."""
    found = attempt_reasons(decision.attempts, decision.rulings)
    if decision.mode == "shadow":
        became = "the answer was given" if decision.action is Action.ANSWER else "there was no answer to give"
        found.append(f"the policy is in shadow mode: {became}")
    if decision.ticket_error is not None:
        effect = "the audit's ticket" if decision.action is Action.ANSWER else "abstained: the ticket"
        found.append(f"{effect} couldn't be stored: {error_text(decision.ticket_error)}")
    elif decision.ticket is not None and decision.ticket.kind == "audited":
        found.append(f"sampled for an audit in the queue {decision.ticket.queue!r}")
    return found


def attempt_reasons(attempts: Sequence[Attempt], rulings: Sequence[Ruling]) -> list[str]:
    """As `reasons`, of the attempts and the rulings on them; either may be missing."""
    found: list[str] = []
    for index in range(max(len(attempts), len(rulings))):
        attempt = attempts[index] if index < len(attempts) else None
        ruling = rulings[index] if index < len(rulings) else None
        at_prompt = () if ruling is None else [one for one in ruling.outcomes if one.stage == "prompt"]
        if ruling is not None and ruling.stage == "answer":
            found += map(_outcome, at_prompt)
        if attempt is not None and attempt.error is not None:
            found.append(f"tier {attempt.tier!r} failed: {error_text(attempt.error)}")
        if attempt is not None and attempt.stopped_at is not None:
            found.append(f"tier {attempt.tier!r} was {_stopped(attempt.stopped_at)}: no rule could have answered")
        if ruling is None:
            continue
        if ruling.spent is not None:
            found.append(f"no larger tier is left: {_spent(ruling.spent)}")
        if ruling.stage == "prompt":
            found += [_outcome(one, ruling) for one in at_prompt]
        else:
            found += [_outcome(one, ruling) for one in ruling.outcomes if one.stage == "answer"]
        if ruling.rule is None:
            found.append(NO_RULE_HELD)
    return found


def error_text(error: ErrorInfo) -> str:
    """An error for operators: its kind and its details."""
    return f"{error.kind}: {error.detail or error.message}"


def outcome_text(outcome: RuleOutcome) -> str:
    """Why a rule decided or was passed over."""
    if outcome.outcome == "not_sampled":
        return f"it holds for a sample of {outcome.sample:g}, and this request isn't in it"
    if outcome.outcome == "failed":
        return f"condition `{outcome.condition}` failed{f': {outcome.detail}' if outcome.detail else ''}"
    if outcome.obstacle is not None:
        return obstacle_text(outcome.obstacle)
    held = " and ".join(map(_part, outcome.parts)) if outcome.parts else "it has no condition"
    is_sampled = outcome.outcome == "decided" and outcome.sample is not None
    return f"{held}, and this request is in its sample ({outcome.sample:g})" if is_sampled else held


def obstacle_text(obstacle: Obstacle) -> str:
    """Why a rule that holds can't act."""
    return _OBSTACLES[obstacle.kind](obstacle)


def fact_text(value: FactValue | None) -> str:
    """A fact's value in a few words."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == "":
        return "empty"
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def facts_text(facts: Mapping[str, FactValue | None]) -> str:
    """``uncertainty is 0.43, typicality is missing``: some facts and their values."""
    return ", ".join(f"{name} is {fact_text(value)}" for name, value in facts.items())


def _part(part: PartOutcome) -> str:
    facts = facts_text(part.facts)
    return f"`{part.condition}` is {'true' if part.value else 'false'}{f' ({facts})' if facts else ''}"


def _outcome(outcome: RuleOutcome, ruling: Ruling | None = None) -> str:
    if outcome.outcome == "decided" and ruling is not None:
        early = " at the prompt" if outcome.stage == "prompt" else ""
        return f"rule '{outcome.rule}' decided{early}: {ruling.action.value}, because {outcome_text(outcome)}"
    return f"rule '{outcome.rule}' passed over: {outcome_text(outcome)}"


_OBSTACLES: Final[Mapping[ObstacleKind, Callable[[Obstacle], str]]] = {
    "attempt_failed": lambda _: "it would answer, but the attempt failed",
    "no_score": lambda _: "it would answer, but the attempt has no uncertainty and no rank from 0 to 1",
    "not_calibrated": lambda _: (
        "it would answer, but the uncertainty isn't calibrated for this request, and the policy's guarantee needs that"
    ),
    "not_certified": lambda of: (
        "it would answer, but on this tier the policy's guarantee covers "
        f"{'no uncertainty' if of.threshold is None else f'only an uncertainty up to {of.threshold:.6g}'}"
    ),
    "missing_fact": lambda of: f"it would answer, but it looks at {of.fact}, which is missing",
    "no_larger_tier": lambda _: "it would retry, but there is no larger tier",
    "same_tier": lambda of: f"it would retry on {of.tier!r}, but that tier made this attempt",
    "not_a_larger_tier": lambda of: f"it would retry on {of.tier!r}, but that isn't one of the larger tiers left",
    "invalid_labels": lambda of: f"{of.detail}, so nothing is answered",
    "stopped_early": lambda of: f"the answer was {_stopped(of.tokens or 0)}, so nothing is answered",
    "rule_failed": lambda of: f"rule '{of.rule}' couldn't be evaluated, so nothing is answered after it: {of.detail}",
    "rule_undetermined": lambda of: (
        f"rule '{of.rule}' might have held: it looks at {of.fact}, which is missing, so nothing is answered"
    ),
}


_DEPARTURES: Final[Mapping[Departure, str]] = {
    "labels": "no labelled rows",
    "wording": "another wording of the prompt",
    "system": "a system message",
    "history": "earlier turns",
    "decoding": "another decoding",
    "length": "another limit of the answers' length",
    "traffic": "another traffic profile",
}
"""What a request has that the labelled rows hadn't, or that there are none."""


def departures_text(departures: Sequence[Departure]) -> str:
    """``a system message, earlier turns``: what some departures are."""
    return ", ".join(_DEPARTURES[name] for name in departures)


def uncalibrated_text(departures: Sequence[Departure] = ()) -> str:
    """That an uncertainty isn't calibrated, and why, as far as that is known, in a sentence."""
    if "labels" in departures:
        return "No labelled row says how probable it is that the answer is wrong: its score only ranks it."
    why = departures_text(departures)
    return f"The uncertainty isn't calibrated for this request{f': {why}' if why else ''}; it only ranks answers."


def attempt_text(attempt: Attempt) -> str:
    """What one tier did, in a sentence, and in another one that its score isn't calibrated where it isn't."""
    uncalibrated = [] if attempt.error or not attempt.departures else [uncalibrated_text(attempt.departures)]
    return " ".join([_attempt_text(attempt), *uncalibrated])


def _attempt_text(attempt: Attempt) -> str:
    tier = f"The tier '{attempt.tier}'" if attempt.tier else "The model"
    value = attempt.uncertainty
    uncertainty = None if value is None or math.isnan(value) else value
    if attempt.stage == "prompt":
        scored = "" if uncertainty is None else f"; the prompt has an uncertainty of {uncertainty:.3g}"
        return f"{tier} hadn't answered yet{scored}."
    if attempt.error is not None:
        return f"{tier} failed ({attempt.error.kind})."
    if attempt.stopped_at is not None:
        scored = "" if uncertainty is None else f", with an uncertainty of {uncertainty:.3g} so far"
        return f"{tier} was {_stopped(attempt.stopped_at)}{scored}."
    scored = _ranked(attempt) if uncertainty is None else f" with an uncertainty of {uncertainty:.3g}"
    cut = "; its answer was cut off at its length limit" if attempt.finish_reason == "length" else ""
    return f"{tier} answered{scored}{cut}."


def _ranked(attempt: Attempt) -> str:
    """The score of an answer without an uncertainty."""
    if attempt.rank is not None:
        return f"; of its traffic's answers, a share of {attempt.rank:.3g} is surer"
    is_cold = "labels" in attempt.departures
    return "; its answer can't be ranked yet" if is_cold else "; its answer has no uncertainty"


def ruling_text(ruling: Ruling) -> str:
    """What a ruling led to and why, in a sentence."""
    if ruling.rule is None:
        return f"No rule held, so {_DONE[ruling.action]}."
    early = ", before a token is generated" if ruling.stage == "prompt" else ""
    return f"By rule '{ruling.rule}' {_DONE[ruling.action]}{early}, because {outcome_text(ruling.outcomes[-1])}."


def _ticket(ticket: Ticket) -> str:
    is_audit = ticket.kind == "audited"
    if ticket.state == "resolved":
        verdict = "" if ticket.verdict is None else f" ({ticket.verdict.value})"
        return f"A person has {'checked' if is_audit else 'resolved'} it{verdict}."
    if ticket.state == "expired":
        return f"Its ticket expired in the queue '{ticket.queue}' without a verdict."
    if is_audit:
        return f"It also waits in the queue '{ticket.queue}' for a person's look."
    return f"It waits in the queue '{ticket.queue}' for a person."


def _shadow(shadow: ShadowRuling, *, is_in_force: bool) -> list[str]:
    policy = "The policy is in shadow mode" if is_in_force else "Another policy is in shadow"
    if shadow.error is not None:
        return [f"{policy}, and couldn't be evaluated ({shadow.error.kind})."]
    if shadow.action is None or not shadow.rulings:
        return [f"{policy}: what it would have done depends on an answer that was never made."]
    ruling = shadow.rulings[-1]
    passed = _not_decisive(ruling)
    # Of the policy in force everything is said, as if it had decided.
    return [f"{policy}: {_would_have(ruling)}.", *([passed_over_text(passed)] if is_in_force and passed else [])]


def shadow_note(note: ShadowNote) -> str:
    """What limits a shadow ruling, in a sentence."""
    match note.kind:
        case "prompt_not_scored":
            return f"the prompt wasn't scored on the tier {note.tier!r}: only the policy in force has that done"
        case "answer_spared":
            return f"the tier {note.tier!r} was spared its answer, so the ruling on it isn't known"
        case "answer_stopped_early":
            return f"the tier {note.tier!r} was {_stopped(note.tokens or 0)}, so the ruling on its answer isn't known"
        case "tier_not_tried":
            return f"the tier {note.tier!r} wasn't tried, so the ruling on its answer isn't known"


def _would_have(ruling: Ruling) -> str:
    if ruling.rule is None:
        return f"no rule held, so it would {_WOULD_HAVE[ruling.action]}"
    early = ", before a token is generated" if ruling.stage == "prompt" else ""
    why = outcome_text(ruling.outcomes[-1])
    return f"by rule '{ruling.rule}' it would {_WOULD_HAVE[ruling.action]}{early}, because {why}"


def _not_decisive(ruling: Ruling) -> tuple[RuleOutcome, ...]:
    """The rules that were passed over, at both stages."""
    return tuple(one for one in ruling.outcomes if one.outcome != "decided")


def passed_over_text(outcomes: Sequence[RuleOutcome]) -> str:
    """The last of the rules that were passed over, and why, in a sentence."""
    # Those nearest to the rule that decided say most of why it came to that one.
    listed = [f"rule '{one.rule}', as {outcome_text(one)}" for one in outcomes[-MAX_PASSED_OVER:]]
    others = len(outcomes) - len(listed)
    first = [] if others == 0 else ["1 other" if others == 1 else f"{others} others"]
    return f"Passed over before it: {'; '.join(first + listed)}."


def _stopped(tokens: int) -> str:
    return f"stopped after {tokens} token{'' if tokens == 1 else 's'}"


def _spent(spent: SpentBudget) -> str:
    match spent.limit:
        case "max_seconds":
            return f"the request's {spent.value:g} seconds are over"
        case "max_attempts":
            return f"the request's attempts ({spent.value:g}) are made"
        case "max_cost":
            if not spent.is_known:
                return f"the request's cost isn't known, so its limit ({spent.value:g}) counts as reached"
            return f"the request's cost limit ({spent.value:g}) is reached"
