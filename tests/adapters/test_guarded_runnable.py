"""What comes out of a runnable under a guard, and what the guard's larger tiers are asked."""

import asyncio
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser, StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough
from langgraph.errors import GraphInterrupt
from pydantic import BaseModel

from ilis_guard import Action, Decision, Message
from ilis_guard.errors import ConfigError, RequestError
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard_langchain import GuardedRunnable, GuardRunnable, Refused, wrap
from tests.adapters.guards import ABSTAIN, ANSWER, ESCALATE, POLICY, PROMPT, RETRY, chain_of, chat, guard_of
from tests.explained import problem

NORWAY = {"country": "Norway"}
SENT = (Message(role="system", content="Be brief."), Message(role="user", content="Capital of Norway?"))
SHOWN = [{"role": turn.role, "content": turn.content} for turn in SENT]


@pytest.fixture
def queue() -> Iterator[InMemoryQueue]:
    with InMemoryQueue() as opened:
        yield opened


class City(BaseModel):
    name: str


# What comes out


def test_an_answer_is_the_chains_own_output() -> None:
    model = chat("Oslo")
    assert wrap(chain_of(model), guard_of()).invoke(NORWAY) == chain_of(chat("Oslo")).invoke(NORWAY) == "Oslo"
    assert [turn.content for turn in model.asked[0]] == ["Be brief.", "Capital of Norway?"]


def test_a_message_keeps_its_metadata_and_carries_the_decision() -> None:
    usage: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    reply = AIMessage("Oslo", usage_metadata=usage, response_metadata={"model_name": "m"}, id="msg_1")
    found = wrap(chat(reply), guard_of()).invoke("Capital of Norway?")
    assert isinstance(found, AIMessage)
    assert (found.content, found.usage_metadata, found.id) == ("Oslo", usage, "msg_1")
    assert found.response_metadata["model_name"] == "m"
    told = found.response_metadata["ilis_guard"]
    assert (told["action"], told["rule"], told["uncertainty"], told["tier"]) == ("answer", "sure", ANSWER, "small")
    assert "ilis_guard" not in reply.response_metadata, "the model's own message isn't changed"


def test_a_refusal_is_the_policys_message_in_the_same_type() -> None:
    guard = guard_of(ABSTAIN)
    assert wrap(chain_of(chat()), guard).invoke(NORWAY) == "I don't know."
    message = wrap(chat(), guard).invoke("Capital of Norway?")
    assert isinstance(message, AIMessage)
    assert message.content == "I don't know."
    assert message.response_metadata["ilis_guard"]["action"] == "abstain"
    assert message.additional_kwargs == {"refusal": "I don't know."}


def test_a_refusal_of_another_type_is_a_value_of_its_own() -> None:
    wrapped = wrap(PROMPT | chat('{"name": "Oslo"}') | JsonOutputParser(), guard_of(ABSTAIN))
    found = wrapped.invoke(NORWAY)
    assert isinstance(found, Refused)
    assert (found.text, found.summary["action"]) == ("I don't know.", "abstain")


def test_an_escalations_ticket_shows_the_models_conversation(queue: InMemoryQueue) -> None:
    guard = guard_of(ESCALATE, review=queue)
    message = wrap(PROMPT | chat("Bergen"), guard).invoke(NORWAY)
    assert message.content == "A colleague will answer."
    record = queue.get(message.response_metadata["ilis_guard"]["ticket"])
    assert record.proposed == "Bergen"
    assert record.request["messages"] == SHOWN


def test_the_output_may_be_the_decision() -> None:
    found = wrap(chain_of(chat()), guard_of(RETRY), output="decision").invoke(NORWAY)
    assert isinstance(found, Decision)
    assert (found.action, found.text, found.rules) == (Action.ANSWER, "Oslo, surely", ("unsure", "sure"))


def test_an_output_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="'decisions'"):
        GuardedRunnable(chat(), guard_of(), output="decisions")  # type: ignore[arg-type]  # that is the point


# Larger tiers


def test_a_larger_tier_gets_the_conversation_of_the_chains_model() -> None:
    large = FakeModel("Oslo, surely")
    wrapped = wrap(chain_of(chat("Bergen")), guard_of(RETRY, models={"large": large}))
    assert wrapped.invoke(NORWAY) == "Oslo, surely"
    assert large.calls == [SENT]


