"""What tests of the human queue have in common."""

from typing import Any, Final

from ilis_guard.review import ReviewQueue
from ilis_guard.types import Action, Attempt, ErrorInfo, PartOutcome, Request, RuleOutcome, Ruling, Ticket

RULING: Final = Ruling(
    action=Action.ESCALATE,
    rule="unsure",
    outcomes=(
        RuleOutcome(
            rule="unsure",
            stage="answer",
            outcome="decided",
            parts=(PartOutcome(condition="uncertainty > 0.25", value=True, facts={"uncertainty": 0.4}),),
        ),
    ),
)
FAILURE: Final = ErrorInfo(kind="ModelError", message="The model failed.", detail="it failed")


class Clock:
    """A clock that goes where a test puts it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def put(review: ReviewQueue, decision: str, **changes: Any) -> Ticket:
    """Escalate a plain request, of which a test changes what it is about."""
    plain: dict[str, Any] = {
        "request": Request.of("What is the boiling point of gallium?"),
        "attempts": [Attempt(tier="small", text="2400 °C", uncertainty=0.4, typicality=0.2)],
        "queue": "chemists",
        "policy": "sha256:abc",
        "rule": "unsure",
        "rulings": [RULING],
    }
    return review.escalate(decision=decision, **plain | changes)
