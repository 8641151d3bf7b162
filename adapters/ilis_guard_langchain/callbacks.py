"""A callback that records the models' calls inside a chain that doesn't show its model."""

import threading
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from ilis_guard import Message, Request
from ilis_guard.errors import RequestError
from ilis_guard.text import is_blank
from ilis_guard_langchain.messages import to_messages


class CaptureCallback(BaseCallbackHandler):
    """Records what the models of one chain run received and replied."""

    run_inline = True
    """Also on an event loop: every reply must be recorded before the chain returns."""

    def __init__(self) -> None:
        self.sent: tuple[Message, ...] = ()
        """The last conversation that a guard's tier could answer too: text, the user last."""
        self.replies: list[AIMessage] = []
        """One a model call that ended; plain text becomes a message without metadata."""
        self._open: dict[UUID, str] = {}
        """What calls that haven't ended were asked."""
        self._broken: set[str] = set()
        """What calls were asked that failed after a part of their answer."""
        self._failed = 0
        self._lock = threading.Lock()

    @property
    def problem(self) -> str:
        """Why what the chain puts out may be no finished answer, unless it is a reply; empty for no reason.

        A chain may break a stream off, or go on with the part of it that came before an error, and it may put out a
        text of its own where no model answered.
        """
        if self._open or self._broken:
            return "a model's answer was broken off in the chain"
        return "all calls of models in the chain failed" if self._failed and not self.replies else ""

    def on_chat_model_start(
        self,
        serialized: Any,  # noqa: ARG002 - LangChain's
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        **_: Any,
    ) -> None:
        """Record the conversation."""
        self._record(messages[-1], run_id)

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002 - LangChain's
        """Record the prompt."""
        self._record(prompts[-1], run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, response: Any = None, **_: Any) -> None:  # noqa: ARG002 - LangChain's
        """Record that there is no reply, and whether a part of one came."""
        generations = response.generations if isinstance(response, LLMResult) else []
        with self._lock:
            asked = self._open.pop(run_id, "")
            self._failed += 1
            if any(not is_blank(each.text) for row in generations for each in row):
                self._broken.add(asked)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """Record the reply."""
        with self._lock:
            # A repeated call takes the place of one that failed.
            self._broken.discard(self._open.pop(run_id, ""))
        for row in response.generations:
            reply = (
                row[0].message
                if isinstance(row[0], ChatGeneration)
                else AIMessage(row[0].text, response_metadata=row[0].generation_info or {})
            )
            if isinstance(reply, AIMessage):
                with self._lock:
                    self.replies.append(reply)

    def _record(self, given: str | list[BaseMessage], run_id: UUID) -> None:
        with self._lock:
            self._open[run_id] = (
                given if isinstance(given, str) else repr([(turn.type, turn.content) for turn in given])
            )
        try:
            sent = Request.of(to_messages(given)).messages
        except RequestError:
            return  # tool results, images: no tier of the guard takes them
        with self._lock:
            self.sent = sent
