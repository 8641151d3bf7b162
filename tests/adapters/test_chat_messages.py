"""What a decision becomes as a chat model's message."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField
from pydantic import BaseModel, ValidationError

from ilis_guard import Guard, Message, Policy, Tier
from ilis_guard.errors import ModelError, RequestError
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Generation
from ilis_guard_langchain import ChatIlisGuard
from tests.adapters.chat_models import POLICY, QUESTION, chat, chat_of

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.models.local import LocalModel


def test_an_answer_is_a_message_with_its_decision() -> None:
    message = chat(0.1).invoke(QUESTION)
    assert (message.content, message.additional_kwargs) == ("It is Oslo", {})
    assert message.response_metadata["finish_reason"] == "stop"
    told = message.response_metadata["ilis_guard"]
    assert (told["action"], told["rule"], told["uncertainty"], told["tier"]) == ("answer", "sure", 0.1, "only")
    assert (told["ticket"], told["cost"], told["policy"]) == (None, None, Policy.parse(POLICY).fingerprint)
    assert [outcome["outcome"] for outcome in told["rulings"][0]["outcomes"]] == ["not_held", "decided"]


def test_a_decisions_summary_is_small_and_json() -> None:
    told = chat(0.1).invoke(QUESTION).response_metadata["ilis_guard"]
    names = "id action rule uncertainty calibrated rank rulings errors tier ticket ticket_error cost policy"
    assert list(told) == names.split()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert "It is Oslo" not in json.dumps(told)


def test_an_abstention_is_the_policys_message_and_a_refusal() -> None:
    message = chat(0.92).invoke(QUESTION)
    assert message.content == message.additional_kwargs["refusal"] == "I would rather not say."
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["ilis_guard"]["action"] == "abstain"


def test_an_escalation_is_a_refusal_that_names_its_ticket() -> None:
    model = chat(0.7)
    message = model.invoke(QUESTION)
    assert message.content == message.additional_kwargs["refusal"] == "Somebody will write to you."
    told = message.response_metadata["ilis_guard"]
    assert told["action"] == "escalate"
    queue = model.guard.review
    assert queue is not None
    assert queue.get(told["ticket"]).request["messages"][-1]["content"] == QUESTION  # type: ignore[attr-defined]  # it is an InMemoryQueue


def test_a_refusal_is_seen_even_where_the_policy_says_nothing() -> None:
    message = chat(0.99).invoke(QUESTION)
    assert (message.content, message.additional_kwargs["refusal"]) == ("", "abstain")


def test_a_model_that_fails_is_no_exception() -> None:
    message = chat(0.1, says=ModelError("it broke")).invoke(QUESTION)
    assert message.additional_kwargs["refusal"]
    assert [error["kind"] for error in message.response_metadata["ilis_guard"]["errors"]] == ["ModelError"]


def test_an_answer_that_was_cut_off_at_its_limit_says_so() -> None:
    cut = Generation(text="It is", tokens=2, prompt_tokens=5, finish_reason="length", seconds=0.0)
    assert chat(0.1, says=cut).invoke(QUESTION).response_metadata["finish_reason"] == "length"


def test_usage_is_of_all_attempts_under_the_name_of_the_whole_guard() -> None:
    small = Generation(text="one two three", tokens=3, prompt_tokens=10, finish_reason="stop", seconds=0.0)
    large = Generation(text="four five", tokens=2, prompt_tokens=12, finish_reason="stop", seconds=0.0)
    model = chat_of({"small": (small, 0.8), "large": (large, 0.1)})
    counter = UsageMetadataCallbackHandler()
    message = model.invoke(QUESTION, {"callbacks": [counter]})
    assert message.content == "four five"
    assert message.usage_metadata == {"input_tokens": 22, "output_tokens": 5, "total_tokens": 27}
    assert message.response_metadata["model_name"] == model.model_name == "small > large"
    assert counter.usage_metadata == {"small > large": message.usage_metadata}
    assert message.response_metadata["ilis_guard"]["tier"] == "large"


def asked_of(model: ChatIlisGuard) -> list[tuple[Message, ...]]:
    (tier,) = model.guard.tiers
    assert isinstance(tier.model, FakeModel)
    return tier.model.calls


def test_a_conversation_reaches_the_model_unchanged() -> None:
    model = chat(0.1)
    model.invoke([SystemMessage("s"), HumanMessage("q"), AIMessage("a"), HumanMessage(QUESTION)])
    turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", QUESTION)]
    assert [(turn.role, turn.content) for turn in asked_of(model)[0]] == turns


def test_own_answers_may_be_sent_back_in_any_form() -> None:
    model = chat(0.1, output_version="v1")
    said = model.invoke(QUESTION)
    assert said.content == [{"type": "text", "text": "It is Oslo"}]
    model.invoke([HumanMessage(QUESTION), said, HumanMessage("Sure?")])
    assert [turn.content for turn in asked_of(model)[1]] == [QUESTION, "It is Oslo", "Sure?"]


@pytest.mark.parametrize(
    ("turn", "named"),
    [
        (ToolMessage("r", tool_call_id="1"), "'tool'"),
        (HumanMessage([{"type": "image", "url": "https://example.com/a.png"}]), "1 parts"),
    ],
)
def test_a_message_that_is_not_text_is_refused(turn: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        chat(0.1).invoke([HumanMessage(QUESTION), turn])


def test_labels_of_a_call_override_those_of_a_binding_and_the_field() -> None:
    model = chat(0.1, labels={"topic": "law"})
    assert model.invoke(QUESTION).content == "Ask a lawyer."
    assert model.invoke(QUESTION, labels={"topic": "geography"}).content == "It is Oslo"
    assert model.bind(labels={"topic": "geography"}).invoke(QUESTION).content == "It is Oslo"


def test_labels_may_be_one_of_a_runs_configurable_fields() -> None:
    model = chat(0.1).configurable_fields(labels=ConfigurableField(id="labels"))
    assert model.invoke(QUESTION).content == "It is Oslo"
    assert model.invoke(QUESTION, {"configurable": {"labels": {"topic": "law"}}}).content == "Ask a lawyer."


def test_a_keyword_or_a_field_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="'lables'"):
        chat(0.1).invoke(QUESTION, lables={"topic": "law"})
    with pytest.raises(ValidationError, match="max_tokens"):
        chat(0.1, max_tokens=10)
    with pytest.raises(ValidationError, match="stream_mode"):
        chat(0.1, stream_mode="hopeful")


def test_an_answer_ends_before_a_stop_sequence_of_the_call_or_the_model() -> None:
    model = chat(0.1, stop=["Os"])
    assert model.invoke(QUESTION).content == "It is"
    assert model.invoke(QUESTION, stop=["is"]).content == "It"
    assert model.invoke(QUESTION, stop=["Rome"]).content == "It is Oslo"
    assert model._get_ls_params()["ls_stop"] == ["Os"]
    assert model._get_ls_params(stop=["is"])["ls_stop"] == ["is"]


def test_the_score_is_of_the_answer_before_the_stop_sequence() -> None:
    scores = FixedScorer({"It is": 0.1, "It is Oslo": 0.99})
    guard = Guard(tiers=[Tier(name="only", model=FakeModel("It is Oslo"), scorer=scores)], policy=Policy.parse(ALONE))
    assert ChatIlisGuard(guard=guard).invoke(QUESTION, stop=["Os"]).content == "It is"


ALONE = """
version: 1
name: alone
rules:
  - {id: sure, when: uncertainty < 0.5, do: answer}
  - {id: decline, do: abstain}
