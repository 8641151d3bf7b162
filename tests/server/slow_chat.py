"""A chat model that takes as many seconds as it is asked for; guard.yaml of a test names it."""

import time
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult


class SlowChat(BaseChatModel):
    """Can't be stopped, as a remote model can't."""

    @property
    def _llm_type(self) -> str:
        return "slow"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        time.sleep(float(str(messages[-1].content)))
        reply = AIMessage("Oslo", response_metadata={"finish_reason": "stop"})
        return ChatResult(generations=[ChatGeneration(message=reply)])
