"""What tests of guarded runnables share: guards with a policy by score, models that keep what they were asked."""

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from ilis_guard import Guard, Policy, Tier
from ilis_guard.cascade.escalation import Review
from ilis_guard.scoring import Scorer
from ilis_guard.testing import FakeModel, FixedScorer

ANSWER, RETRY, ABSTAIN, ESCALATE = 0.1, 0.4, 0.6, 0.9
"""Uncertainties at which the policy does that."""
POLICY = """
version: 1
name: by-score
rules:
  - {id: failed, when: 'error != ""', do: retry}
  - {id: sure, when: 'uncertainty < 0.3', do: answer}
  - {id: unsure, when: 'uncertainty < 0.5', do: retry}
  - {id: doubtful, when: 'uncertainty < 0.8', do: abstain, say: I don't know.}
  - {id: person, when: 'uncertainty >= 0.8', do: escalate, to: people, say: A colleague will answer.}
  - {id: declined, do: abstain, say: I can't answer that.}
"""
PROMPT: ChatPromptTemplate = ChatPromptTemplate.from_messages(
    [("system", "Be brief."), ("human", "Capital of {country}?")]
)


class Chat(BaseChatModel):
    """Replies with what it is told, one after the other, and keeps what it was asked."""

    replies: list[Any] = ["Oslo"]  # noqa: RUF012  # pydantic copies it
    asked: list[list[BaseMessage]] = []  # noqa: RUF012  # as above
    options: list[dict[str, Any]] = []  # noqa: RUF012  # as above

    @property
    def _llm_type(self) -> str:
        return "chat"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        reply = self.replies[min(len(self.asked), len(self.replies) - 1)]
        self.asked.append(messages)
        self.options.append({"stop": stop, **kwargs})
        if isinstance(reply, BaseException):
            raise reply
        message = AIMessage(reply) if isinstance(reply, str) else reply
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=ending(message))])


def ending(message: AIMessage) -> dict[str, Any]:
    """Why a reply ended, as OpenAI tells it; a message with metadata of its own may say otherwise."""
    return {"finish_reason": "tool_calls" if message.tool_calls else "stop"}


def chat(*replies: Any) -> Chat:
    return Chat(replies=list(replies or ["Oslo"]), asked=[], options=[])


def chain_of(model: Runnable[Any, Any]) -> Runnable[Any, str]:
    return PROMPT | model | StrOutputParser()


def guard_of(
    small: float | Scorer | None = ANSWER,
    large: float | None = ANSWER,
    *,
    policy: str = POLICY,
    review: Review | None = None,
    models: Mapping[str, FakeModel] | None = None,
    tiers: int = 2,
) -> Guard:
    """Two tiers: how uncertain their answers are; None for no scorer. The larger one answers "Oslo, surely"."""
    fake = {"small": FakeModel("never asked"), "large": FakeModel("Oslo, surely"), **(models or {})}
    made = [
        Tier(
            name=name,
            model=fake[name],
            scorer=FixedScorer(told) if isinstance(told, float) else told,
        )
        for name, told in (("small", small), ("large", large))
    ]
    parsed = policy if review is not None else "\n".join(line for line in policy.splitlines() if "escalate" not in line)
    return Guard(tiers=made[:tiers], policy=Policy.parse(parsed), review=review)
