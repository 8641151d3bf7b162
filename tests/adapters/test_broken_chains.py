"""A chain whose model was broken off, or failed, gives no answer of its own making."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_openai import ChatOpenAI

from ilis_guard import Action, Decision, Guard, Policy, Tier
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard_langchain import wrap
from tests.explained import problem
from tests.scripted_provider import ScriptedProvider, chunks, completion, scripted_provider

POLICY = """
version: 1
name: sure-or-nothing
rules:
  - {id: sure, when: 'uncertainty < 0.5', do: answer}
  - {id: unsure, do: abstain, say: I don't know.}
"""
BREAKS_DOWN = [*chunks("Os", "lo", finish_reason=None), {"error": {"message": "boom", "code": 500}}]


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with scripted_provider() as one:
        yield one


def decided(chain: Runnable[Any, Any]) -> Decision:
    tier = Tier(name="only", model=FakeModel("never called"), scorer=FixedScorer(0.1))
    guard = Guard(tiers=[tier], policy=Policy.parse(POLICY))
    found: Decision = wrap(chain, guard, output="decision").invoke("Where?")
    return found


def breaks_off(chat: ChatOpenAI) -> Callable[[str], str]:
    def answer(asked: str) -> str:
        for chunk in chat.stream(asked):
            return str(chunk.text)
        return ""

    return answer


def goes_on(chat: ChatOpenAI) -> Callable[[str], str]:
    def answer(asked: str) -> str:
        text = ""
        try:
            for chunk in chat.stream(asked):
                text += str(chunk.text)
        except Exception:  # noqa: BLE001 - whatever came is taken, as hasty programs do
            return text
        return text

    return answer


def apologises(chat: ChatOpenAI) -> Callable[[str], str]:
    def answer(asked: str) -> str:
        try:
            return str(chat.invoke(asked).text)
        except Exception:  # noqa: BLE001 - as above
            return "Sorry, that didn't work."

    return answer


@pytest.mark.parametrize(
    ("chain", "script", "said"),
    [
        (breaks_off, chunks("Os", "lo"), "broken off in the chain"),
        (goes_on, BREAKS_DOWN, "broken off in the chain"),
        (apologises, 500, "all calls of models in the chain failed"),
    ],
)
def test_what_a_chain_makes_of_a_broken_answer_is_none(
    chain: Callable[[ChatOpenAI], Callable[[str], str]], script: Any, said: str, provider: ScriptedProvider
) -> None:
    provider.script = script
    decision = decided(RunnableLambda(chain(ChatOpenAI(**provider.arguments()))))
    assert (decision.action, decision.text) == (Action.ABSTAIN, "I don't know.")
    assert said in problem(decision.attempts[0])


def test_a_text_of_the_chains_own_in_place_of_a_failed_models_is_none(provider: ScriptedProvider) -> None:
    chat = ChatOpenAI(**provider.arguments()) | StrOutputParser()
    decision = decided(chat.with_fallbacks([RunnableLambda(lambda _: "Please call us.")]))
    assert (decision.action, decision.text) == (Action.ABSTAIN, "I don't know.")


def test_another_models_whole_answer_is_one(provider: ScriptedProvider) -> None:
    provider.script = BREAKS_DOWN
    broken = ChatOpenAI(**provider.arguments(streaming=True))
    whole = GenericFakeChatModel(messages=iter([AIMessage("Oslo", response_metadata={"finish_reason": "stop"})]))

    def answer(asked: str) -> str:
        try:
            return str(broken.invoke(asked).text)
        except Exception:  # noqa: BLE001 - as above
            return str(whole.invoke(asked).text)

    decision = decided(RunnableLambda(answer))
    assert (decision.action, decision.text) == (Action.ANSWER, "Oslo")


def test_a_repeated_call_takes_the_place_of_the_broken_one(provider: ScriptedProvider) -> None:
    provider.script = BREAKS_DOWN
    chat = ChatOpenAI(**provider.arguments(streaming=True))

    def answer(asked: str) -> str:
        try:
            chat.invoke(asked)
        except Exception:  # noqa: BLE001 - as above
            provider.script = chunks("Os", "lo")
        return f"{chat.invoke(asked).text}!"

    decision = decided(RunnableLambda(answer))
    assert (decision.action, decision.text) == (Action.ANSWER, "Oslo!")


def test_one_of_several_answers_may_fail_before_its_beginning(provider: ScriptedProvider) -> None:
    chat = ChatOpenAI(**provider.arguments())

    def answer(asked: str) -> str:
        try:
            chat.invoke(asked)
        except Exception:  # noqa: BLE001 - as above
            provider.script = completion("Oslo")
        return f"{chat.invoke('In one word: ' + asked).text}, as far as we know."

    decision = decided(RunnableLambda(answer))
    assert (decision.action, decision.text) == (Action.ANSWER, "Oslo, as far as we know.")
