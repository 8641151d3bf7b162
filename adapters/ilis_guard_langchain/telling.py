"""A decision in a message's metadata: small enough to travel, complete enough to trace."""

from typing import Any

from ilis_guard import Decision


def told(decision: Decision) -> dict[str, Any]:
    """A decision's summary as JSON values: what `Decision.to_dict` has, without texts, signatures and statistics."""
    return {
        "id": decision.id,
        "action": decision.action.value,
        "rule": decision.rule,
        "uncertainty": decision.uncertainty,
        "reasons": list(decision.reasons),
        "tier": decision.attempts[-1].tier,
        "ticket": None if decision.ticket is None else decision.ticket.id,
        "cost": decision.cost,
        "policy": decision.policy,
    }
