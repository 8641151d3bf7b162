"""Only known good endings are finished answers, at every entrance."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import tenacity
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_openai import ChatOpenAI, OpenAI

from ilis_guard import Action, Guard, Policy, Tier
from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.errors import ModelError, ReviewError, UnfinishedAnswerError
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.harvest import ConcurrentRemoteModel, harvest
from ilis_guard.lab.questions import Question
from ilis_guard.models.endings import ENDINGS, ending_of
from ilis_guard.models.remote import RemoteModel
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Generation, Message, Step, Verdict
from ilis_guard_langchain import ChatIlisGuard, IlisGuardMiddleware, wrap
from tests.scripted_provider import ScriptedProvider, chunks, completion, scripted_provider

QUESTION = "Where is Oslo?"
POLICY = """version: 1
name: sure
rules:
- {id: sure, when: uncertainty < 0.5, do: answer}
- {id: unsure, do: escalate, say: A person will answer.}
"""
GOOD = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "STOP", "COMPLETE", "STOP_SEQUENCE", "eos_token"), "stop"),
    **dict.fromkeys(
        ("length", "max_tokens", "model_context_window_exceeded", "MAX_TOKENS", "model_length", "LENGTH"), "length"
    ),
}
BAD = (
    *("content_filter", "abort", "error", "network_error", "cancelled", "insufficient_system_resource"),
    *("refusal", "pause_turn", "compaction", "tool_calls", "function_call", "tool_use", "TOOL_CALL"),
    *("SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"),
    *("MALFORMED_FUNCTION_CALL", "FINISH_REASON_UNSPECIFIED", "guardrail_intervened", "content_filtered"),
    *("malformed_model_output", "ERROR", "ERROR_TOXIC", "ERROR_LIMIT", "USER_CANCEL", "TIMEOUT", "CONTENT_FILTERED"),
    *("load", "unload", "a word of tomorrow", "Stop", "stoplength", "stop ", "none", "null", "None"),
)
NO_WORDS = (0, 1, True, False, ["stop"], {"reason": "stop"}, 1.0)


def tier_of(model: Any) -> Tier:
    return Tier(name="only", model=model, scorer=FixedScorer(0.1))


def guard_of(model: Any, queue: InMemoryQueue | None = None) -> Guard:
    queue = InMemoryQueue() if queue is None else queue
    return Guard(tiers=[tier_of(model)], policy=Policy.parse(POLICY), review=queue, backoff=tenacity.wait_none())


def scripted(reply: AIMessage) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([reply] * 9))


def unguarded() -> Guard:
    """A guard whose only tier's model is taken by what is wrapped."""
    return guard_of(FakeModel("never called"))


def kind_of(decision: Any) -> str | None:
    assert (decision.action, decision.text) == (Action.ESCALATE, "A person will answer.")
    error = decision.attempts[-1].error
    return None if error is None else str(error.kind)


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with scripted_provider() as one:
        yield one


@pytest.mark.parametrize("key", ["finish_reason", "stop_reason", "stopReason", "done_reason"])
def test_each_providers_good_endings_are_known_and_all_others_are_not(key: str) -> None:
    for word, ending in GOOD.items():
        assert ending_of({key: word}) == ending, word
        assert ending_of({key: word * 3}) == ending, "a sum of chunks"
    for word in BAD:
        if not word.startswith(("tool", "function", "TOOL")):
            with pytest.raises(UnfinishedAnswerError, match="gave no finished answer"):
                ending_of({key: word})
    for value in NO_WORDS:
        with pytest.raises(UnfinishedAnswerError, match="gave no finished answer"):
            ending_of({key: value})
    assert ending_of({key: None}) is None
    assert ending_of({key: ""}) is None
    assert ending_of({}) is None


def test_the_table_holds_no_other_words() -> None:
    words = {word for endings in ENDINGS.values() for each in endings.values() for word in each}
    tools = {"tool_calls", "function_call", "tool_use", "TOOL_CALL"}
    assert words == {*GOOD, *tools, "FINISH", "FINISHED"}


def test_several_keys_must_agree_that_it_is_finished() -> None:
    assert ending_of({"finish_reason": "stop", "stop_reason": None}) == "stop"
    assert ending_of({"finish_reason": "stop", "stop_reason": "max_tokens"}) == "length"
    with pytest.raises(UnfinishedAnswerError):
        ending_of({"finish_reason": "stop", "stop_reason": "refusal"})


