"""Whoever asked may leave: what waits for them ends, and nobody else is the worse for it."""

import threading
import time

import pytest
import tenacity

from ilis_guard.calling import Caller, Deadline
from ilis_guard.calling.line import Line
from ilis_guard.calling.presence import Presence
from ilis_guard.errors import BudgetError, LeftError, TransientModelError


def endless(presence: Presence | None = None) -> Deadline:
    return Deadline.after(None, since=time.monotonic(), presence=presence)


def test_a_deadline_without_an_end_passes_only_when_whoever_asked_leaves() -> None:
    presence = Presence()
    deadline = endless(presence)
    deadline.check()
    deadline.sleep(0.0)
    # Whatever waits by it can wait so long.
    assert 1e6 < deadline.left <= threading.TIMEOUT_MAX
    presence.leave()
    for what in (deadline.check, lambda: deadline.sleep(3600)):
        with pytest.raises(LeftError):
            what()


def test_a_call_without_an_end_needs_no_thread_of_its_own() -> None:
    found = Caller("small").call(threading.current_thread, deadline=endless(Presence()))
    assert found is threading.current_thread()


def test_who_has_left_is_not_called_for_again() -> None:
    presence, calls = Presence(), []

    def busy() -> None:
        calls.append(1)
        presence.leave()
        raise TransientModelError("busy")

    with pytest.raises(LeftError):
        Caller("small", backoff=tenacity.wait_fixed(3600)).call(busy, deadline=endless(presence))
    assert calls == [1]


def test_who_leaves_the_line_leaves_the_place_that_they_were_woken_for_to_the_next() -> None:
    for _ in range(50):
        line, presence = Line(1), Presence()
        line.enter(None)
        left, entered = threading.Event(), threading.Event()

        def first(line: Line = line, presence: Presence = presence, left: threading.Event = left) -> None:
            with pytest.raises(LeftError):
                line.enter(endless(presence))
            left.set()

        def second(line: Line = line, entered: threading.Event = entered) -> None:
            line.enter(None)
            entered.set()

        waiting = [threading.Thread(target=target) for target in (first, second)]
        for thread in waiting:
            thread.start()
        # A place comes free while the first of those that wait for it leaves.
        going = [threading.Thread(target=presence.leave), threading.Thread(target=line.leave)]
        presence._gone.set()
        for thread in going:
            thread.start()
        for thread in (*waiting, *going):
            thread.join()
        assert left.is_set()
        assert entered.is_set()


def test_who_waits_in_line_with_an_end_waits_until_then() -> None:
    line = Line(1)
    line.enter(None)
    with pytest.raises(BudgetError, match="it waited in line for the tier"):
        line.enter(Deadline.after(0.01, since=time.monotonic(), presence=Presence()))
    line.leave()
    line.enter(Deadline.after(0.0, since=time.monotonic() + 60))