"""


class Deaf:
    """A user's own model, which knows nothing of stop sequences."""

    fingerprint = None

    def generate(self, messages: Any) -> Generation:
        return Generation(text="It is Oslo", tokens=3, prompt_tokens=len(messages), finish_reason="stop", seconds=0.0)


def test_stop_sequences_are_refused_before_a_model_that_cannot_take_them() -> None:
    guard = Guard(tiers=[Tier(name="own", model=Deaf(), scorer=FixedScorer(0.1))], policy=Policy.parse(ALONE))
    model = ChatIlisGuard(guard=guard)
    assert model.invoke(QUESTION).content == "It is Oslo"
    with pytest.raises(RequestError, match=r"\['own'\] can't end an answer at stop sequences"):
        model.invoke(QUESTION, stop=["Os"])
    with pytest.raises(RequestError, match="strings that aren't empty"):
        model.invoke(QUESTION, stop=[""])


def test_tools_and_structured_output_are_refused_with_advice() -> None:
    class Capital(BaseModel):
        name: str

    with pytest.raises(NotImplementedError, match="IlisGuardMiddleware"):
        chat(0.1).bind_tools([Capital])
    with pytest.raises(NotImplementedError, match="JsonOutputParser"):
        chat(0.1).with_structured_output(Capital)


