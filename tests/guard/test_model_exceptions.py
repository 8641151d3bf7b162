"""Whatever a model, a scorer or a queue raises ends as a decision by policy; only what a signal raises goes further."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

import pytest
import tenacity

from ilis_guard import Guard, Policy, Tier
from ilis_guard.concurrency.interrupts import is_interrupt
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import MAX_ERROR_TEXT, ModelError, TransientModelError, error_text
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, Decision, ErrorInfo, Generation, Message, Score, Step, StreamMode

QUESTION: Final = "What is the boiling point of gallium?"
WORDS: Final = "one two three"
POLICY: Final = """
version: 1
name: p
rules:
  - {id: failed, when: error != "", do: escalate}
  - {id: any, when: uncertainty <= 1.0, do: answer}
"""


class UnprintableError(Exception):
    """Nothing about it can be shown."""

    def __str__(self) -> str:
        raise SystemExit(5)

    def __repr__(self) -> str:
        raise RuntimeError("no repr either")

    def __reduce__(self) -> Any:
        raise TypeError("and it can't be pickled or copied")


class MaskedError(Exception):
    """Whoever looks at its class, or asks whether it may be retried, gets another error."""

    @property  # type: ignore[misc]  # it is meant to be wrong
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @property
    def is_retryable(self) -> bool:
        raise RuntimeError("no idea")


class BoobyError(Exception):
    """Its text is no plain string."""

    class Text(str):
        __slots__ = ()

        def __len__(self) -> int:
            raise RuntimeError("no length")

        def __getitem__(self, key: Any) -> Any:
            raise RuntimeError("no parts")

    def __str__(self) -> str:
        return self.Text("booby")


def circular() -> Exception:
    first, second = ValueError("first"), TransientModelError("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__, second.__context__ = second, first
    return first


RAISED: Final[dict[str, Callable[[], BaseException]]] = {
    "exit": lambda: SystemExit(3),
    "exit of any kind": lambda: SystemExit(object()),
    "closed generator": GeneratorExit,
    "end of iteration": lambda: StopIteration("x"),
    "end of async iteration": StopAsyncIteration,
    "cancelled": asyncio.CancelledError,
    "memory": MemoryError,
    "recursion": RecursionError,
    "bare": BaseException,
    "group": lambda: BaseExceptionGroup("many", [SystemExit(1), KeyboardInterrupt(), ValueError("x")]),
    "group of exceptions": lambda: ExceptionGroup("many", [ValueError("x"), TransientModelError("y")]),
    "unprintable": UnprintableError,
    "masked": MaskedError,
    "booby": BoobyError,
    "circular": circular,
    "huge": lambda: ValueError("x" * 50_000_000),
    "huge and ours": lambda: ModelError("x" * 50_000_000),
    "half a character": lambda: ValueError("\ud800\0"),
}
IN_THREADS: Final = RAISED | {"interrupt": KeyboardInterrupt}
"""In the main thread, an interrupt counts as the user's Ctrl-C."""


class Raising(FakeModel):
    """Raises after the first word of a stream, and in any other call at once."""

    def __init__(self, make: Callable[[], BaseException]) -> None:
        super().__init__(WORDS)
        self.make = make

    def generate(self, messages: Sequence[Message], **_: Any) -> Generation:
        self.calls.append(tuple(messages))
        raise self.make()

    def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
        yield from list(super().stream(messages, stop=stop))[:2]
        raise self.make()


class RaisingScorer:
    """Raises, too."""

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self.make = make

    def score(self, generation: Generation) -> Score:
        del generation
        raise self.make()


def guard_of(model: Any, scorer: Any = None, *, head: str = "", review: Any = None, **options: Any) -> Guard:
    return Guard(
        tiers=[Tier(name="small", model=model, scorer=scorer or FixedScorer(0.1), **options)],
        policy=Policy.parse(POLICY + head),
        review=review or InMemoryQueue(),
        backoff=tenacity.wait_none(),
    )


def check(made: Decision, guard: Guard) -> None:
    (attempt,) = made.attempts
    assert made.action is Action.ESCALATE
    assert made.ticket is not None
    assert attempt.error is not None
    assert len(attempt.error.detail) < MAX_ERROR_TEXT + 100
    assert isinstance(guard.review, InMemoryQueue)
    assert [ticket.id for ticket in guard.review.list()] == [made.ticket.id]
    stored = guard.review.get(made.ticket.id).attempts[0]["error"]
    assert stored["detail"].encode() == attempt.error.detail.encode()