def test_enumerations_are_known_by_their_names() -> None:
    class FinishReason(Enum):
        STOP = 1
        SAFETY = 3

    assert ending_of({"finish_reason": FinishReason.STOP}) == "stop"
    with pytest.raises(UnfinishedAnswerError, match="SAFETY"):
        ending_of({"finish_reason": FinishReason.SAFETY})


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        ("completed", None, "stop"),
        ("incomplete", "max_output_tokens", "length"),
        *((status, None, "error") for status in ("failed", "in_progress", "cancelled", "queued", "incomplete")),
        ("incomplete", "content_filter", "error"),
    ],
)
def test_openais_responses_api_has_a_status(status: str, reason: str | None, expected: str) -> None:
    metadata = {"status": status, "incomplete_details": None if reason is None else {"reason": reason}}
    if expected == "error":
        with pytest.raises(UnfinishedAnswerError):
            ending_of(metadata)
    else:
        assert ending_of(metadata) == expected


@pytest.mark.parametrize(
    ("contradiction", "expected"),
    [
        ({"status": "failed"}, "error"),
        ({"status": "incomplete"}, "error"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"incomplete_details": {"reason": "content_filter"}}, "error"),
        ({"error": {"message": "Upstream idle timeout"}}, "error"),
        ({"status": "completed", "error": None, "incomplete_details": None}, "stop"),
        ({"status": 200}, "stop"),
    ],
)
def test_a_good_word_counts_only_where_nothing_beside_it_says_otherwise(
    contradiction: dict[str, Any], expected: str
) -> None:
    metadata = {"finish_reason": "stop", **contradiction}
    if expected == "error":
        with pytest.raises(UnfinishedAnswerError):
            ending_of(metadata)
    else:
        assert ending_of(metadata) == expected


def test_a_word_is_quoted_shortly() -> None:
    with pytest.raises(UnfinishedAnswerError) as caught:
        ending_of({"finish_reason": "x" * 10_000_000})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("word", [*BAD, *NO_WORDS], ids=repr)
def test_no_other_ending_is_an_answer(word: Any) -> None:
    model = RemoteModel(scripted(AIMessage("Oslo", response_metadata={"finish_reason": word})))
    with pytest.raises(UnfinishedAnswerError):
        model.generate([Message(role="user", content=QUESTION)])


@pytest.mark.parametrize("word", ["abort", "SAFETY", "tool_calls", "a word of tomorrow", None, "absent"])
def test_no_other_ending_is_answered_at_any_entrance(word: Any) -> None:
    reply = AIMessage("Oslo", response_metadata={} if word == "absent" else {"finish_reason": word})
    model = RemoteModel(scripted(reply))
    with InMemoryQueue() as queue:
        decision = guard_of(model, queue).decide(QUESTION)
        assert decision.ticket is not None
        record = queue.get(decision.ticket.id)
        assert record.proposed is None, "nobody may accept what isn't known to be whole"
        with pytest.raises(ReviewError, match="no answer to accept"):
            queue.resolve(decision.ticket.id, Verdict.ACCEPT, reviewer="ann")
    decisions = [
        decision,
        wrap(scripted(reply), unguarded(), output="decision").invoke(QUESTION),
        wrap(scripted(reply) | StrOutputParser(), unguarded(), output="decision").invoke(QUESTION),
        wrap(hidden(scripted(reply)), unguarded(), output="decision").invoke(QUESTION),
        *[event for event in guard_of(model).stream(QUESTION, mode="optimistic") if hasattr(event, "action")],
    ]
    assert [kind_of(each) for each in decisions] == ["UnfinishedAnswerError"] * 5
    chat = ChatIlisGuard(guard=guard_of(RemoteModel(scripted(reply))))
    whole: Any = sum(chat.stream(QUESTION), start=AIMessageChunk(content=""))
    for message in (chat.invoke(QUESTION), whole):
        assert message.content == "A person will answer."
    agent: Any = create_agent(scripted(reply), middleware=[IlisGuardMiddleware(unguarded())])
    state = agent.invoke({"messages": [("user", QUESTION)]})
    assert state["messages"][-1].content == "A person will answer."


def hidden(model: Runnable[Any, Any]) -> Runnable[Any, str]:
    """A function that calls a model, which the chain doesn't show."""
    return RunnableLambda(lambda given: str(model.invoke(given).content))


