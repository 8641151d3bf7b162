"""An agent's model call as an attempt of a guard: made by the agent's own handler, from the thread that decides."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables.config import ensure_config, set_config_context
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphBubbleUp

from ilis_guard import Generation, Message
from ilis_guard.errors import ClientDisconnected, ModelError, control_flow
from ilis_guard.models.remote import as_model_error, check_not_refused, generation_of

_NOBODY: Final = "the agent's run was cancelled"

Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]


class ToolsWantedError(GraphBubbleUp):
    """The model asks for tools: that is no answer, so the request's way through the tiers ends unruled."""

    def __init__(self, response: ModelResponse[Any]) -> None:
        super().__init__("the model asks for tools")
        self.response = response


class AgentCall:
    """One model call of an agent, while a guard decides on it.

    Args:
        handler: makes it: with the agent's tools, and its other middleware.
        request: what the agent asks.
    """

    def __init__(self, handler: Handler, request: ModelRequest[Any]) -> None:
        self.answers: dict[str, ModelResponse[Any]] = {}
        """By tier: its last answer, as the agent has it."""
        self.error: Exception | None = None
        """What a model raised last."""
        self._handler = handler
        self._request = request

    def ask(self, tier: str, chat: BaseChatModel | None) -> Generation:
        """Ask a chat model in the agent's place, or the agent's own.

        Raises:
            ToolsWantedError: it asks for tools.
            TransientModelError: it can't be reached, is overloaded, or timed out.
            ModelError: it refused, or what came is no answer.
        """
        request = self._request if chat is None else self._request.override(model=chat)
        started = time.perf_counter()
        try:
            response = self._held(request)
        except control_flow():
            raise
        except Exception as error:
            self.error = error
            raise as_model_error(error, type(request.model).__name__) from error
        said = _said(response)
        if said.tool_calls and response.structured_response is None:
            raise ToolsWantedError(response)
        self.answers[tier] = response
        reply = said.model_copy(update={"content": answer_in(response)})
        check_not_refused(reply)
        return generation_of(reply, seconds=time.perf_counter() - started)

    def _held(self, request: ModelRequest[Any]) -> ModelResponse[Any]:
        """Nobody sees a token of an answer before it is decided on."""
        config = ensure_config()
        config["tags"] = [*config.get("tags", []), TAG_NOSTREAM]
        with set_config_context(config) as context:
            return context.run(self._handler, request)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """While this lasts, whoever stands in a tier's place answers this call."""
        token = _GOING_ON.set(self)
        try:
            yield
        finally:
            _GOING_ON.reset(token)


_GOING_ON: Final[ContextVar[AgentCall]] = ContextVar("going_on")
"""A guard's calls keep the context of whoever asks it, in whichever thread they run."""


class AgentModel:
    """A chat model in a tier's place: asked through the agent that is at work, with the agent's own messages.

    Args:
        tier: whose place.
        chat: asked in the agent's place; None for the agent's own model.
    """

    fingerprint = None

    def __init__(self, tier: str, chat: BaseChatModel | None) -> None:
        self._tier = tier
        self._chat = chat

    def generate(self, messages: Sequence[Message]) -> Generation:  # noqa: ARG002 - they are the call's transcript
        """See `AgentCall.ask`."""
        return _GOING_ON.get().ask(self._tier, self._chat)


class Bridge:
    """An async handler for a thread. What is under way ends when whoever waits for it has gone.

    Args:
        handler: runs in the event loop that the bridge is made in.
    """

    def __init__(self, handler: AsyncHandler) -> None:
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._under_way: set[Future[ModelResponse[Any]]] = set()
        self._is_given_up = False

    def __call__(self, request: ModelRequest[Any]) -> ModelResponse[Any]:
        """Make the call in the event loop, and wait for it in this thread.

        Raises:
            ClientDisconnected: nobody waits for it any more.
        """
        with self._lock:
            if self._is_given_up:
                raise ClientDisconnected(_NOBODY)
            call = asyncio.run_coroutine_threadsafe(self._call(request), self._loop)
            self._under_way.add(call)
        try:
            return call.result()
        except CancelledError:
            if self._is_given_up:
                raise ClientDisconnected(_NOBODY) from None
            raise
        finally:
            self._under_way.discard(call)

    async def _call(self, request: ModelRequest[Any]) -> ModelResponse[Any]:
        return await self._handler(request)

    def give_up(self) -> None:
        """End what is under way, and let nothing begin."""
        with self._lock:
            self._is_given_up = True
        for call in tuple(self._under_way):
            call.cancel()


def answer_in(response: ModelResponse[Any]) -> str:
    """The text of an answer; of a structured one that came as a tool's call, what the call holds."""
    said = _said(response)
    # Beside it there may be calls of real tools, which nobody has answered yet.
    given = {turn.tool_call_id for turn in response.result if isinstance(turn, ToolMessage)}
    structured = next((call["args"] for call in said.tool_calls if call["id"] in given), None)
    return str(said.text).strip() if structured is None else json.dumps(structured, ensure_ascii=False)


def _said(response: ModelResponse[Any]) -> AIMessage:
    for message in response.result:
        if isinstance(message, AIMessage):
            return message
    raise ModelError(f"the model's answer holds no AIMessage, only {[turn.type for turn in response.result]!r}")
