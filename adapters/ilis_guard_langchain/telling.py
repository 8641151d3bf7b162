"""A decision in a message's metadata: small enough to travel, complete enough to trace."""

from typing import Any, Final

from ilis_guard import Decision

KEY: Final = "ilis_guard"
"""Where a message's `response_metadata` tells of its decision; in a stream before it, of the `retraction`."""


def refusal(decision: Decision) -> dict[str, str]:
    """What stands in the `additional_kwargs` of a message that is no answer, as with LangChain's OpenAI models.

    Whoever asks whether it is a refusal mustn't be told no because the policy says nothing to the user.
    """
    return {"refusal": decision.text or decision.action.value}


def told(decision: Decision) -> dict[str, Any]:
    """A decision's summary as JSON values: what `Decision.to_dict` has, without texts, signatures and statistics."""
    return {
        "id": decision.id,
        "action": decision.action.value,
        "rule": decision.rule,
        "uncertainty": decision.uncertainty,
        "rulings": [ruling.for_callers() for ruling in decision.rulings],
        "errors": [attempt.error.for_callers() for attempt in decision.attempts if attempt.error is not None],
        "tier": decision.attempts[-1].tier,
        "ticket": None if decision.ticket is None else decision.ticket.id,
        "cost": decision.cost,
        "policy": decision.policy,
    }
