"""Batching: requests that wait for one local model at the same time go through it side by side."""

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
from ilis_guard.models.base import Proceed
from ilis_guard.models.stepwise import Unfolding
from ilis_guard.types import Generation, Message, Step

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.models.local import LocalModel
    from ilis_guard.models.passes import Asked

ALIKE: Final = 128
"""Prompts that are so many tokens longer or shorter than that of the request that waits longest go in a batch of their
own: every row is as long as the longest, and what is padded is computed too."""
PATIENCE: Final = 0.05
"""A share of the time that the batch before took: so long the next one waits, at most, for those who were just answered
and ask again. Without it the first to come back would be computed alone, and all others wait for that."""
ASKING: Final = 0.25
"""Seconds, at most, that a pass waits while every row of it asks whether to proceed."""


class BatchedModel:
    """A local model whose concurrent calls share forward passes; as the model itself, a `StepwiseModel`.

    While one batch is computed, those who ask meanwhile gather; the next one takes up to `size` of them, the one that
    waits longest in any case. A request that finds the model idle is begun at once. Each is told of its own row alone,
    and returns when that is done: the others of its batch go on without it.

    Threads may share it. A thread of its own computes while somebody waits, and ends when nobody does.

    Args:
        model: it answers through this one alone.
        size: so many requests one pass holds at most.

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
        """Guards what follows, and what rows say of themselves."""
        self._waiting: list[_Row] = []
        self._under_way = 0
        """Calls that haven't returned."""
        self._most_under_way = 0
        """Of all moments since the last batch began."""
        self._is_working = False

    def text_tokens(self, text: str) -> list[int]:
        """As of the model."""
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

        `seconds` count from the call, so that waiting for the batch before is in them.

        Args:
            messages: the last turn is the user's.
            proceed: as for a `LocalModel`; asked in the caller's thread. While some row of the batch goes on, passes
                don't wait for what is said, and what was computed meanwhile of a row that doesn't proceed is dropped.
            deadline: when it passes the call returns, and the row leaves its batch at the next token.
            stop: as for a `LocalModel`. An answer that one ends waits for the batch, and is read anew after it.

        Raises:
            BudgetError: the deadline has passed.
            PromptTooLongError: the prompt and the answer don't fit into the context.
            ModelError: the conversation can't be put to this model.
            SignatureError: an activation of this row is missing or not finite.
        """
        row = _Row(self._model.asked(messages, stop), is_asking=proceed is not None)
        with self._taking_part(row):
            if proceed is not None:
                so_far = row.news(deadline)
                if not proceed(so_far):
                    return so_far
                self._proceed(row)
            return row.news(deadline)

    def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
        """Answer one conversation step by step: after the prompt, after a token has passed, and at the end.

        The batch doesn't wait for a consumer: the tokens that passed while it was busy come as one step, with maps and
        statistics of them all. Closing the iterator lets the row leave its batch at the next token.

        Raises:
            PromptTooLongError, ModelError, SignatureError: as `generate`, at the step where it happens.
        """
        row, unfolding = _Row(self._model.asked(messages, stop)), Unfolding()
        with self._taking_part(row):
            is_at_end = False
            while not is_at_end:
                row.wants_news = True
                generation = row.news()
                is_at_end = generation.finish_reason is not None
                yield unfolding.step(generation)

    @contextmanager
    def _taking_part(self, row: "_Row") -> Iterator[None]:
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

    def _proceed(self, row: "_Row") -> None:
        with self._changed:
            row.is_asking = False
            self._changed.notify_all()

    def _work(self) -> None:
        patience = 0.0
        while rows := self._next(patience):
            began = time.monotonic()
            self._run(rows)
            patience = PATIENCE * (time.monotonic() - began)

    def _run(self, rows: "Sequence[_Row]") -> None:
        try:
            self._model.run([row.asked for row in rows], _Batch(rows, self._changed))
        except SignatureError as error:
            if len(rows) == 1:
                rows[0].fail(error)
                return
            # It doesn't say in whose row: each has a pass of its own, so that one prompt doesn't take others along.
            for row in rows:
                if not row.is_cancelled:
                    self._run([row])
        except BaseException as error:  # noqa: BLE001 - whatever it is, everybody in the batch must hear of it
            for row in rows:
                row.fail(error)

    def _next(self, patience: float) -> "list[_Row]":
        """The rows of the next batch; none where nobody waits, and then the thread ends."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._waiting) >= min(self._size, self._most_under_way), timeout=patience
            )
            rows = _alike(self._waiting, self._size)
            self._waiting = [row for row in self._waiting if row not in rows]
            self._most_under_way = self._under_way
            self._is_working = bool(rows)
            return rows


