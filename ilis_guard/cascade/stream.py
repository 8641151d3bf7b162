"""Who reads a stream, and what they have been shown of the answer."""

import threading
from collections.abc import Callable
from typing import Final

from ilis_guard.cascade.stream_events import Retraction, StreamEvent, StreamMode, TextDelta
from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.concurrency.channel import EventChannel
from ilis_guard.types import Action, Decision

HALF_A_CHARACTER: Final = "\ufffd"
"""What a decoder writes for the first bytes of a character whose others are still to come."""


class Audience:
    """The reader of one stream.

    Args:
        feed: to the reader.
        mode: what they want to be shown.
    """

    def __init__(self, feed: EventChannel[StreamEvent], mode: StreamMode) -> None:
        self.mode = mode
        self.shown = Shown(feed.tell)
        self._feed = feed

    @property
    def cancel_token(self) -> CancelToken:
        """Whether they are still there."""
        return self._feed.cancel_token

    def catch_up(self) -> None:
        """Wait until they have read all that was shown, and want more.

        Raises:
            ClientDisconnected: they have left.
        """
        self._feed.catch_up()


class Shown:
    """What was shown of the answer: of one attempt after the other, until something is withdrawn.

    Threads may share it: a call that was given up may go on beside the attempt that follows.

    Args:
        tell: told of what happens.
    """

    def __init__(self, tell: Callable[[StreamEvent], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._text = ""
        self._is_withdrawn = False
        self._showing: Showing | None = None

    @property
    def is_withdrawn(self) -> bool:
        """Whether anything was shown and withdrawn: then nothing is shown any more."""
        return self._is_withdrawn

    def begin(self) -> "Showing":
        """Where the next attempt shows its answer."""
        with self._lock:
            self._showing = Showing(self)
            return self._showing

    def close(self) -> None:
        """The attempt is over: whatever still comes of it isn't shown."""
        with self._lock:
            self._showing = None

    def withdraw(self, reason: str) -> None:
        """Take back what was shown, if anything was.

        Args:
            reason: a sentence without prompts and answers.
        """
        with self._lock:
            self._withdraw(reason)

    def conclude(self, decision: Decision) -> None:
        """Show what is missing of the answer, or take back what was shown if it doesn't go out; then the decision."""
        with self._lock:
            self._showing = None
            goes_out = decision.action is Action.ANSWER
            if goes_out and decision.text.startswith(self._text):
                self._grow(decision.text)
            else:
                other = "the answer that goes out isn't the one that was shown" if goes_out else "nothing is answered"
                self._withdraw(other)
            self._tell(decision)

    def grow(self, showing: "Showing", text: str) -> None:
        """Show an attempt's text as far as it has come, unless it isn't shown any more."""
        with self._lock:
            if showing is self._showing and text.startswith(self._text):
                self._grow(text)

    def fail(self, showing: "Showing") -> None:
        """Take back what was shown of an attempt whose model failed, unless it isn't shown any more."""
        with self._lock:
            if showing is self._showing:
                self._withdraw("the model failed on its way")

    def _grow(self, text: str) -> None:
        piece = text[len(self._text) :]
        if piece and not self._is_withdrawn:
            self._text = text
            self._tell(TextDelta(text=piece))

    def _withdraw(self, reason: str) -> None:
        if self._text and not self._is_withdrawn:
            self._is_withdrawn = True
            self._tell(Retraction(reason=reason))


class Showing:
    """Where one attempt shows its answer."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    def so_far(self, text: str) -> None:
        """Show it as far as it has come. What may still change is kept back: half characters, and spaces at the end."""
        settled = ""
        while settled != text:
            settled, text = text, text.rstrip().rstrip(HALF_A_CHARACTER)
        self._shown.grow(self, settled)

    def failed(self) -> None:
        """Take it back: what comes of another call is another text."""
        self._shown.fail(self)