def test_a_larger_tiers_answer_goes_through_the_chains_end() -> None:
    large = FakeModel('```json\n{"name": "Oslo"}\n```')
    parser: PydanticOutputParser[City] = PydanticOutputParser(pydantic_object=City)
    wrapped = wrap(PROMPT | chat('{"name": "Bergen"}') | parser, guard_of(RETRY, models={"large": large}))
    assert wrapped.invoke(NORWAY) == City(name="Oslo")


def test_a_larger_tiers_answer_to_a_chat_model_is_a_message_with_usage() -> None:
    found = wrap(chat("Bergen"), guard_of(RETRY)).invoke("Capital of Norway?")
    assert isinstance(found, AIMessage)
    assert found.content == "Oslo, surely"
    assert found.usage_metadata is not None
    assert found.usage_metadata["output_tokens"] == 2
    assert found.response_metadata["ilis_guard"]["tier"] == "large"


def test_unparsable_text_is_no_answer_of_any_tier() -> None:
    parser: PydanticOutputParser[City] = PydanticOutputParser(pydantic_object=City)
    large = FakeModel("no JSON at all, secret")
    wrapped = wrap(PROMPT | chat("Oslo, a secret") | parser, guard_of(models={"large": large}), output="decision")
    decision = wrapped.invoke(NORWAY)
    assert decision.action is Action.ABSTAIN
    assert decision.rules == ("failed", "declined")
    assert [attempt.text for attempt in decision.attempts] == ["Oslo, a secret", "no JSON at all, secret"]
    for attempt in decision.attempts:
        assert problem(attempt) == "ModelError: what the chain does with the answer failed: OutputParserException"


def test_a_model_of_texts_may_stand_in_the_chain() -> None:
    chain = PromptTemplate.from_template("Capital of {country}?") | FakeListLLM(responses=["Bergen"])
    large = FakeModel("Oslo")
    # It never says why a text ended.
    wrapped = wrap(chain, guard_of(RETRY, models={"large": large}), reports_endings=False)
    assert wrapped.invoke(NORWAY) == "Oslo"
    assert large.calls == [SENT[1:]]
    assert wrap(chain, guard_of(), reports_endings=False).invoke(NORWAY) == "Bergen"


def test_a_runnable_may_stand_in_a_later_tiers_place() -> None:
    guard = guard_of(RETRY, models={"small": FakeModel("Bergen")})
    model = chat("Oslo")
    assert wrap(chain_of(model), guard, tier="large").invoke(NORWAY) == "Oslo"
    assert len(model.asked) == 1
    with pytest.raises(ConfigError, match="'huge'"):
        wrap(chat(), guard, tier="huge")


def test_the_guard_itself_goes_on_with_its_own_model() -> None:
    small = FakeModel("own")
    guard = guard_of(models={"small": small})
    wrap(chat("Oslo"), guard).invoke("q")
    assert small.calls == []
    assert guard.decide("q").text == "own"


@pytest.mark.parametrize(
    "bent",
    [
        lambda model: model.bind(stop=["\n"]),
        lambda model: model.with_retry(),
        lambda model: model.with_config(tags=["inner"]),
        lambda model: model.with_fallbacks([chat("fallback")]),
    ],
)
def test_a_model_is_found_behind_bindings(bent: Any) -> None:
    model, large = chat("Bergen"), FakeModel("Oslo")
    wrapped = wrap(PROMPT | bent(model) | StrOutputParser(), guard_of(RETRY, models={"large": large}))
    assert wrapped.invoke(NORWAY) == "Oslo"
    assert (len(model.asked), large.calls) == (1, [SENT])


def test_a_chain_with_a_config_is_split() -> None:
    large = FakeModel("Oslo")
    chain = chain_of(chat("Bergen")).with_config(run_name="capitals", tags=["mine"])
    assert wrap(chain, guard_of(RETRY, models={"large": large})).invoke(NORWAY) == "Oslo"
    assert large.calls == [SENT]


def test_the_last_model_is_the_one_that_answers() -> None:
    rewrites = PROMPT | chat("What is Norway's capital?") | StrOutputParser()
    large = FakeModel("Oslo")
    wrapped = wrap(rewrites | chat("Bergen"), guard_of(RETRY, models={"large": large}))
    assert wrapped.invoke(NORWAY).content == "Oslo"
    assert large.calls == [(Message(role="user", content="What is Norway's capital?"),)]


def test_a_later_model_in_a_larger_step_answers() -> None:
    later = (PROMPT | chat("second")).with_config(run_name="later")
    branch: Any = RunnableBranch((lambda _: True, PROMPT | chat("second") | StrOutputParser()), lambda _: "never")
    for step in (later, branch):
        chain = (PROMPT | chat("first") | (lambda said: {"country": said.text}) | step).with_types(output_type=str)
        wrapped = wrap(chain, guard_of(FixedScorer({"second": ANSWER})), prompt=str, output="decision")
        assert wrapped.invoke(NORWAY).text == "second"