@pytest.mark.parametrize(("word", "expected"), [("stop", "stop"), ("end_turn", "stop"), ("MAX_TOKENS", "length")])
def test_good_endings_are_answered_at_every_entrance(word: str, expected: str) -> None:
    reply = AIMessage("Oslo", response_metadata={"finish_reason": word})
    for decision in (
        guard_of(RemoteModel(scripted(reply))).decide(QUESTION),
        wrap(scripted(reply), unguarded(), output="decision").invoke(QUESTION),
        wrap(hidden(scripted(reply)), unguarded(), output="decision").invoke(QUESTION),
    ):
        assert (decision.action, decision.text) == (Action.ANSWER, "Oslo")
        assert decision.attempts[-1].finish_reason == expected
    agent: Any = create_agent(scripted(reply), middleware=[IlisGuardMiddleware(unguarded())])
    assert agent.invoke({"messages": [("user", QUESTION)]})["messages"][-1].content == "Oslo"


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("word", "answers"), [("stop", True), ("length", True), ("abort", False), (None, False)])
def test_a_real_providers_replies_and_streams(
    provider: ScriptedProvider, word: str | None, answers: bool, streams: bool
) -> None:
    chat = ChatOpenAI(**provider.arguments(streaming=streams))
    provider.script = chunks("Os", "lo", finish_reason=word) if streams else completion("Oslo", word)
    made = guard_of(RemoteModel(chat)).decide(QUESTION)
    wrapped = wrap(chat | StrOutputParser(), unguarded(), output="decision").invoke(QUESTION)
    for decision in (made, wrapped):
        if answers:
            assert (decision.action, decision.text, decision.attempts[0].finish_reason) == ("answer", "Oslo", word)
        else:
            assert kind_of(decision) == "UnfinishedAnswerError"


def test_a_completion_models_ending_is_heard_in_a_chain(provider: ScriptedProvider) -> None:
    llm = OpenAI(**provider.arguments())
    for word, expected in (("stop", "Oslo"), ("abort", "A person will answer."), (None, "A person will answer.")):
        provider.script = completion() | {"choices": [{"index": 0, "text": "Oslo", "finish_reason": word}]}
        assert wrap(llm, unguarded()).invoke(QUESTION) == expected, word


def test_a_model_that_never_says_why_it_ended_is_declared(tmp_path: Path) -> None:
    silent = FakeListChatModel(responses=["Oslo"])
    assert kind_of(guard_of(RemoteModel(silent)).decide(QUESTION)) == "UnfinishedAnswerError"
    chains: list[Runnable[Any, Any]] = [silent, FakeListLLM(responses=["Oslo"]), hidden(silent)]
    made = [wrap(each, unguarded(), output="decision", reports_endings=False).invoke(QUESTION) for each in chains]
    for decision in (guard_of(RemoteModel(silent, reports_endings=False)).decide(QUESTION), *made):
        assert (decision.action, decision.attempts[-1].finish_reason) == (Action.ANSWER, None)
    agent: Any = create_agent(silent, middleware=[IlisGuardMiddleware(unguarded(), reports_endings=False)])
    assert agent.invoke({"messages": [("user", QUESTION)]})["messages"][-1].content == "Oslo"
    (tmp_path / "policy.yaml").write_text("version: 1\nname: p\nrules:\n- {id: all, do: abstain}\n")
    for more, kind in (("", "UnfinishedAnswerError"), (", reports_endings: false", "ScoringError")):
        (tmp_path / "guard.yaml").write_text(
            "version: 1\npolicy: policy.yaml\ntiers:\n- name: only\n  remote: {chat_model: "
            f"'langchain_core.language_models:FakeListChatModel', arguments: {{responses: [Oslo]}}{more}}}\n"
        )
        with Guard.from_config(tmp_path / "guard.yaml") as guard:
            error = guard.decide(QUESTION).attempts[-1].error
        assert error is not None
        assert error.kind == kind


def test_even_from_a_model_that_never_says_a_bad_ending_is_none() -> None:
    bad = AIMessage("Oslo", response_metadata={"finish_reason": "SAFETY"})
    assert kind_of(guard_of(RemoteModel(scripted(bad), reports_endings=False)).decide(QUESTION)) == (
        "UnfinishedAnswerError"
    )


def generation(**changes: Any) -> Generation:
    values: dict[str, Any] = {"text": "Oslo", "tokens": 1, "prompt_tokens": 3, "finish_reason": "stop", "seconds": 0.0}
    return Generation(**{**values, **changes})


def test_a_users_own_models_answer_must_end() -> None:
    class Own:
        fingerprint = None

        def generate(self, messages: Any) -> Generation:  # noqa: ARG002 - a model's signature
            return generation(finish_reason=None)

    class Silent(Own):
        reports_endings = False

    made = guard_of(Own()).decide(QUESTION)
    assert kind_of(made) == "UnfinishedAnswerError"
    assert (made.attempts[0].tokens, made.attempts[0].prompt_tokens) == (1, 3), "its tokens count all the same"
    assert guard_of(Silent()).decide(QUESTION).action is Action.ANSWER


