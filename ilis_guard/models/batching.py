"""Batching: concurrent requests to one local model share its forward passes."""

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from ilis_guard.concurrency.deadline import Deadline, wait_until
from ilis_guard.errors import ModelError, SignatureError
from ilis_guard.models.answer_text import StepBuilder
from ilis_guard.models.base import Proceed
from ilis_guard.types import Generation, Message, Step

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.models.forward_batch import GenerationRequest
    from ilis_guard.models.local import LocalModel

MAX_LENGTH_DIFFERENCE: Final = 128
"""Requests whose prompts are more tokens longer or shorter than that of the first in the queue get another batch: rows
are padded to the longest, and padding is computed too."""
GATHER_SHARE: Final = 0.05
"""The next batch waits, at most, this share of the time that the last one took, for clients that were just answered and
call again. Without it the first to call again would be computed alone, and all others would wait for it."""
PROCEED_TIMEOUT: Final = 0.25
"""Seconds, at most, that a pass waits while the callers of all its rows decide whether to proceed."""


class BatchedModel:
    """A local model whose concurrent calls share forward passes; a `StepwiseModel` like the model itself.

    Requests that arrive while a batch is computed wait for the next one, which takes up to `size` of them, in any case
    the first in the queue. A request that finds the model idle starts at once. Each call returns when its own row is
    done, and the other rows go on without it.

    Threads may share it. A worker thread computes while requests wait, and ends when none does.

    Args:
        model: called only through this one.
        size: most requests in one pass.

    Raises:
        ModelError: the size is below 1.
    """

    takes_stop = True

    def __init__(self, model: "LocalModel", size: int) -> None:
        if size < 1:
            raise ModelError(f"a batch holds at least 1 request, got {size!r}")
        self.fingerprint = model.fingerprint
        self.prompt = model.prompt
        self.max_new_tokens = model.max_new_tokens
        self._model = model
        self._size = size
        self._changed = threading.Condition()
        """Guards the attributes below, and the flags of all rows."""
        self._waiting: list[_Row] = []
        self._under_way = 0
        """Calls that haven't returned."""
        self._most_under_way = 0
        """The most at any time since the last batch started."""
        self._is_working = False

    def text_tokens(self, text: str) -> list[int]:
        """Encode a text, as the model does."""
        return self._model.text_tokens(text)

    def generate(
        self,
        messages: Sequence[Message],
        *,
        proceed: Proceed | None = None,
        deadline: Deadline | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Answer one conversation.

        A generation's `seconds` count from the call, so they include the wait for the batch before.

        Args:
            messages: the last turn is the user's.
            proceed: as for a `LocalModel`; called in the caller's thread. While another row goes on, no pass
                waits for its result: tokens of a row that doesn't proceed are dropped.
            deadline: when it passes, the call raises, and the row leaves its batch at the next token.
            stop: as for a `LocalModel`. An answer that one ends waits for the batch's end, and is replayed after it.

        Raises:
            BudgetError: the deadline has passed.
            PromptTooLongError: the prompt and the answer don't fit into the context.
            ModelError: the model can't take this conversation.
            SignatureError: an activation of this row is missing or not finite.
        """
        row = _Row(self._model.prepare(messages, stop), awaits_proceed=proceed is not None)
        with self._join_queue(row):
            if proceed is not None:
                so_far = row.result(deadline)
                if not proceed(so_far):
                    return so_far
                with self._changed:
                    row.awaits_proceed = False
                    self._changed.notify_all()
            return row.result(deadline)

    def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
        """Answer one conversation step by step: after the prompt, after a token has passed, and at the end.

        The batch doesn't wait for the iterator's consumer: tokens that passed while it was busy come as one step, with
        maps and statistics of them all. When the iterator is closed, the row leaves its batch at the next token.

        Raises:
            PromptTooLongError, ModelError, SignatureError: as `generate`, at the step where it happens.
        """
        row, steps = _Row(self._model.prepare(messages, stop)), StepBuilder()
        with self._join_queue(row):
            is_complete = False
            while not is_complete:
                row.wants_progress = True
                generation = row.result()
                is_complete = generation.finish_reason is not None
                yield steps.step(generation)

    @contextmanager
    def _join_queue(self, row: "_Row") -> Iterator[None]:
        try:
            with self._changed:
                self._waiting.append(row)
                self._under_way += 1
                self._most_under_way = max(self._most_under_way, self._under_way)
                if not self._is_working:
                    threading.Thread(target=self._work, name="ilis-guard-batch", daemon=True).start()
                    self._is_working = True
                self._changed.notify_all()
            yield
        finally:
            with self._changed:
                row.is_cancelled = True
                self._under_way -= 1
                if row in self._waiting:
                    self._waiting.remove(row)
                self._changed.notify_all()

    def _work(self) -> None:
        gather_seconds = 0.0
        while rows := self._next_batch(gather_seconds):
            started_at = time.monotonic()
            self._run(rows)
            gather_seconds = GATHER_SHARE * (time.monotonic() - started_at)

    def _run(self, rows: "Sequence[_Row]") -> None:
        try:
            self._model.run([row.request for row in rows], _Batch(rows, self._changed))
        except SignatureError as error:
            if len(rows) == 1:
                rows[0].deliver(error)
                return
            # The error doesn't name the row: each row runs alone, so that one prompt doesn't fail the others.
            for row in rows:
                if not row.is_cancelled:
                    self._run([row])
        except BaseException as error:  # noqa: BLE001 - whatever it is, every caller in the batch must receive it
            for row in rows:
                row.deliver(error)

    def _next_batch(self, gather_seconds: float) -> "list[_Row]":
        """Take the rows of the next batch from the queue; none where it is empty, and then the thread ends."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._waiting) >= min(self._size, self._most_under_way), timeout=gather_seconds
            )
            rows = _similar_in_length(self._waiting, self._size)
            self._waiting = [row for row in self._waiting if row not in rows]
            self._most_under_way = self._under_way
            self._is_working = bool(rows)
            return rows