class _Row:
    """One request: where its caller and the batch that it is in meet."""

    def __init__(self, asked: "Asked", *, is_asking: bool = False) -> None:
        self.asked = asked
        self.is_asking = is_asking
        """Whether it isn't said yet that it proceeds."""
        self.wants_news = is_asking
        """Whether its caller waits for the generation as far as it has come."""
        self.is_cancelled = False
        self._news: deque[Generation | BaseException] = deque()
        self._came = threading.Condition()

    @property
    def goes_on(self) -> bool:
        return not self.is_cancelled and not self.is_asking

    def news(self, deadline: Deadline | None = None) -> Generation:
        """Wait for what was wanted, or for the end.

        Raises:
            BudgetError: the deadline has passed.
            ClientDisconnected: whoever asked has left.
            BaseException: what ended the batch, as an object of this row's own.
        """
        if deadline is not None:
            deadline.check()
        with self._came:
            if not wait_until(self._came, lambda: bool(self._news), deadline):
                assert deadline is not None, "without a deadline, news is waited for"
                raise deadline.error("; it left its batch")
            news = self._news.popleft()
        if isinstance(news, BaseException):
            raise _own(news) from news
        return news

    def passed(self, so_far: Callable[[], Generation]) -> None:
        if self.wants_news and not self.is_cancelled:
            news = so_far()
            # First this: whoever has the news may want more at once.
            self.wants_news = False
            self._tell(news)

    def end(self, generation: Generation) -> None:
        self._tell(generation)

    def fail(self, error: BaseException) -> None:
        self._tell(error)

    def _tell(self, news: Generation | BaseException) -> None:
        with self._came:
            self._news.append(news)
            self._came.notify_all()


class _Batch:
    """The audience of a pass that several callers share."""

    def __init__(self, rows: "Sequence[_Row]", changed: threading.Condition) -> None:
        self._rows = rows
        self._changed = changed

    def passed(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        for place in rows:
            self._rows[place].passed(partial(so_far, place))
        there = [self._rows[place] for place in rows]
        with self._changed:
            # Rows that may have no next token are computed along with others, not for themselves.
            self._changed.wait_for(
                lambda: any(row.goes_on for row in there) or all(row.is_cancelled for row in there), timeout=ASKING
            )
            return [place for place in rows if not self._rows[place].is_cancelled]

    def answered(self, row: int, generation: Generation) -> None:
        self._rows[row].end(generation)


def _alike(waiting: "Sequence[_Row]", size: int) -> "list[_Row]":
    """Of those who wait, in the order in which they came: the first, and those whose prompts are most like its own."""
    if not waiting:
        return []
    length = len(waiting[0].asked.tokens)

    def unlike(row: "_Row") -> int:
        return abs(len(row.asked.tokens) - length)

    return sorted((row for row in waiting if unlike(row) <= ALIKE), key=unlike)[:size]


def _own(error: BaseException) -> BaseException:
    """The same error, as an object that no other thread raises."""
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001 - a stranger's error may want arguments that nobody knows
        return RuntimeError(f"{type(error).__name__}: {error}")
