"""Streams: write an answer's text while it is generated, and retract it where it isn't given."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.concurrency.threads import EventChannel
from ilis_guard.types import Action, Decision, StreamMode

HALF_A_CHARACTER: Final = "\ufffd"
"""What a decoder returns for the first bytes of a character that isn't complete yet."""

RetractionReason = Literal["attempt_failed", "not_answered", "stopped_early", "answer_differs", "out_of_time"]
"""The attempt failed; the policy doesn't give this answer; no rule could have given it any more; the answer that is
given differs from the text that was shown; or the time for the request is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """The next part of the answer's text. Where nothing was retracted, the parts joined are the decision's text."""

    text: str
    """Never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """All text so far is retracted; nothing but the decision follows."""

    reason: RetractionReason


StreamEvent = TextDelta | Retraction | Decision
"""The decision comes exactly once, at the end."""


class StreamWriter:
    """Writes one stream: the text of one attempt after the other, until something is retracted, then the decision.

    Threads may share it: an abandoned call may go on beside the next attempt.

    Args:
        channel: to the reader.
        mode: what is shown before the decision.
    """

    def __init__(self, channel: EventChannel[StreamEvent], mode: StreamMode) -> None:
        self.mode = mode
        self._channel = channel
        self._text = TextOnStream(channel.send)

    @property
    def cancel_token(self) -> CancelToken:
        """Cancelled when the reader disconnects."""
        return self._channel.cancel_token

    @property
    def is_retracted(self) -> bool:
        """Whether any text was retracted: then no more text is written."""
        return self._text.is_retracted

    def open_attempt(self) -> "AttemptWriter":
        """Begin an attempt: only its text is written from now on."""
        return self._text.open_attempt()

    def close_attempt(self) -> None:
        """End the attempt: no more of its text is written."""
        self._text.close_attempt()

    def retract(self, reason: RetractionReason) -> None:
        """Retract the text so far, if there is any."""
        self._text.retract(reason)

    def finish(self, decision: Decision) -> None:
        """Write what is missing of the answer, or retract the text if it isn't given; then the decision."""
        self._text.finish(decision)
        self._channel.send(decision)

    def wait_for_reader(self) -> None:
        """Wait until the reader has read everything and wants more.

        Raises:
            ClientDisconnected: the reader has disconnected.
        """
        self._channel.wait_for_request()


class TextOnStream:
    """The text on a stream.

    Args:
        send: called with each event.
    """

    def __init__(self, send: Callable[[StreamEvent], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._text = ""
        self._attempt: AttemptWriter | None = None
        self.is_retracted = False
        """Whether any text was retracted."""

    def open_attempt(self) -> "AttemptWriter":
        """Begin an attempt: only its text is written from now on."""
        with self._lock:
            self._attempt = AttemptWriter(self)
            return self._attempt

    def close_attempt(self) -> None:
        """End the attempt."""
        with self._lock:
            self._attempt = None

    def retract(self, reason: RetractionReason, *, of: "AttemptWriter | None" = None) -> None:
        """Retract the text so far, if there is any; that of an attempt only while it is the newest."""
        with self._lock:
            if of is None or of is self._attempt:
                self._retract(reason)

    def write(self, attempt: "AttemptWriter", text: str) -> None:
        """Write an attempt's text so far, unless another attempt is the newest."""
        with self._lock:
            if attempt is self._attempt and text.startswith(self._text):
                self._write(text)

    def finish(self, decision: Decision) -> None:
        """Write what is missing of the answer, or retract the text if it isn't given."""
        with self._lock:
            self._attempt = None
            is_given = decision.action is Action.ANSWER
            if is_given and decision.text.startswith(self._text):
                self._write(decision.text)
            else:
                self._retract("answer_differs" if is_given else "not_answered")

    def _write(self, text: str) -> None:
        delta = text[len(self._text) :]
        if delta and not self.is_retracted:
            self._text = text
            self._send(TextDelta(text=delta))

    def _retract(self, reason: RetractionReason) -> None:
        if self._text and not self.is_retracted:
            self.is_retracted = True
            self._send(Retraction(reason=reason))


class AttemptWriter:
    """Writes the text of one attempt."""

    def __init__(self, stream: TextOnStream) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write the text so far, without what may still change: incomplete characters, and spaces at the end."""
        settled = ""
        while settled != text:
            settled, text = text, text.rstrip().rstrip(HALF_A_CHARACTER)
        self._stream.write(self, settled)

    def fail(self) -> None:
        """Retract the attempt's text: a repeated call gives another one."""
        self._stream.retract("attempt_failed", of=self)