def test_retrieval_before_the_model_runs_once() -> None:
    retrieved: list[str] = []

    def retrieve(given: dict[str, str]) -> str:
        retrieved.append(given["country"])
        return "Norge"

    chain = RunnablePassthrough.assign(country=retrieve) | chain_of(chat("Bergen"))
    large = FakeModel("Oslo")
    assert wrap(chain, guard_of(RETRY, models={"large": large})).invoke(NORWAY) == "Oslo"
    assert retrieved == ["Norway"]
    assert large.calls[0][-1].content == "Capital of Norge?"


# Chains that show no model


def hidden(model: Any) -> Any:
    def ask(question: str) -> str:
        return str(model.invoke([SystemMessage("Be brief."), HumanMessage(f"Capital of {question}?")]).content)

    return RunnableLambda(ask)


def test_a_function_runs_once_and_larger_tiers_get_its_conversation(queue: InMemoryQueue) -> None:
    model, large = chat("Bergen"), FakeModel("Oslo")
    guard = guard_of(RETRY, ESCALATE, models={"large": large}, review=queue)
    decision = wrap(hidden(model), guard, output="decision").invoke("Norway")
    assert (len(model.asked), large.calls) == (1, [SENT])
    assert decision.attempts[0].text == "Bergen"
    assert queue.get(decision.ticket.id).request["messages"] == SHOWN


def test_a_functions_usage_is_summed_and_statistics_need_one_model() -> None:
    def reply() -> AIMessage:
        logprobs = {"content": [{"token": "Oslo", "logprob": -0.25}]}
        usage: Any = {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6}
        return AIMessage("Oslo", usage_metadata=usage, response_metadata={"logprobs": logprobs})

    def ask(times: int) -> Decision:
        model = chat(reply())

        def work(question: str) -> str:
            return [str(model.invoke(question).content) for _ in range(times)][-1]

        decision: Decision = wrap(RunnableLambda(work), guard_of(), output="decision").invoke("Norway")
        return decision

    once, twice = ask(1).attempts[0], ask(2).attempts[0]
    assert once.statistics is not None
    assert (once.statistics.logprob_sum, once.tokens) == (-0.25, 1)
    assert (twice.statistics, twice.tokens) == (None, 2)


def test_an_agents_state_is_a_conversation_and_its_last_message_an_answer() -> None:
    def agent(state: dict[str, list[BaseMessage]]) -> dict[str, list[BaseMessage]]:
        return {"messages": [*state["messages"], AIMessage("Oslo")]}

    found = wrap(RunnableLambda(agent), guard_of(tiers=1)).invoke({"messages": [HumanMessage("Capital of Norway?")]})
    assert [turn.content for turn in found["messages"]] == ["Capital of Norway?", "Oslo"]


def test_an_agent_is_wrapped_whole() -> None:
    agent = create_agent(chat("Oslo"), tools=[])
    question = {"messages": [HumanMessage("Capital of Norway?")]}
    assert wrap(agent, guard_of(tiers=1)).invoke(question)["messages"][-1].content == "Oslo"
    refusal = wrap(agent, guard_of(ABSTAIN, tiers=1)).invoke(question)
    assert isinstance(refusal, Refused)
    wrapped = wrap(agent, guard_of(RETRY), as_output=lambda text: {"messages": [AIMessage(text)]})
    assert wrapped.invoke(question)["messages"][-1].content == "Oslo, surely"


def test_an_input_that_asks_nothing_by_itself_needs_a_prompt() -> None:
    def ask(given: dict[str, str]) -> str:
        return f"The capital of {given['country']} is Oslo."

    with pytest.raises(RequestError, match="prompt="):
        wrap(RunnableLambda(ask), guard_of()).invoke(NORWAY)
    large = FakeModel("Oslo")
    wrapped = wrap(
        RunnableLambda(ask),
        guard_of(RETRY, models={"large": large}),
        prompt=lambda given: f"Capital of {given['country']}?",
    )
    assert wrapped.invoke(NORWAY) == "Oslo"
    assert large.calls == [SENT[1:]]