class _Row:
    """One request, between its caller's thread and the worker's."""

    def __init__(self, request: "GenerationRequest", *, awaits_proceed: bool = False) -> None:
        self.request = request
        self.awaits_proceed = awaits_proceed
        """Whether the caller hasn't decided yet if it proceeds."""
        self.wants_progress = awaits_proceed
        """Whether the caller waits for the generation so far."""
        self.is_cancelled = False
        self._results: deque[Generation | BaseException] = deque()
        self._delivered = threading.Condition()

    @property
    def goes_on(self) -> bool:
        return not self.is_cancelled and not self.awaits_proceed

    def result(self, deadline: Deadline | None = None) -> Generation:
        """Wait for the generation so far where the caller wants it, else for the answer.

        Raises:
            BudgetError: the deadline has passed.
            ClientDisconnected: the deadline's client has disconnected.
            BaseException: the error that ended the batch, copied for this row.
        """
        if deadline is not None:
            deadline.check()
        with self._delivered:
            if not wait_until(self._delivered, lambda: bool(self._results), deadline):
                assert deadline is not None, "without a deadline, the wait ends with a result"
                raise deadline.error("; it left its batch")
            result = self._results.popleft()
        if isinstance(result, BaseException):
            raise _copy_error(result) from result
        return result

    def report(self, so_far: Callable[[], Generation]) -> None:
        """Deliver the generation so far, if the caller waits for it."""
        if self.wants_progress and not self.is_cancelled:
            generation = so_far()
            # Reset first: the caller may want more as soon as it has this.
            self.wants_progress = False
            self.deliver(generation)

    def deliver(self, result: Generation | BaseException) -> None:
        """Deliver the generation so far, the answer, or an error."""
        with self._delivered:
            self._results.append(result)
            self._delivered.notify_all()


class _Batch:
    """Observes a batch of several callers' rows."""

    def __init__(self, rows: "Sequence[_Row]", changed: threading.Condition) -> None:
        self._rows = rows
        self._changed = changed

    def on_step(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        for place in rows:
            self._rows[place].report(partial(so_far, place))
        active = [self._rows[place] for place in rows]
        with self._changed:
            # Rows whose callers decide are computed along with others, but not alone.
            self._changed.wait_for(
                lambda: any(row.goes_on for row in active) or all(row.is_cancelled for row in active),
                timeout=PROCEED_TIMEOUT,
            )
            return [place for place in rows if not self._rows[place].is_cancelled]

    def on_answer(self, row: int, generation: Generation) -> None:
        self._rows[row].deliver(generation)


def _similar_in_length(waiting: "Sequence[_Row]", size: int) -> "list[_Row]":
    """Of a queue, the first row and those whose prompts are most like its own in length."""
    if not waiting:
        return []
    length = len(waiting[0].request.tokens)

    def difference(row: "_Row") -> int:
        return abs(len(row.request.tokens) - length)

    return sorted((row for row in waiting if difference(row) <= MAX_LENGTH_DIFFERENCE), key=difference)[:size]


def _copy_error(error: BaseException) -> BaseException:
    """Copy an error, so that no two threads raise one object."""
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001 - copying a third party's error may want arguments that nobody knows
        return RuntimeError(f"{type(error).__name__}: {error}")
