"""What comes of a walk: what the policy said is done, or, where it only looks on, what would be done without it."""

from dataclasses import dataclass

from ilis_guard.cascade.cascade import Walk
from ilis_guard.cascade.escalation import Tickets
from ilis_guard.policy import Policy, Ruling
from ilis_guard.types import Action, ShadowRuling, Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """As the decision will have it."""

    action: Action
    text: str
    rules: tuple[str | None, ...]
    reasons: tuple[str, ...]
    ticket: Ticket | None = None
    shadow: ShadowRuling | None = None


def as_ruled(walk: Walk, ruling: Ruling, tickets: Tickets | None) -> Outcome:
    """Do what the policy said.

    Args:
        walk: at its end; its reasons grow by what becomes of a ticket.
        ruling: its last.
        tickets: the decision's; None where there is no queue, and then the policy needs none.
    """
    action, text, ticket = ruling.action, ruling.say, None
    if action is Action.ANSWER:
        text = walk.attempts[-1].text
        ticket = None if tickets is None else tickets.audit(ruling)
    elif action is Action.ESCALATE:
        assert tickets is not None, "a policy that escalates isn't wired without a queue"
        ticket = tickets.escalate(ruling)
        if ticket is None:
            # What the policy would have said may promise a reviewer.
            action, text = Action.ABSTAIN, ""
    rules = tuple(made.rule for made in walk.rulings)
    return Outcome(action=action, text=text, rules=rules, reasons=tuple(walk.reasons), ticket=ticket)


def as_before(walk: Walk, ruling: Ruling, policy: Policy) -> Outcome:
    """Let the first tier's answer out, as without a guard, and take down what the policy would have done."""
    (attempt,) = walk.attempts
    is_answer = bool(attempt.text.strip())
    said = ShadowRuling(policy=policy.fingerprint, action=ruling.action, rule=ruling.rule, reasons=tuple(walk.reasons))
    became = "the answer went out" if is_answer else "there was no answer to let out"
    failed = (f"tier {attempt.tier!r} failed: {attempt.error}",) if attempt.error else ()
    return Outcome(
        action=Action.ANSWER if is_answer else Action.ABSTAIN,
        text=attempt.text if is_answer else "",
        rules=(None,),
        reasons=(*failed, f"the policy only looks on (mode: shadow): {became}"),
        shadow=said,
    )
