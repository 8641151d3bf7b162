"""What tests of a guard in agents have in common."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import tenacity
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from ilis_guard import Guard, Policy, Score, Tier
from ilis_guard.cascade.escalation import Review
from ilis_guard.models import Model
from ilis_guard.models.remote import RemoteModel
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from tests.adapters.guards import ending

POLICY: Final = """
version: 1
name: agents
rules:
  - {id: failed, when: error != "", do: retry}
  - {id: sure, when: uncertainty < 0.3, do: answer}
  - {id: hopeless, when: uncertainty > 0.8, do: abstain, say: I can't answer this.}
  - {id: larger, do: retry}
  - {id: ask, do: escalate, say: A person will look at it.}
"""
"""Answers up to 0.3; above 0.8 it gives up; between, and after errors, the next tier is asked, in the end a person."""

Scores = float | Score | Mapping[str, float]


class ScriptedChat(BaseChatModel):
    """A chat model that says what it is told to, streams it by words, and remembers what it was asked."""

    replies: list[Any]
    """One a call, in order: messages, texts, or errors to raise."""
    _calls: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _tools: list[list[str]] = PrivateAttr(default_factory=list)

    @property
    def calls(self) -> list[list[BaseMessage]]:
        """The conversations it was given, in order."""
        return self._calls

    @property
    def tools(self) -> list[list[str]]:
        """The names of the tools that it had, by call."""
        return self._tools

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """It takes any tools."""
        kwargs.pop("tool_choice", None)
        return self.bind(tool_names=[tool.name for tool in tools], **kwargs)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> ChatResult:
        reply = self._reply(messages, kwargs)
        return ChatResult(generations=[ChatGeneration(message=reply, generation_info=ending(reply))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - LangChain's
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reply = self._reply(messages, kwargs)
        words = re.findall(r"\s*\S+", str(reply.content))
        calls = [
            tool_call_chunk(name=call["name"], args=str(call["args"]).replace("'", '"'), id=call["id"], index=index)
            for index, call in enumerate(reply.tool_calls)
        ]
        told = {**ending(reply), **reply.response_metadata}
        last = AIMessageChunk(content="", tool_call_chunks=calls, response_metadata=told)
        chunks = [*(AIMessageChunk(content=word) for word in words), last]
        for chunk in (ChatGenerationChunk(message=message) for message in chunks):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _reply(self, messages: list[BaseMessage], kwargs: Mapping[str, Any]) -> AIMessage:
        self._calls.append(messages)
        self._tools.append(kwargs.get("tool_names", []))
        reply = self.replies[len(self._calls) - 1]
        if isinstance(reply, BaseException):
            raise reply
        return AIMessage(reply) if isinstance(reply, str) else reply


def guarding(
    queue: Review | None,
    scores: Scores = 0.1,
    *,
    larger: Mapping[str, tuple[BaseChatModel | Model, Scores]] | None = None,
    policy: str = POLICY,
    **options: Any,
) -> Guard:
    """A guard with a real policy and a real queue, whose first tier's model is whatever an agent puts in its place.

    Args:
        queue: None for one of its own.
        scores: of the first tier's answers.
        larger: the other tiers.
        policy: as text.
        options: every tier's others.
    """
    models = {name: (_model(given), given_scores) for name, (given, given_scores) in (larger or {}).items()}
    tiers = {"small": (FakeModel("this is the tier's own and is never asked"), scores), **models}
    return Guard(
        tiers=[
            Tier(name=name, model=model, scorer=FixedScorer(score), **options) for name, (model, score) in tiers.items()
        ],
        policy=Policy.parse(policy),
        review=InMemoryQueue() if queue is None else queue,
        backoff=tenacity.wait_none(),
    )


def _model(given: BaseChatModel | Model) -> Model:
    return RemoteModel(given) if isinstance(given, BaseChatModel) else given


def tool_call(name: str, **args: Any) -> AIMessage:
    """A model's wish for a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"call-{name}"}])