def test_the_profile_lists_the_capabilities() -> None:
    profile = chat(0.1).profile
    assert profile is not None
    assert (profile["text_inputs"], profile["tool_calling"], profile["structured_output"]) == (True, False, False)


def test_a_decision_is_not_kept_in_a_global_cache_unless_asked_for() -> None:
    set_llm_cache(InMemoryCache())
    try:
        model = chat([0.92, 0.1, 0.92])
        assert [model.invoke(QUESTION).content for _ in range(2)] == ["I would rather not say.", "It is Oslo"]
        kept = chat([0.92, 0.1], cache=True)
        assert [kept.invoke(QUESTION).content for _ in range(2)] == ["I would rather not say."] * 2
        assert kept.invoke(QUESTION, labels={"topic": "law"}).content == "Ask a lawyer."
    finally:
        set_llm_cache(None)


def test_a_cache_keeps_the_answers_of_one_policy_from_another() -> None:
    cache = InMemoryCache()
    chat(0.1, cache=cache).invoke(QUESTION)
    assert chat(0.1, cache=cache, policy=POLICY.replace("0.5", "0.05")).invoke(QUESTION).content != "It is Oslo"


def test_a_rate_limiter_lets_requests_through_one_by_one() -> None:
    class Counting(InMemoryRateLimiter):
        acquired = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            self.acquired += 1
            return super().acquire(blocking=blocking)

    limiter = Counting(requests_per_second=1000, check_every_n_seconds=0.001)
    chat(0.1, rate_limiter=limiter).batch([QUESTION] * 3)
    assert limiter.acquired == 3


def test_a_chat_model_is_not_serializable_and_hides_its_guard() -> None:
    model = chat(0.1)
    assert not model.is_lc_serializable()
    written = dumpd(model)
    assert written["type"] == "not_implemented"
    assert "guard=" not in written["repr"]
    assert "guard" not in model.model_dump()


def test_tracing_knows_the_policy_and_the_tiers() -> None:
    model = chat(0.1)
    assert model._identifying_params["policy"] == model.guard.policy.fingerprint
    assert model._identifying_params["tiers"] == {"only": "FakeModel"}
    assert model._llm_type == "ilis-guard"
    params = model._get_ls_params()
    assert (params["ls_provider"], params["ls_model_name"], params["ls_model_type"]) == ("ilis_guard", "only", "chat")


def test_texts_are_counted_in_the_first_tiers_tokens(smollm2_full: "LocalModel") -> None:
    guard = Guard(tiers=[Tier(name="only", model=smollm2_full, scorer=FixedScorer(0.1))], policy=Policy.parse(ALONE))
    model = ChatIlisGuard(guard=guard)
    assert model.get_num_tokens(QUESTION) == len(smollm2_full._tokenizer.encode(QUESTION))
    long = [HumanMessage("word " * 50), AIMessage("Yes."), HumanMessage(QUESTION)]
    kept = trim_messages(long, max_tokens=40, token_counter=model, start_on="human")
    assert [turn.content for turn in kept] == [QUESTION]


def test_a_model_without_a_tokenizer_names_the_remedy() -> None:
    with pytest.raises(NotImplementedError, match="custom_get_token_ids"):
        chat(0.1).get_num_tokens(QUESTION)
    assert chat(0.1, custom_get_token_ids=lambda text: [len(word) for word in text.split()]).get_num_tokens("a b") == 2