@pytest.mark.parametrize("head", ["", "budget: {max_seconds: 60}"], ids=["in this thread", "in its own"])
@pytest.mark.parametrize("raised", RAISED)
def test_what_a_model_raises_is_a_decision(raised: str, head: str) -> None:
    guard = guard_of(Raising(RAISED[raised]), head=head)
    check(guard.decide(QUESTION), guard)


@pytest.mark.parametrize("raised", RAISED)
def test_what_a_scorer_raises_is_a_decision(raised: str) -> None:
    guard = guard_of(FakeModel(WORDS), RaisingScorer(RAISED[raised]))
    made = guard.decide(QUESTION)
    check(made, guard)
    assert made.attempts[0].text == WORDS


@pytest.mark.parametrize("mode", ["hold", "optimistic", "early_stop"])
@pytest.mark.parametrize("raised", IN_THREADS)
async def test_what_a_streaming_model_raises_is_the_last_event(raised: str, mode: StreamMode) -> None:
    guard = guard_of(Raising(IN_THREADS[raised]))
    *_, made = [event async for event in guard.astream(QUESTION, mode=mode)]
    assert isinstance(made, Decision)
    check(made, guard)


@pytest.mark.parametrize("raised", IN_THREADS)
async def test_the_event_loop_survives_it(raised: str) -> None:
    guard = guard_of(Raising(IN_THREADS[raised]))
    check(await asyncio.create_task(guard.adecide(QUESTION)), guard)


def test_an_interrupt_in_another_thread_is_the_models() -> None:
    guard = guard_of(Raising(KeyboardInterrupt), head="budget: {max_seconds: 60}")
    made = guard.decide(QUESTION)
    check(made, guard)
    assert made.attempts[0].error == ErrorInfo.of(ModelError("the model of the tier 'small' raised KeyboardInterrupt"))


@pytest.mark.parametrize("raised", RAISED)
def test_the_limiter_and_the_breaker_go_on(raised: str) -> None:
    model = FakeModel([RAISED[raised](), "2403 °C"])
    guard = guard_of(model, max_concurrent=1, breaker=BreakerSettings(failures=2, seconds=3600))
    assert guard.decide(QUESTION).action is Action.ESCALATE
    assert guard.decide(QUESTION).text == "2403 °C"


@pytest.mark.parametrize("raised", RAISED)
def test_a_queue_that_raises_it_makes_an_abstention(raised: str) -> None:
    class Broken(InMemoryQueue):
        def escalate(self, **_: Any) -> Any:
            error = RAISED[raised]()
            raise error

    made = guard_of(FakeModel(ModelError("no")), review=Broken()).decide(QUESTION)
    assert (made.action, made.ticket) == (Action.ABSTAIN, None)
    assert made.ticket_error is not None


def test_a_texts_end_is_cut() -> None:
    assert error_text(ValueError("x" * (MAX_ERROR_TEXT + 1))) == "x" * MAX_ERROR_TEXT + "..."
    assert error_text(ValueError("x" * MAX_ERROR_TEXT)) == "x" * MAX_ERROR_TEXT
    assert error_text(UnprintableError()) == ""
    assert error_text(BoobyError()) == "booby"


def test_an_exception_is_an_interrupt_only_if_a_signal_raised_it() -> None:
    def leave(*_: Any) -> None:
        raise SystemExit(3)

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        assert is_interrupt(caught.value)
        signal.signal(signal.SIGUSR1, before)
    assert not is_interrupt(caught.value)
    assert is_interrupt(KeyboardInterrupt())
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(is_interrupt(KeyboardInterrupt())))
    thread.start()
    thread.join()
    assert seen == [False]


PROGRAM: Final = """
import os, signal, sys, time
from ilis_guard import Guard, Policy, Tier
from ilis_guard.testing import FakeModel, FixedScorer
{setup}
class Slow(FakeModel):
    def generate(self, *_, **__):
        os.kill(os.getpid(), signal.{name})
        time.sleep(60)
tier = Tier(name="small", model=Slow("x"), scorer=FixedScorer(0.1))
policy = Policy.parse("version: 1\\nname: p\\nrules: [{{id: all, do: abstain}}]\\n")
Guard(tiers=[tier], policy=policy).decide("Who?")
print("it went on")
"""


@pytest.mark.parametrize(
    ("name", "setup", "status"),
    [
        # What runs in a shell's background ignores the signal until it asks for it.
        ("SIGINT", "signal.signal(signal.SIGINT, signal.default_int_handler)", -signal.SIGINT),
        ("SIGTERM", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", 7),
    ],
)
def test_a_signal_ends_the_program_in_the_middle_of_a_call(name: str, setup: str, status: int) -> None:
    code = PROGRAM.format(name=name, setup=setup)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (status, "")
