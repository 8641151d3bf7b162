"""A request is answered in its time, whatever the queue's storage does; its ticket is stored once, with its answer."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer
from tests.locks import WatchedQueue, locked
from tests.server.servers import Endless, ServedGuard, guard_of, serve, serve_on_socket, until

ASKED: Any = {"model": "ilis-guard", "messages": [{"role": "user", "content": "person?"}]}
ANSWER: Final = "Trondheim perhaps."
PENDING: Final = {
    "kind": "TicketPendingError",
    "message": "The request was still being put before a person when its time was over.",
}
AUDITING: Final = """
version: 1
name: p
audit: {fraction: 1.0, queue: audits}
rules: [{id: any, when: uncertainty <= 1.0, do: answer}]
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tickets.db"
    return str(request.getfixturevalue("postgresql").new_queue())


@pytest.fixture
def queue(url: str) -> Iterator[WatchedQueue]:
    with WatchedQueue(url) as one:
        yield one


def unsure(queue: ReviewQueue) -> Any:
    return guard_of({"small": (FakeModel(ANSWER), FixedScorer(0.6))}, queue)


def proposed(queue: ReviewQueue) -> list[str | None]:
    return [queue.get(ticket.id).proposed for ticket in queue.list()]


def ask(served: ServedGuard, *, is_stream: bool, **more: Any) -> Any:
    """The last part of what the client sees, with the decision."""
    with served.client() as client:
        if not is_stream:
            return client.chat.completions.create(**ASKED, **more)
        return list(client.chat.completions.create(**ASKED, stream=True, **more))[-1]


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_a_ticket_that_waits_for_a_lock_is_stored_later_with_its_answer(
    url: str, queue: WatchedQueue, is_stream: bool
) -> None:
    with serve(unsure(queue), timeout_seconds=1.0) as served:
        with locked(url):
            told = ask(served, is_stream=is_stream).ilis_guard
        # It came while the lock was held.
        assert (told["action"], told["ticket"], told["ticket_error"]) == ("abstain", None, PENDING)
        until(lambda: len(queue.list()) == 1)
    assert proposed(queue) == [ANSWER]
    assert queue.get(queue.list()[0].id).decision == told["id"]


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_an_audit_that_waits_for_a_lock_keeps_no_answer_back(url: str, queue: WatchedQueue, is_stream: bool) -> None:
    guard = guard_of({"small": (FakeModel(ANSWER), FixedScorer(0.6))}, queue, AUDITING)
    with serve(guard, timeout_seconds=1.0) as served, served.client() as client:
        with locked(url):
            if is_stream:
                chunks: list[Any] = list(client.chat.completions.create(**ASKED, stream=True))
                said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                told = chunks[-1].ilis_guard
            else:
                whole: Any = client.chat.completions.create(**ASKED)
                said, told = whole.choices[0].message.content, whole.ilis_guard
        assert (said, told["action"], told["ticket_error"]) == (ANSWER, "answer", PENDING)
        until(lambda: len(queue.list()) == 1)
    assert proposed(queue) == [ANSWER]


def test_a_model_that_hangs_before_a_storage_that_hangs_is_answered_in_time(url: str, queue: WatchedQueue) -> None:
    endless = Endless()
    with serve(guard_of({"small": (endless, FixedScorer(0.1))}, queue), timeout_seconds=1.0) as served:
        with locked(url):
            told = ask(served, is_stream=False).ilis_guard
        assert (told["action"], told["rule"], told["ticket_error"]) == ("abstain", "broken", PENDING)
        until(lambda: len(queue.list()) == 1)
    endless.is_tired = True
    assert proposed(queue) == [None]


def test_a_storage_that_hangs_for_readers_as_well_is_not_waited_for(url: str, queue: WatchedQueue) -> None:
    key = {"extra_headers": {"Idempotency-Key": "k1"}}
    with serve(unsure(queue), timeout_seconds=1.0) as served:
        with locked(url, mode="ACCESS EXCLUSIVE"):
            told = ask(served, is_stream=False, **key).ilis_guard
        assert (told["action"], told["ticket_error"]) == ("abstain", PENDING)
        until(lambda: len(queue.list()) == 1)
        # The key leads to what became of it.
        again = ask(served, is_stream=False, **key).ilis_guard
        assert (again["id"], again["ticket_error"]) == (told["id"], None)
        assert again["ticket"]["id"] == queue.list()[0].id
        assert len(queue.list()) == 1


def test_a_client_that_leaves_while_its_ticket_waits_leaves_none(url: str, queue: WatchedQueue) -> None:
    with serve_on_socket(unsure(queue)) as served:
        with locked(url):
            with served.client() as client, pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=1.0).chat.completions.create(**ASKED)
            assert queue.began.acquire(timeout=60)
            until(lambda: served.app.state.guard.limiter.in_flight == 0)
        with served.client() as client:
            done: Any = client.chat.completions.create(**ASKED)
    assert [ticket.id for ticket in queue.list()] == [done.ilis_guard["ticket"]["id"]]


def test_a_server_that_stops_stores_what_it_decided(url: str, queue: WatchedQueue) -> None:
    release = threading.Event()

    def hold() -> None:
        with locked(url):
            held.set()
            release.wait(60)

    held, holder = threading.Event(), threading.Thread(target=hold)
    with serve(unsure(queue), timeout_seconds=1.0) as served:
        holder.start()
        assert held.wait(60)
        assert ask(served, is_stream=False).ilis_guard["ticket_error"] == PENDING
        assert queue.list() == []
        release.set()
    holder.join()
    assert proposed(queue) == [ANSWER]