@pytest.mark.parametrize("mode", ["optimistic", "early_stop"])
def test_a_stream_that_just_ends_is_no_answer(mode: Any) -> None:
    class Broken(FakeModel):
        def stream(self, messages: Any, *, stop: Any = ()) -> Any:  # noqa: ARG002 - a model's signature
            for text in ("", "Os", "Oslo"):
                yield Step(token=text[-2:], generation=generation(text=text, finish_reason=None))

    events = list(guard_of(Broken("never")).stream(QUESTION, mode=mode))
    assert kind_of(events[-1]) == "UnfinishedAnswerError"


def test_of_several_replies_in_a_chain_the_one_that_is_the_answer_counts() -> None:
    def chain(*replies: AIMessage, output: str) -> Any:
        models = [scripted(reply) for reply in replies]

        def run(given: str) -> str:
            for model in models:
                model.invoke(given)
            return output

        return wrap(RunnableLambda(run), unguarded(), output="decision").invoke(QUESTION)

    def reply(text: str, word: Any) -> AIMessage:
        return AIMessage(text, response_metadata={"finish_reason": word})

    cut, whole, broken = reply("Os", "length"), reply("Oslo", "stop"), reply("Ber", "abort")
    for found, expected in (
        (chain(cut, whole, output="Oslo"), "stop"),
        (chain(broken, whole, output="Oslo"), "stop"),
        (chain(cut, whole, output="Oslo, surely"), "length"),
        (chain(output="Oslo"), "stop"),
    ):
        assert (found.action, found.attempts[-1].finish_reason) == (Action.ANSWER, expected)
    for found in (chain(broken, whole, output="Oslo, surely"), chain(whole, broken, output="Ber")):
        assert kind_of(found) == "UnfinishedAnswerError"


def test_a_call_of_tools_is_no_answer_whatever_its_ending_says() -> None:
    for word in ("stop", "tool_calls", "STOP"):
        call = AIMessage(
            "Let me see.",
            tool_calls=[{"name": "search", "args": {}, "id": "1"}],
            response_metadata={"finish_reason": word},
        )
        assert kind_of(guard_of(RemoteModel(scripted(call))).decide(QUESTION)) == "UnfinishedAnswerError"
        beside = wrap(hidden(scripted(call)), unguarded(), output="decision").invoke(QUESTION)
        assert kind_of(beside) == "UnfinishedAnswerError", "the text beside a call is none either"


@pytest.mark.parametrize("word", ["content_filter", "abort", None])
def test_a_harvest_labels_no_unfinished_answer(provider: ScriptedProvider, tmp_path: Path, word: Any) -> None:
    questions = [Question(id="q", question=QUESTION, answers=("Oslo",))]
    remote = RemoteModel(ChatOpenAI(**provider.arguments()))
    model = ConcurrentRemoteModel(remote, ModelCaller("only"), max_concurrent=1)
    provider.script = completion("Oslo", word)
    with pytest.raises(ModelError, match=r"1 answer couldn't be had, such as that to 'q' \(UnfinishedAnswerError"):
        harvest(model, questions, tmp_path / "rows.parquet", name="clerk")
    assert not (tmp_path / "rows.parquet").exists()
    provider.script = completion("Oslo", "length")
    harvest(model, questions, tmp_path / "rows.parquet", name="clerk")
    (row,) = read_attempts(tmp_path / "rows.parquet").rows()
    assert (row["wrong"], row["finish_reason"]) == (False, "length")


def test_a_cut_answer_is_called_so_to_reviewers_and_in_agents() -> None:
    reply = AIMessage("Os", response_metadata={"finish_reason": "length"})
    with InMemoryQueue() as queue:
        tier = Tier(name="only", model=RemoteModel(scripted(reply)), scorer=FixedScorer(0.9))
        decision = Guard(tiers=[tier], policy=Policy.parse(POLICY), review=queue).decide(QUESTION)
        assert decision.ticket is not None
        record = queue.get(decision.ticket.id)
    assert record.proposed == "Os"
    assert "its answer was cut off at its length limit" in record.explain()


def test_a_unfinished_answers_error_survives_pickling_with_its_tokens() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(UnfinishedAnswerError("why", prompt_tokens=3, tokens=None)))
    assert (str(error), error.prompt_tokens, error.tokens) == ("why", 3, None)


def test_the_message_model_sees_nothing_of_the_prompt() -> None:
    model = RemoteModel(scripted(AIMessage("secret", response_metadata={"finish_reason": "SAFETY"})))
    with pytest.raises(UnfinishedAnswerError) as caught:
        model.generate([Message(role="user", content="secret")])
    assert str(caught.value) == "the model gave no finished answer: its reply ended with 'SAFETY'"
