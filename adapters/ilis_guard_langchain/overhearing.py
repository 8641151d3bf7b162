"""What goes on inside a chain that hides its model: what that was sent, and what it replied."""

import threading
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from ilis_guard import Message, Request
from ilis_guard.errors import RequestError
from ilis_guard_langchain.messages import to_messages


class CaptureCallback(BaseCallbackHandler):
    """Hears the models of one run of a chain."""

    run_inline = True
    """On the event loop too: what is told must be heard before the chain returns."""

    def __init__(self) -> None:
        self.sent: tuple[Message, ...] = ()
        """What the last model was sent that a guard's tier could be asked too: text, by a user last."""
        self.replies: list[AIMessage] = []
        """One a call of a model; plain text is a message without metadata."""
        self._writing = threading.Lock()

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - LangChain's signature
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,  # noqa: ARG002 - as above
        **_: Any,
    ) -> None:
        """Keep the conversation, where it is one."""
        self._hear(messages[-1])

    def on_llm_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - LangChain's signature
        prompts: list[str],
        *,
        run_id: UUID,  # noqa: ARG002 - as above
        **_: Any,
    ) -> None:
        """Keep the prompt."""
        self._hear(prompts[-1])

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002 - as above
        """Keep the reply."""
        for row in response.generations:
            reply = row[0].message if isinstance(row[0], ChatGeneration) else AIMessage(row[0].text)
            if isinstance(reply, AIMessage):
                with self._writing:
                    self.replies.append(reply)

    def _hear(self, given: Any) -> None:
        try:
            sent = Request.of(to_messages(given)).messages
        except RequestError:
            return  # tool results, images: no tier of the guard could be asked that
        with self._writing:
            self.sent = sent