def test_a_larger_tiers_answer_in_an_unknown_type_needs_as_output() -> None:
    def cities(question: str) -> list[str]:  # noqa: ARG001
        return [str(chat("Bergen").invoke("Capital of Norway?").content)]

    with pytest.raises(ConfigError, match="as_output="):
        wrap(RunnableLambda(cities), guard_of(RETRY))
    assert wrap(RunnableLambda(cities), guard_of(RETRY), as_output=lambda text: [text]).invoke("q") == ["Oslo, surely"]
    assert wrap(RunnableLambda(cities), guard_of(tiers=1)).invoke("q") == ["Bergen"]


def test_an_undeclared_type_may_be_declared() -> None:
    untyped: RunnableLambda[str, Any] = RunnableLambda(lambda question: "Bergen")  # noqa: ARG005
    with pytest.raises(ConfigError, match="with_types"):
        wrap(untyped, guard_of(RETRY))
    assert wrap(untyped.with_types(output_type=str), guard_of(RETRY)).invoke("q") == "Oslo, surely"
    assert wrap(untyped.with_types(output_type=str), guard_of(ABSTAIN)).invoke("q") == "I don't know."


def test_an_output_without_a_text_is_no_answer() -> None:
    decision = wrap(RunnableLambda(lambda _: 7), guard_of(tiers=1), output="decision").invoke("q")
    assert decision.action is Action.ABSTAIN
    assert "has no text to judge" in problem(decision.attempts[0])


# Failures


def test_an_error_of_the_chains_model_is_the_attempts_and_unquoted() -> None:
    wrapped = wrap(chain_of(chat(ValueError("about Norway"))), guard_of(), output="decision")
    decision = wrapped.invoke(NORWAY)
    assert (decision.action, decision.text) == (Action.ANSWER, "Oslo, surely")
    assert problem(decision.attempts[0]) == "ModelError: Chat didn't answer: ValueError"


def test_an_error_in_passing_is_tried_again() -> None:
    model = chat(ConnectionError("down"), "Oslo")
    assert wrap(model, guard_of()).invoke("q").content == "Oslo"
    assert len(model.asked) == 2


def test_an_error_before_the_model_is_raised_for_there_is_nothing_to_ask() -> None:
    with pytest.raises(KeyError, match="country"):
        wrap(chain_of(chat()), guard_of()).invoke({"city": "Oslo"})


def test_a_missing_score_is_never_an_answer() -> None:
    decision = wrap(chat("Oslo"), guard_of(None, tiers=1), output="decision").invoke("q")
    assert (decision.action, decision.uncertainty, decision.text) == (Action.ABSTAIN, None, "I can't answer that.")
    assert "no bundle" in problem(decision.attempts[0])


@pytest.mark.parametrize(
    "reply",
    [
        AIMessage("Oslo", additional_kwargs={"refusal": "I won't."}),
        AIMessage([{"type": "refusal", "refusal": "I won't."}]),
        AIMessage("Os", response_metadata={"finish_reason": "content_filter"}),
    ],
)
def test_a_providers_refusal_is_no_answer(reply: AIMessage) -> None:
    for chain in (chat(reply), hidden(chat(reply))):
        decision = wrap(chain, guard_of(tiers=1), output="decision").invoke("Norway")
        assert decision.action is Action.ABSTAIN
        assert re.search("refused to answer|ended with 'content_filter'", problem(decision.attempts[0]))


CALL = AIMessage("Let me see.", tool_calls=[{"name": "search", "args": {}, "id": "1"}])


@pytest.mark.parametrize("said", ["", "Let me see."])
def test_a_message_that_calls_a_tool_is_no_answer(said: str) -> None:
    call = CALL.model_copy(update={"content": said})
    assert wrap(chat(call), guard_of(tiers=1)).invoke("q").response_metadata["ilis_guard"]["action"] == "abstain"


@pytest.mark.parametrize(
    "output",
    [
        CALL,
        {"messages": [HumanMessage("q"), CALL]},
        {"messages": [HumanMessage("q")]},
        {"messages": [HumanMessage("q"), AIMessage("half")], "__interrupt__": [object()]},
        AIMessage("I won't.", additional_kwargs={"refusal": "I won't."}),
    ],
    ids=["calls", "state-calls", "state-of-user", "interrupted", "refusal"],
)
def test_tool_calls_states_and_refusals_of_a_function_are_no_answers(output: Any) -> None:
    wrapped = wrap(RunnableLambda(lambda _: output), guard_of(tiers=1), output="decision")
    decision = wrapped.invoke("q")
    assert (decision.action, decision.text) == (Action.ABSTAIN, "I can't answer that.")


