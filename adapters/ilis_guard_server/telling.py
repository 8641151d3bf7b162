"""A decision in the words of OpenAI's responses."""

from typing import Final

from ilis_guard.types import Action, Decision, FinishReason
from ilis_guard_server.openai_responses import ErrorBody, RulingBody, Summary, TicketSummary, Usage

HEADER: Final = "x-ilis-guard-decision"
"""For clients that drop fields which they don't know."""
NO_ANSWER: Final = "No answer can be given."
"""Where the policy has no message of its own: an empty refusal would look like none."""
WITHDRAWN: Final = "The text so far was withdrawn."


def summary(decision: Decision, *, retracted: bool = False) -> Summary:
    """Its summary; after a retraction with the answer that stands instead, if there is one."""
    ticket = decision.ticket
    return Summary(
        id=decision.id,
        action=decision.action.value,  # type: ignore[arg-type]  # a decision is never a retry
        rule=decision.rule,
        uncertainty=decision.uncertainty,
        rulings=[RulingBody.model_validate(ruling.for_callers()) for ruling in decision.rulings],
        errors=[
            ErrorBody.model_validate(attempt.error.for_callers())
            for attempt in decision.attempts
            if attempt.error is not None
        ],
        tier=decision.attempts[-1].tier,
        attempts=len(decision.attempts),
        ticket=None if ticket is None else TicketSummary(id=ticket.id, queue=ticket.queue),
        cost=decision.cost,
        policy=decision.policy,
        mode=decision.mode,
        retracted=retracted,
        text=decision.text if retracted and decision.action is Action.ANSWER else None,
    )


def usage(decision: Decision) -> Usage:
    """The tokens of all attempts."""
    read = sum(attempt.prompt_tokens for attempt in decision.attempts)
    generated = sum(attempt.tokens for attempt in decision.attempts)
    return Usage(prompt_tokens=read, completion_tokens=generated, total_tokens=read + generated)


def refusal(decision: Decision) -> str | None:
    """What is said instead of an answer; None where there is one."""
    return None if decision.action is Action.ANSWER else decision.text.strip() or NO_ANSWER


def instead(decision: Decision) -> str:
    """What is said once pieces were withdrawn, to clients that know nothing of withdrawals."""
    return f"{WITHDRAWN} {refusal(decision) or f'Instead: {decision.text}'}"


def finish_reason(decision: Decision) -> FinishReason:
    """Why the answer ended; a refusal stops by itself."""
    cut = decision.action is Action.ANSWER and decision.attempts[-1].finish_reason == "length"
    return "length" if cut else "stop"


def header(decision: Decision) -> dict[str, str]:
    """Its id and its action."""
    return {HEADER: f"{decision.id}; {decision.action.value}"}
