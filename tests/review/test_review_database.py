"""Transactions and refused values on both databases."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from ilis_guard.errors import ReviewError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import tickets
from ilis_guard.types import Attempt, Ticket, Verdict


def test_a_read_sees_one_moment(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    with review.store.database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(tickets)) == 0
        escalate("d")
        assert connection.scalar(select(func.count()).select_from(tickets)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attempts": [Attempt(tier="small", text="secret", uncertainty=float("nan"))]}, "not JSON compliant"),
        ({"attempts": [Attempt(tier="small", text="secret", tokens=object())]}, "not JSON serializable"),  # type: ignore[arg-type]
        ({"say": "secret \ud800"}, "surrogates not allowed"),
        ({"policy": None, "say": "secret"}, "(?i)not.null"),
    ],
)
def test_invalid_values_are_refused_without_quoting_texts(
    review: ReviewQueue, escalate: Callable[..., Ticket], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ReviewError, match=message) as caught:
        escalate("d", **changes)
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"
    assert review.list() == []


def test_an_unstorable_verdict_leaves_the_ticket_open(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    ticket = escalate("d")
    with pytest.raises(ReviewError, match="surrogates not allowed"):
        review.resolve(ticket.id, Verdict.CORRECT, text="half a duck \ud83e")
    assert review.list(state="open") == [ticket]