def test_a_refusal_of_a_guard_in_a_function_is_no_answer() -> None:
    hidden = {"guarded": wrap(chat(), guard_of(ABSTAIN))}
    ask: Any = RunnableLambda(lambda question: {"messages": [hidden["guarded"].invoke(question)]})
    outer = wrap(ask, guard_of(tiers=1), output="decision")
    decision = outer.invoke("q")
    assert decision.action is Action.ABSTAIN
    assert "refused" in problem(decision.attempts[0])


def test_as_output_that_fails_does_not_quote_the_answer() -> None:
    def parse(text: str) -> City:
        raise ValueError(f"can't parse {text}")

    wrapped = wrap(RunnableLambda(lambda _: {"text": "x"}), guard_of(RETRY), output="decision", as_output=parse)
    failed = wrapped.invoke("q").attempts[-1]
    assert problem(failed) == "ModelError: what the chain does with the answer failed: ValueError"


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_interrupt_of_langgraph_passes_through(is_async: bool) -> None:
    def pause(question: str) -> str:  # noqa: ARG001
        raise GraphInterrupt

    for chain in (RunnableLambda(pause), chain_of(chat(GraphInterrupt()))):
        wrapped = wrap(chain, guard_of())
        given: Any = "q" if isinstance(chain, RunnableLambda) else NORWAY
        with pytest.raises(GraphInterrupt):
            await wrapped.ainvoke(given) if is_async else wrapped.invoke(given)


def test_a_keyboard_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        wrap(chat(KeyboardInterrupt()), guard_of()).invoke("q")


async def test_a_cancelled_call_asks_no_larger_tier_and_leaves_no_ticket(queue: InMemoryQueue) -> None:
    begun, large = asyncio.Event(), FakeModel("Oslo")

    async def hang(question: str) -> str:  # noqa: ARG001
        begun.set()
        await asyncio.Event().wait()
        return "never"

    guard = guard_of(RETRY, models={"large": large}, review=queue)
    asking = asyncio.create_task(wrap(RunnableLambda(hang), guard).ainvoke("q"))
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    for thread in threading.enumerate():
        if thread.name == "ilis-guard-call":
            thread.join(10)
    assert large.calls == []
    assert queue.list() == []


# In shadow mode everything is as it was


SHADOW = POLICY.replace("name: by-score", "name: by-score\nmode: shadow")


def test_a_policy_that_only_looks_on_lets_everything_out() -> None:
    guard = guard_of(ABSTAIN, policy=SHADOW)
    assert wrap(chain_of(chat("Oslo")), guard).invoke(NORWAY) == "Oslo"
    call = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])
    assert wrap(chat(call), guard).invoke("q").tool_calls == call.tool_calls


def test_a_policy_that_only_looks_on_lets_errors_out_too() -> None:
    wrapped = wrap(chain_of(chat(ValueError("mine"))), guard_of(policy=SHADOW))
    with pytest.raises(ValueError, match="mine"):
        wrapped.invoke(NORWAY)


# Labels, and guarding twice


def test_labels_reach_the_policy_those_of_a_call_over_those_of_the_wrapped() -> None:
    policy = POLICY.replace(
        "rules:", "rules:\n  - {id: law, when: 'has(labels.topic) && labels.topic == \"law\"', do: abstain, say: Law.}"
    )
    wrapped = wrap(chain_of(chat()), guard_of(policy=policy), labels={"topic": "law"})
    assert wrapped.invoke(NORWAY) == "Law."
    assert wrapped.invoke(NORWAY, labels={"topic": "geography"}) == "Oslo"
    assert wrapped.bind(labels={"topic": "geography"}).invoke(NORWAY) == "Oslo"


@pytest.mark.parametrize("place", ["alone", "inside", "bound", "fallback", "branch", "deep"])
def test_a_guarded_chain_is_refused(place: str) -> None:
    guard = guard_of()
    inner: Any = GuardRunnable(guard) if place == "alone" else wrap(chat(), guard)
    branch: Any = RunnableBranch((lambda _: True, inner), lambda _: "never")
    chain = {
        "alone": inner,
        "inside": PROMPT | inner | StrOutputParser(),
        "bound": inner.with_retry(),
        "fallback": chat().with_fallbacks([inner]),
        "branch": branch,
        "deep": PROMPT | {"said": branch.with_config(run_name="deep")},
    }[place]
    with pytest.raises(ConfigError, match="guarded already"):
        wrap(chain, guard)


def test_a_prompt_that_holds_no_conversation_is_refused() -> None:
    with pytest.raises(RequestError, match=re.escape("the last turn must be the user's")):
        wrap(chat(), guard_of()).invoke([HumanMessage("q"), AIMessage("a")])
