"""A callback that records the models' calls inside a chain that doesn't show its model."""

import threading
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from ilis_guard import Message, Request
from ilis_guard.errors import RequestError
from ilis_guard_langchain.messages import to_messages


class CaptureCallback(BaseCallbackHandler):
    """Records what the models of one chain run received and replied."""

    run_inline = True
    """Also on an event loop: every reply must be recorded before the chain returns."""

    def __init__(self) -> None:
        self.sent: tuple[Message, ...] = ()
        """The last conversation that a guard's tier could answer too: text, the user last."""
        self.replies: list[AIMessage] = []
        """One a model call; plain text becomes a message without metadata."""
        self._lock = threading.Lock()

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **_: Any) -> None:  # noqa: ARG002 - LangChain's
        """Record the conversation."""
        self._record(messages[-1])

    def on_llm_start(self, serialized: Any, prompts: list[str], **_: Any) -> None:  # noqa: ARG002 - LangChain's
        """Record the prompt."""
        self._record(prompts[-1])

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Record the reply."""
        for row in response.generations:
            reply = (
                row[0].message
                if isinstance(row[0], ChatGeneration)
                else AIMessage(row[0].text, response_metadata=row[0].generation_info or {})
            )
            if isinstance(reply, AIMessage):
                with self._lock:
                    self.replies.append(reply)

    def _record(self, given: LanguageModelInput) -> None:
        try:
            sent = Request.of(to_messages(given)).messages
        except RequestError:
            return  # tool results, images: no tier of the guard takes them
        with self._lock:
            self.sent = sent
