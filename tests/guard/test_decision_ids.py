"""A decision may have an id of its caller's, under which it is made once, however often it is asked for."""

from ilis_guard.review import ReviewQueue
from ilis_guard.testing import InMemoryQueue, fake_guard

QUESTION = "What is the boiling point of gallium?"


def test_a_decision_has_the_id_that_the_caller_brings_and_one_ticket() -> None:
    with InMemoryQueue() as queue:
        guard = fake_guard("default", {"small": 0.5}, review=queue)
        first, again = (guard.decide(QUESTION, id="order-17") for _ in range(2))
        assert first.id == again.id == "order-17"
        assert first.ticket is not None
        assert again.ticket is not None
        assert first.ticket.id == again.ticket.id
        assert len(queue.list()) == 1


def test_decisions_have_ids_of_their_own() -> None:
    guard = fake_guard("default", {"small": 0.1})
    assert guard.decide(QUESTION).id != guard.decide(QUESTION).id


async def test_async_as_well() -> None:
    assert (await fake_guard("default", {"small": 0.1}).adecide(QUESTION, id="order-17")).id == "order-17"


def test_ticket_is_found_by_decision() -> None:
    with InMemoryQueue() as queue:
        decision = fake_guard("default", {"small": 0.5}, review=queue).decide(QUESTION, id="order-17")
        assert decision.ticket is not None
        assert queue.of_decision("order-17") == queue.get(decision.ticket.id)
        assert queue.of_decision("order-18") is None


def test_guard_has_its_queue_as_review() -> None:
    with InMemoryQueue() as queue:
        guard = fake_guard("default", {"small": 0.5}, review=queue)
        assert guard.review is queue
        assert isinstance(guard.review, ReviewQueue)
